//! What a program writes, of which only so much is kept.

use std::collections::VecDeque;

/// What is kept of the beginning, and as much of the end.
const KEPT_BYTES: usize = 1_000;

/// A program's output: its beginning and its end, however much there is in between.
#[derive(Debug, Default)]
pub(super) struct Said {
    first: Vec<u8>,
    last: VecDeque<u8>,
    left_out: u64,
}

impl Said {
    /// It has written this, too.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let room = KEPT_BYTES - self.first.len();
        let (first, rest) = bytes.split_at(bytes.len().min(room));
        self.first.extend_from_slice(first);
        self.last.extend(rest);
        let too_many = self.last.len().saturating_sub(KEPT_BYTES);
        self.last.drain(..too_many);
        self.left_out += too_many as u64;
    }

    /// It, fit for a terminal and a log.
    pub(super) fn text(&self) -> String {
        let mut text = self.first.clone();
        if self.left_out > 0 {
            let note = format!("\n[{} bytes are left out here]\n", self.left_out);
            text.extend_from_slice(note.as_bytes());
        }
        text.extend(&self.last);
        let text = String::from_utf8_lossy(&text);
        let shown = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        text.trim().chars().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_kept_and_what_is_not_is_said() {
        let mut said = Said::default();
        said.take(b"\nfine\x1b[1m\n");
        assert_eq!(said.text(), "fine [1m");

        // In pieces of any size it comes to the same.
        let all: Vec<u8> = (0..5_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
        let [mut at_once, mut in_pieces] = [Said::default(), Said::default()];
        at_once.take(&all);
        all.chunks(7).for_each(|piece| in_pieces.take(piece));
        assert_eq!(at_once.text(), in_pieces.text());
        let text = at_once.text();
        let (first, last) = text
            .split_once("\n[3000 bytes are left out here]\n")
            .expect("what is left out is said");
        assert_eq!(first.as_bytes(), &all[..KEPT_BYTES]);
        assert_eq!(last.as_bytes(), &all[4_000..]);

        // Nothing is, as long as there is room.
        let mut said = Said::default();
        said.take(&all[..2 * KEPT_BYTES]);
        assert_eq!(said.text().as_bytes(), &all[..2 * KEPT_BYTES]);
    }

    #[test]
    fn no_more_is_held_however_much_comes() {
        let mut said = Said::default();
        for _ in 0..1_000 {
            said.take(&[b'x'; 4_096]);
        }
        assert_eq!(
            (said.first.len(), said.last.len()),
            (KEPT_BYTES, KEPT_BYTES)
        );
        assert!(said.last.capacity() < 16 * KEPT_BYTES);
    }
}
