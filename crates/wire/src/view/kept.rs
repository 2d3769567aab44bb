//! What a node has kept of the head's files on a disk of its own. The deputy names such bytes by
//! their SHA-256 in place of sending them: whether they are still what the file holds is decided
//! where the file is, and a node that has lost them asks again.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Answer, Content, Gift, MAX_DATA_BYTES, PIECE_BYTES, Reply};

/// Pieces that are shorter are not worth a place on a disk.
pub const MIN_KEPT_BYTES: usize = 4 << 10;
/// Longest [`Filter`], in bytes.
pub const MAX_FILTER_BYTES: usize = 512 << 10;
/// Most pieces that a deputy adds to a filter: what it has sent, the node keeps.
pub const MAX_ADDED: usize = 16 << 10;
/// Most pieces that a node says at once that it has lost.
pub const MAX_LOST: usize = 1024;
/// Most pieces that are cut out of one message: a cut has some forty bytes, and what it stands for
/// may have 64 kB.
pub const MAX_CUTS: usize = 64;

const PIECE: usize = PIECE_BYTES as usize;

/// SHA-256 (FIPS 180-4) of a piece.
pub type PieceDigest = [u8; 32];

/// Which pieces a node has, about: a Bloom filter (B. Bloom, CACM 13/7, 1970). It may take a piece
/// for there that is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(#[serde(with = "crate::stream::whole")] Vec<u8>);

impl Filter {
    const MIN_BYTES: usize = 4 << 10;
    /// With 16 bits for each piece, fewer than one in 500 is taken for there wrongly.
    const BYTES_PER_PIECE: usize = 2;
    /// Bits that each piece sets.
    const PROBES: usize = 6;

    /// An empty one with room for so many pieces.
    pub fn with_room(pieces: usize) -> Filter {
        let bytes = pieces
            .saturating_mul(Self::BYTES_PER_PIECE)
            .clamp(Self::MIN_BYTES, MAX_FILTER_BYTES);
        Filter(vec![0; bytes])
    }

    /// Whoever has no pieces any more says this, and is sent everything.
    pub fn none() -> Filter {
        Filter(Vec::new())
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Whether it is one that can be worked with.
    pub fn is_valid(&self) -> bool {
        (Self::MIN_BYTES..=MAX_FILTER_BYTES).contains(&self.0.len())
    }

    /// Adds a piece.
    pub fn insert(&mut self, digest: &PieceDigest) {
        for (byte, bit) in self.places(digest) {
            self.0[byte] |= bit;
        }
    }

    /// Whether a piece was added, as far as can be told.
    pub fn contains(&self, digest: &PieceDigest) -> bool {
        !self.0.is_empty()
            && self
                .places(digest)
                .all(|(byte, bit)| self.0[byte] & bit != 0)
    }

    /// The digest's words are as good as so many hashes.
    fn places(&self, digest: &PieceDigest) -> impl Iterator<Item = (usize, u8)> + use<> {
        let bits = self.0.len() * 8;
        let words: Vec<usize> = digest
            .chunks_exact(4)
            .take(Self::PROBES)
            .map(|word| {
                word.iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
            })
            .collect();
        words
            .into_iter()
            .filter_map(move |word| word.checked_rem(bits))
            .map(|bit| (bit / 8, 1 << (bit % 8)))
    }
}

/// What is told with some of its bytes cut out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Short {
    /// An answer.
    Answer(Answer),
    /// Gifts.
    Given(Vec<Gift>),
}

/// A piece that was cut out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Which of the message's contents it was in, counted from 0.
    pub content: u32,
    /// Where it began in that.
    pub offset: u32,
    /// How long it was.
    pub length: u32,
    /// What it was.
    pub digest: PieceDigest,
}

/// The pieces of a file in bytes that were read of it: `asked` at `offset`, if that was so much,
/// or all that there is. What is part of a piece only does not count.
pub fn pieces_in(
    offset: u64,
    asked: Option<u32>,
    bytes: usize,
) -> impl Iterator<Item = Range<usize>> {
    let next = offset.checked_next_multiple_of(PIECE as u64);
    let until_next = next.and_then(|next| usize::try_from(next - offset).ok());
    let first = until_next.unwrap_or(usize::MAX);
    let is_to_the_end = asked.is_none_or(|asked| bytes < asked as usize);
    (first..bytes)
        .step_by(PIECE)
        .map(move |from| from..bytes.min(from + PIECE))
        .filter(move |piece| piece.len() == PIECE || is_to_the_end)
        .filter(|piece| piece.len() >= MIN_KEPT_BYTES)
}

