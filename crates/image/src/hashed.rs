//! A file that is hashed as it is written.

use std::fs::File as Disk;
use std::io::{self, Write};

use ring::digest::{Context, SHA256};

use crate::store::File;

pub(crate) const COPY_BYTES: usize = 256 << 10;

pub(crate) struct Hashed {
    file: Disk,
    hash: Context,
    size: u64,
}

impl Hashed {
    pub(crate) fn new(file: Disk) -> Hashed {
        Hashed {
            file,
            hash: Context::new(&SHA256),
            size: 0,
        }
    }

    /// Bytes so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Of the bytes so far.
    pub(crate) fn hash(&self) -> &Context {
        &self.hash
    }

    pub(crate) fn done(self) -> File {
        File {
            size: self.size,
            sha256: hex(self.hash.finish().as_ref()),
        }
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
