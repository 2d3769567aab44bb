//! A medium that a node fetches, to write it to a disk of its own.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::{COPY_BYTES, Medium, MediumError, MediumTools, failed};
use crate::store::{Images, Unfinished};

/// The boot service knows it by this name.
const FILE: &str = "medium";

/// A medium among the images, which the boot service gives to nodes as long as this lives.
#[derive(Debug)]
pub struct Offered {
    place: Unfinished,
    size: u64,
    sha256: [u8; 32],
}

impl Offered {
    /// What the boot service knows it by.
    pub fn number(&self) -> u32 {
        std::process::id()
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of what it holds.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The directory that has nothing else in it: for whoever must remove it without this.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
}

impl Medium<'_> {
    /// Puts it where nodes can fetch it.
    ///
    /// # Errors
    /// As [`Medium::write`]; or who asks may not write among the images.
    pub fn offer(&self, images: &Images, tools: &MediumTools) -> Result<Offered, MediumError> {
        let place = images.begin_medium()?;
        let path = place.file(FILE);
        let size = self.write(images, tools, &path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(failed(&path))?;
        let mut file = File::open(&path).map_err(failed(&path))?;
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = file.read(&mut buffer).map_err(failed(&path))?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
        }
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(hash.finish().as_ref());
        Ok(Offered {
            place,
            size,
            sha256,
        })
    }
}
