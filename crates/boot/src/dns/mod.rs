//! DNS, as far as nodes need it (RFC 1035): their own names are answered here, everything else is
//! what the head's own resolver says, passed on byte by byte.

mod message;
mod names;
mod relay;
mod stream;
#[cfg(test)]
mod tests;

pub use message::{Code, Question, Wrong, is_answer_to, parse_question, with_id};
pub use names::Names;
pub use relay::{
    Asker, Effect, Key, MAX_QUESTIONS, MAX_QUESTIONS_PER_ADDRESS, Relay, Verdict, judge,
};
pub use stream::Stream;

/// Longest message over UDP that anybody takes who has not said more (RFC 1035, 2.3.4).
pub const PLAIN_BYTES: usize = 512;
/// Longest that is sent over UDP to those who take more: it fits one frame nearly everywhere (DNS
/// flag day 2020).
pub const LONG_BYTES: usize = 1232;
