//! Memory for bulk data, used again rather than made again.

/// Bytes of one read from a pipe or file: large enough that system calls don't count, small
/// enough to stay in a core's cache until it is encrypted.
pub const PIECE_BYTES: usize = 128 << 10;
/// Most pieces that are kept for later.
const KEPT_PIECES: usize = 8;

/// Empty pieces.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Vec<Vec<u8>>,
}

impl Buffers {
    /// An empty piece with room for [`PIECE_BYTES`].
    pub fn take(&mut self) -> Vec<u8> {
        self.spare
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES))
    }

    /// Gives a piece back.
    pub fn give_back(&mut self, mut piece: Vec<u8>) {
        if piece.capacity() == PIECE_BYTES && self.spare.len() < KEPT_PIECES {
            piece.clear();
            self.spare.push(piece);
        }
    }

    /// Frees all: nothing flows any more.
    pub fn clear(&mut self) {
        self.spare = Vec::new();
    }
}