impl Short {
    /// The contents of files that come with it, each with where it begins in its file and how much
    /// was asked for. `read` is that of an answer to [`Ask::Read`](super::Ask::Read).
    pub fn contents(&mut self, read: Option<(u64, u32)>) -> Vec<(&mut Vec<u8>, u64, Option<u32>)> {
        match self {
            Short::Answer(Answer {
                result: Ok(reply), ..
            }) => match reply {
                Reply::Data(Content(data)) => read
                    .map(|(offset, asked)| (data, offset, Some(asked)))
                    .into_iter()
                    .collect(),
                Reply::Opened {
                    content: Some(Content(data)),
                    ..
                } => vec![(data, 0, None)],
                _ => Vec::new(),
            },
            Short::Answer(_) => Vec::new(),
            Short::Given(gifts) => gifts
                .iter_mut()
                .filter_map(|gift| match gift {
                    Gift::Opened {
                        content: Some(Content(data)),
                        ..
                    }
                    | Gift::Piece {
                        data: Content(data),
                        ..
                    } => Some((data, 0, None)),
                    _ => None,
                })
                .collect(),
        }
    }

    /// Cuts out the pieces of which `has` says, by their digests, that the node has them, up to
    /// [`MAX_CUTS`].
    pub fn cut(
        &mut self,
        read: Option<(u64, u32)>,
        mut has: impl FnMut(&[u8]) -> Option<PieceDigest>,
    ) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (content, (data, offset, asked)) in (0..).zip(self.contents(read)) {
            let mut left = Vec::new();
            let mut kept_to = 0;
            for piece in pieces_in(offset, asked, data.len()) {
                if cuts.len() == MAX_CUTS {
                    break;
                }
                let Some(digest) = has(&data[piece.clone()]) else {
                    continue;
                };
                left.extend_from_slice(&data[kept_to..piece.start]);
                kept_to = piece.end;
                cuts.push(Cut {
                    content,
                    // No content is longer than MAX_DATA_BYTES.
                    offset: u32::try_from(piece.start).unwrap_or(u32::MAX),
                    length: u32::try_from(piece.len()).unwrap_or(u32::MAX),
                    digest,
                });
            }
            if kept_to > 0 {
                left.extend_from_slice(&data[kept_to..]);
                *data = left;
            }
        }
        cuts
    }

    /// Puts pieces back, in the order of their cuts. Contents of which one is not there any more
    /// are taken away, so that they are asked for again; returns their length in given pieces,
    /// which are settled by that.
    pub fn restore(&mut self, cuts: &[Cut], pieces: &[Option<Vec<u8>>]) -> u64 {
        // What has no number is no answer to a read: it is not looked at where it begins.
        const ANYWHERE: Option<(u64, u32)> = Some((0, 0));
        let mut lost = Vec::new();
        for (number, (data, ..)) in (0..).zip(self.contents(ANYWHERE)) {
            let of_this = (0..).zip(cuts).filter(|(_, cut)| cut.content == number);
            let of_this = of_this.map(|(at, cut): (usize, _)| (cut, pieces.get(at)));
            match put_back(data, of_this) {
                Some(Some(whole)) => *data = whole,
                Some(None) => {}
                None => lost.push(number),
            }
        }
        self.take_away(cuts, &lost)
    }

    fn take_away(&mut self, cuts: &[Cut], lost: &[u32]) -> u64 {
        if lost.is_empty() {
            return 0;
        }
        match self {
            Short::Answer(answer) => {
                match &mut answer.result {
                    Ok(Reply::Opened { content, .. }) => *content = None,
                    result => *result = Ok(Reply::Given),
                }
                0
            }
            Short::Given(gifts) => {
                let mut settled = 0;
                let mut number = 0..;
                gifts.retain_mut(|gift| match gift {
                    Gift::Opened { content, .. } if content.is_some() => {
                        if number.next().is_some_and(|number| lost.contains(&number)) {
                            *content = None;
                        }
                        true
                    }
                    Gift::Piece { data, .. } => {
                        let number = number.next();
                        let is_lost = number.is_some_and(|number| lost.contains(&number));
                        if is_lost {
                            let cut = cuts.iter().filter(|cut| Some(cut.content) == number);
                            let cut: u64 = cut.map(|cut| u64::from(cut.length)).sum();
                            settled += cut + data.0.len() as u64;
                        }
                        !is_lost
                    }
                    _ => true,
                });
                settled
            }
        }
    }
}

