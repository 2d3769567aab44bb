//! The head's end of the view, as far as the deputy carries it: whose questions are answered, and
//! how many at a time.
//!
//! What a question means is not known here: [`Exports`] brings what answers it.

use std::collections::VecDeque;
use std::fmt::Debug;

use rustix::io::Errno;
use wiglaf_wire::stream::{Relay, ViewAnswer, ViewAsk, ViewQuestion, ViewReply};

use super::Deputy;
use super::links::{Link, LinkId};
use crate::relay::carrier::{Carrier, CarrierError};

/// Most questions of one link that wait for their answers; an agent keeps to fewer (S1).
const MAX_QUESTIONS: usize = 4096;
/// Answers to one link before the others, and the streams, get their turn.
const ANSWERS_PER_TURN: usize = 64;
/// The same for the bytes of files in them.
const BYTES_PER_TURN: usize = 1 << 20;

/// What answers the questions of one link. Its numbers mean nothing on another.
pub trait AnswersView: Debug {
    /// Answers, with the rights of this process.
    fn answer(&mut self, question: ViewQuestion) -> ViewAnswer;
}

/// Where what answers comes from.
pub trait Exports: Debug {
    /// For a new link.
    ///
    /// # Errors
    /// The errno that every question of this link is answered with for now.
    fn open(&self) -> Result<Box<dyn AnswersView>, Errno>;
}

/// A deputy that serves no files.
#[derive(Clone, Copy, Debug)]
pub struct NoExports;

impl Exports for NoExports {
    fn open(&self) -> Result<Box<dyn AnswersView>, Errno> {
        Err(Errno::NOSYS)
    }
}

/// The questions of one link.
#[derive(Debug, Default)]
pub(super) struct Questions {
    waiting: VecDeque<ViewQuestion>,
    export: Option<Box<dyn AnswersView>>,
}

impl Questions {
    pub(super) fn take(&mut self, question: ViewQuestion, carrier: &mut Carrier) {
        if self.waiting.len() < MAX_QUESTIONS {
            self.waiting.push_back(question);
        } else {
            carrier.fail(CarrierError::TooManyQuestions);
        }
    }

    /// Answers some. A question that may be `entitled` soon stays (`undecided`).
    fn answer(
        &mut self,
        exports: &dyn Exports,
        (entitled, undecided): (bool, bool),
        carrier: &mut Carrier,
    ) {
        let mut bytes = 0;
        for _ in 0..ANSWERS_PER_TURN {
            if bytes >= BYTES_PER_TURN || carrier.is_congested() {
                return;
            }
            let Some(question) = self.waiting.front() else {
                return;
            };
            let gives_back = matches!(question.what, ViewAsk::Forget { .. });
            if undecided && !entitled && !gives_back {
                return;
            }
            let Some(question) = self.waiting.pop_front() else {
                return;
            };
            let id = question.id;
            let answer = if entitled || (gives_back && self.export.is_some()) {
                match self.export(exports) {
                    Ok(export) => export.answer(question),
                    Err(errno) => refusal(id, errno),
                }
            } else {
                refusal(id, Errno::ACCESS)
            };
            if let Ok(ViewReply::Data(data)) = &answer.result {
                bytes += data.len();
            }
            carrier.say(&Relay::View(answer));
        }
    }

    fn export(&mut self, exports: &dyn Exports) -> Result<&mut Box<dyn AnswersView>, Errno> {
        match &mut self.export {
            Some(export) => Ok(export),
            none => Ok(none.insert(exports.open()?)),
        }
    }
}

fn refusal(id: u64, errno: Errno) -> ViewAnswer {
    ViewAnswer {
        id,
        result: Err(errno.raw_os_error()),
    }
}

impl Deputy {
    /// Whether there are questions to be answered without waiting for anything.
    pub(super) fn has_questions(&self) -> bool {
        self.links
            .iter()
            .any(|(&id, link)| self.can_answer(id, link))
    }

    /// Answers some of each link's questions.
    pub(super) fn answer_questions(&mut self) {
        let ready: Vec<_> = self
            .links
            .iter()
            .filter(|(id, link)| self.can_answer(**id, link))
            .map(|(id, _)| *id)
            .collect();
        for id in ready {
            let entitled = self.is_entitled(id);
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            let undecided = link.is_undecided();
            let rights = (entitled, undecided);
            link.questions
                .answer(&*self.exports, rights, &mut link.carrier);
            self.settle(id);
        }
    }

    fn can_answer(&self, id: LinkId, link: &Link) -> bool {
        let Some(next) = link.questions.waiting.front() else {
            return false;
        };
        let gives_back = matches!(next.what, ViewAsk::Forget { .. });
        !link.carrier.is_congested() && (gives_back || !link.is_undecided() || self.is_entitled(id))
    }

    /// A node sees a user's files only while it runs something of that user's (S3).
    fn is_entitled(&self, id: LinkId) -> bool {
        self.tasks.values().any(|task| task.link == Some(id))
    }
}
