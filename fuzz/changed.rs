//! A fuzz target's corpus and changed copies of it, for tests that run on every toolchain.

use std::path::PathBuf;

/// Changed copies of each input.
const COPIES: u64 = 400;
/// Changes of one copy.
const MAX_CHANGES: u64 = 6;

/// Each input of a target, and copies of it.
pub(crate) fn run(target: &str, read: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let entries = std::fs::read_dir(&folder).expect("a corpus");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("its entries").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 3, "{} is not whole", folder.display());
    for path in paths {
        let input = std::fs::read(&path).expect("an input");
        read(&input);
        for seed in 0..COPIES {
            // What failed can be had again: the test's output names the file and the seed.
            let changed = changed(&input, seed);
            let outcome = std::panic::catch_unwind(|| read(&changed));
            assert!(
                outcome.is_ok(),
                "{}, seed {seed}: {changed:02x?}",
                path.display()
            );
        }
    }
}

fn changed(input: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(MAX_CHANGES) {
        let at = random.place(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.byte()),
            2 => bytes.extend_from_within(at..),
            3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            4 if at < bytes.len() => {
                bytes[at] = [0, 1, 127, 128, 254, 255][random.place(5)];
            }
            _ if at < bytes.len() => bytes[at] = random.byte(),
            _ => {}
        }
    }
    bytes
}

/// Xorshift: the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// Of a byte, or the end.
    fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64 + 1)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or(0)
    }
}