/// The whole content; `Some(None)` if nothing was cut out, `None` if something can't be put back.
fn put_back<'a>(
    left: &[u8],
    cuts: impl Iterator<Item = (&'a Cut, Option<&'a Option<Vec<u8>>>)>,
) -> Option<Option<Vec<u8>>> {
    let mut whole: Vec<u8> = Vec::new();
    let mut rest = left;
    let mut any = false;
    for (cut, piece) in cuts {
        any = true;
        let piece = piece?.as_ref()?;
        let between = usize::try_from(cut.offset).ok()?.checked_sub(whole.len())?;
        let (before, after) = rest.split_at_checked(between)?;
        whole.extend_from_slice(before);
        rest = after;
        let is_right = piece.len() == cut.length as usize
            && whole.len() + piece.len() <= MAX_DATA_BYTES as usize;
        if !is_right {
            return None;
        }
        whole.extend_from_slice(piece);
    }
    whole.extend_from_slice(rest);
    Some(any.then_some(whole))
}

#[cfg(test)]
mod tests {
    use super::super::{Attributes, FileId, HandleId};
    use super::*;
    use proptest::prelude::*;

    fn attributes() -> Attributes {
        Attributes {
            file: FileId(7),
            ino: 7,
            device: 1,
            mode: 0o100_644,
            links: 1,
            uid: 0,
            gid: 0,
            size: 5000,
            blocks: 16,
            block_size: 4096,
            rdev: 0,
            times: [(0, 0); 3],
            watched: true,
            xattrs: false,
        }
    }

    fn name(piece: &[u8]) -> PieceDigest {
        let mut digest = [0; 32];
        for (index, byte) in piece.iter().enumerate() {
            digest[index % 32] = u8::rotate_left(digest[index % 32] ^ byte, 1);
        }
        digest
    }

    fn data(length: usize, seed: u8) -> Vec<u8> {
        let byte = |at: usize| at.to_le_bytes()[0].wrapping_mul(seed) ^ at.to_le_bytes()[1];
        (0..length).map(byte).collect()
    }

