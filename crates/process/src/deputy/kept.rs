//! What a node has kept of the head's files, as far as its link tells: such pieces are named, not
//! sent. They are read and hashed here all the same, so what is named is what the file holds now.

use std::collections::HashSet;

use ring::digest::{SHA256, digest};
use wiglaf_wire::stream::Relay;
use wiglaf_wire::view::{Filter, MAX_ADDED, MAX_LOST, PieceDigest, Short};

/// More that the filter says and the node has not shows that it is of no use.
const MAX_ALL_LOST: usize = 1 << 14;

/// What one node has kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    filter: Option<Filter>,
    /// Pieces that were added: the node keeps what it is sent.
    added: usize,
    /// Pieces that the filter says and the node has not. They are not named any more, though the
    /// node may keep them now: an answer of which one is missing is asked for again as a whole, and
    /// would be for ever if another was missing then.
    lost: HashSet<PieceDigest>,
}

impl Kept {
    /// The node has these, or nothing at all.
    pub(super) fn learn(&mut self, filter: Filter) {
        *self = Kept::default();
        self.filter = filter.is_valid().then_some(filter);
    }

    /// The node does not have these.
    pub(super) fn unlearn(&mut self, lost: Vec<PieceDigest>) {
        if self.filter.is_some() {
            self.lost.extend(lost.into_iter().take(MAX_LOST));
        }
        if self.lost.len() > MAX_ALL_LOST {
            *self = Kept::default();
        }
    }

    /// The message that says this, with what the node has left out. `read` is where the question's
    /// part of the file is, if it was one for a part.
    pub(super) fn message(&mut self, mut told: Short, read: Option<(u64, u32)>) -> Relay {
        let mut cuts = Vec::new();
        if let Some(filter) = &mut self.filter {
            // Not before it has left: what is in one message twice is not there the second time.
            let mut sent = Vec::new();
            cuts = told.cut(read, |piece| {
                let digest = name(piece);
                if self.lost.contains(&digest) {
                    return None;
                }
                if filter.contains(&digest) {
                    return Some(digest);
                }
                sent.push(digest);
                None
            });
            for digest in sent.iter().take(MAX_ADDED - self.added) {
                self.added += 1;
                filter.insert(digest);
            }
        }
        if !cuts.is_empty() {
            return Relay::Short(told, cuts);
        }
        match told {
            Short::Answer(answer) => Relay::Answer(answer),
            Short::Given(gifts) => Relay::Given(gifts),
        }
    }
}

fn name(piece: &[u8]) -> PieceDigest {
    let mut name = PieceDigest::default();
    name.copy_from_slice(digest(&SHA256, piece).as_ref());
    name
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::view::{Answer, Content, Reply};

    use super::*;

    fn read(kept: &mut Kept, byte: u8) -> Relay {
        let answer = Answer {
            id: 1,
            result: Ok(Reply::Data(Content(vec![byte; 1 << 16]))),
        };
        kept.message(Short::Answer(answer), Some((0, 1 << 16)))
    }

    #[test]
    fn what_a_node_has_is_named() {
        let mut kept = Kept::default();
        assert!(matches!(read(&mut kept, 1), Relay::Answer(_)));
        assert!(
            matches!(read(&mut kept, 1), Relay::Answer(_)),
            "nothing is kept there"
        );
        let mut filter = Filter::with_room(1);
        filter.insert(&name(&[1; 1 << 16]));
        kept.learn(filter);
        let Relay::Short(_, cuts) = read(&mut kept, 1) else {
            panic!("it has that");
        };
        assert_eq!(cuts[0].digest, name(&[1; 1 << 16]));
        assert!(matches!(read(&mut kept, 2), Relay::Answer(_)));
        assert!(
            matches!(read(&mut kept, 2), Relay::Short(..)),
            "it was sent"
        );
    }

    #[test]
    fn what_is_twice_in_one_answer_is_sent_twice() {
        let mut kept = Kept::default();
        kept.learn(Filter::with_room(1));
        let answer = Answer {
            id: 1,
            result: Ok(Reply::Data(Content(vec![0; 3 << 16]))),
        };
        let told = Short::Answer(answer.clone());
        let message = kept.message(told, Some((0, 3 << 16)));
        assert_eq!(message, Relay::Answer(answer));
        assert!(matches!(read(&mut kept, 0), Relay::Short(..)));
    }

    #[test]
    fn what_a_node_has_lost_is_sent() {
        let mut kept = Kept::default();
        let mut filter = Filter::with_room(1);
        filter.insert(&name(&[1; 1 << 16]));
        kept.learn(filter);
        kept.unlearn(vec![name(&[1; 1 << 16])]);
        assert!(matches!(read(&mut kept, 1), Relay::Answer(_)));
        assert!(matches!(read(&mut kept, 1), Relay::Answer(_)));
        let others = (0..=MAX_ALL_LOST).map(|number| name(&number.to_ne_bytes()));
        let others: Vec<_> = others.collect();
        for some in others.chunks(MAX_LOST) {
            kept.unlearn(some.to_vec());
        }
        assert!(matches!(read(&mut kept, 2), Relay::Answer(_)));
        assert!(
            matches!(read(&mut kept, 2), Relay::Answer(_)),
            "it was given up"
        );
    }
}
