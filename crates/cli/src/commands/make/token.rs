//! What the loop knows its descriptors by.

use wiglaf_link::Token;

/// Whose a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Signals,
    Listener,
    /// A shim's connection.
    Shim,
    /// The process of a shim that runs its command here.
    Local,
    /// A connection to the head.
    Head,
    /// The connection that asks about nodes.
    Nodes,
}

const KINDS: [Kind; 6] = [
    Kind::Signals,
    Kind::Listener,
    Kind::Shim,
    Kind::Local,
    Kind::Head,
    Kind::Nodes,
];
const KIND_BITS: u32 = 3;

pub(super) fn token(kind: Kind, number: u64) -> Token {
    let index = KINDS.iter().position(|one| *one == kind).unwrap_or(0);
    Token(number << KIND_BITS | index as u64)
}

pub(super) fn parts(token: Token) -> Option<(Kind, u64)> {
    let index = usize::try_from(token.0 & ((1 << KIND_BITS) - 1)).ok()?;
    Some((*KINDS.get(index)?, token.0 >> KIND_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_kind_and_number() {
        for kind in KINDS {
            assert_eq!(parts(token(kind, 77)), Some((kind, 77)));
        }
        assert_eq!(parts(Token(7)), None);
    }
}