    #[test]
    fn only_whole_pieces_count() {
        let found = |offset, asked, bytes| {
            let found = pieces_in(offset, asked, bytes);
            found
                .map(|piece| (piece.start, piece.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(0, None, 5000), [(0, 5000)]);
        assert_eq!(found(0, None, 4000), []);
        assert_eq!(found(0, Some(5000), 5000), [], "there may be more of it");
        assert_eq!(found(0, Some(8192), 5000), [(0, 5000)]);
        assert_eq!(
            found(0, Some(1 << 17), 1 << 17),
            [(0, 65536), (65536, 131_072)]
        );
        assert_eq!(found(4096, Some(1 << 17), 1 << 17), [(61440, 126_976)]);
        assert_eq!(found(65535, Some(3), 3), []);
        assert_eq!(found(u64::MAX - 3, Some(3), 3), []);
    }

    #[test]
    fn a_filter_knows_what_it_was_told() {
        let mut filter = Filter::with_room(3000);
        let digest = |number: u32| {
            let mut digest = [0; 32];
            let mut state = number.wrapping_mul(2_654_435_761);
            for byte in &mut digest {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = state.to_be_bytes()[0];
            }
            digest
        };
        (0..3000).for_each(|number| filter.insert(&digest(number)));
        assert!((0..3000).all(|number| filter.contains(&digest(number))));
        let wrong = (3000..13000).filter(|number| filter.contains(&digest(*number)));
        assert!(wrong.count() < 50);
        assert!(filter.is_valid());
        assert!(!Filter(vec![1; 7]).is_valid());
        assert!(!Filter::none().is_valid());
        assert!(!Filter(Vec::new()).contains(&digest(1)));
        assert!(Filter::with_room(usize::MAX).is_valid());
    }

    fn piece(number: u32, bytes: Vec<u8>) -> Gift {
        Gift::Piece {
            file: FileId(7),
            piece: number,
            data: Content(bytes),
        }
    }

    #[test]
    fn what_is_lost_is_asked_for_again() {
        let answer = |reply| {
            Short::Answer(Answer {
                id: 3,
                result: Ok(reply),
            })
        };
        let whole = answer(Reply::Data(Content(data(250_000, 3))));
        let mut short = whole.clone();
        let cuts = short.cut(Some((0, 1 << 18)), |piece| Some(name(piece)));
        assert_eq!(cuts.len(), 4);
        assert_eq!(short, answer(Reply::Data(Content(Vec::new()))));
        let mut pieces = vec![None; 4];
        let mut lost = short.clone();
        assert_eq!(lost.restore(&cuts, &pieces), 0);
        assert_eq!(lost, answer(Reply::Given));
        pieces[0] = Some(vec![0; 7]);
        let mut lost = short.clone();
        lost.restore(&cuts, &pieces);
        assert_eq!(lost, answer(Reply::Given), "a wrong length");

        let gifts = vec![
            piece(0, data(65536, 3)),
            Gift::Link {
                file: FileId(8),
                text: Content(data(5000, 1)),
            },
            piece(1, data(65536, 4)),
        ];
        let mut short = Short::Given(gifts.clone());
        let cuts = short.cut(None, |piece| Some(name(piece)));
        assert_eq!(cuts.len(), 2);
        let pieces = [None, Some(data(65536, 4))];
        assert_eq!(short.restore(&cuts, &pieces), 65536);
        assert_eq!(short, Short::Given(gifts[1..].to_vec()));

        let opened = Gift::Opened {
            handle: HandleId(1),
            attributes: attributes(),
            content: Some(Content(data(5000, 1))),
        };
        let mut short = Short::Given(vec![opened]);
        let cuts = short.cut(None, |piece| Some(name(piece)));
        assert_eq!(short.restore(&cuts, &[None]), 0);
        let Short::Given(gifts) = &short else {
            panic!()
        };
        assert!(matches!(gifts[..], [Gift::Opened { content: None, .. }]));
    }

    #[test]
    fn no_message_names_more_than_a_node_fetches() {
        let count = MAX_CUTS + 3;
        let gifts = (0u8..)
            .take(count)
            .map(|n| piece(n.into(), data(5000, n | 1)));
        let whole = Short::Given(gifts.collect());
        let mut short = whole.clone();
        let mut kept = Vec::new();
        let cuts = short.cut(None, |piece| {
            kept.push(Some(piece.to_vec()));
            Some(name(piece))
        });
        assert_eq!(cuts.len(), MAX_CUTS);
        assert_eq!(short.restore(&cuts, &kept), 0);
        assert_eq!(short, whole);
    }

    proptest! {
        #[test]
        fn what_is_cut_out_is_put_back(
            offset in 0u64..300_000,
            length in 0usize..400_000,
            beyond in 0u32..2,
            known in any::<u8>(),
        ) {
            let whole = Short::Answer(Answer {
                id: 3,
                result: Ok(Reply::Data(Content(data(length, 5)))),
            });
            let asked = u32::try_from(length).unwrap() + beyond;
            let mut short = whole.clone();
            let mut kept = Vec::new();
            let mut number = 0;
            let cuts = short.cut(Some((offset, asked)), |piece| {
                number += 1;
                (known >> (number % 8) & 1 == 1).then(|| {
                    kept.push(Some(piece.to_vec()));
                    name(piece)
                })
            });
            prop_assert_eq!(short.restore(&cuts, &kept), 0);
            prop_assert_eq!(short, whole);
        }

        #[test]
        fn no_cut_makes_it_panic(
            cuts in prop::collection::vec((0u32..3, any::<u32>(), any::<u32>()), 0..5),
            lengths in prop::collection::vec(prop::option::of(0usize..9000), 0..5),
        ) {
            let cuts: Vec<_> = cuts
                .into_iter()
                .map(|(content, offset, length)| Cut {
                    content,
                    offset: offset % 9000,
                    length: length % 9000,
                    digest: [0; 32],
                })
                .collect();
            let pieces: Vec<_> = lengths
                .into_iter()
                .map(|length| length.map(|length| vec![0; length]))
                .collect();
            let mut short = Short::Given(vec![piece(0, data(9, 1)), piece(1, data(5000, 2))]);
            let _settled = short.restore(&cuts, &pieces);
        }
    }
}
