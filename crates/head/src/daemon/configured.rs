//! The configuration as it is now. Most of it is read when the head starts; `[power]`, `[[disk]]`
//! and `[boot]` may be changed while it runs.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use super::{Daemon, wall_clock_s};
use crate::config::Config;
use crate::placement::Refusal;

/// A file that was just changed may be one that somebody still writes.
const SETTLE_S: i64 = 1;

/// What a file's contents are known by: others have another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(about: &Metadata) -> Stamp {
        Stamp {
            inode: about.ino(),
            bytes: about.len(),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }

    /// Whether it may be still written. A clock that was set back does not keep it from being read
    /// for ever.
    fn is_fresh(&self, now_s: i64) -> bool {
        (0..=SETTLE_S).contains(&now_s.saturating_sub(self.changed.0))
    }
}

impl Daemon {
    /// The file as it is now, for what is asked for at once.
    pub(super) fn configured(&self) -> Result<Config, Refusal> {
        Config::load(&self.layout.config_file())
            .map_err(|error| Refusal::new(error.to_string(), "put that right, and try again"))
    }

    /// Takes in what `[boot]` says now, if the file has changed. Machines go on booting whatever
    /// somebody does to it: with an error in it, or without it, what was said before stays.
    pub(super) fn heed_configuration(&mut self) {
        let path = self.layout.config_file();
        let stamp = || path.metadata().ok().map(|about| Stamp::of(&about));
        let Some(found) = stamp() else { return };
        if self.boot.configured == Some(found) || found.is_fresh(wall_clock_s()) {
            return;
        }
        let loaded = Config::load(&path);
        if stamp() != Some(found) {
            // Somebody is at it: what was read may be a part.
            return;
        }
        self.boot.configured = Some(found);
        let boot = match loaded {
            Ok(config) => config.boot,
            Err(error) => {
                let error = error.to_string();
                let error = error.trim_end();
                self.boot.problem(format!(
                    "{error}\nUntil that is put right, [boot] is as it was before"
                ));
                return;
            }
        };
        if boot == self.config.boot {
            return;
        }
        super::log(&format!("[boot] of {} has changed", path.display()));
        self.boot.machines.govern(boot.approve, boot.adopt.clone());
        self.config.boot = boot;
        if self.boot.machines.served().next().is_some() {
            self.arrange_boot();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_is_another_and_nobody_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wiglaf.toml");
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Stamp::of(&path.metadata().unwrap())
        };
        let first = write("");
        assert_eq!(first, Stamp::of(&path.metadata().unwrap()));
        assert_ne!(first, write("lease_ms = 5000\n"));
        let written_s = first.changed.0;
        assert!(first.is_fresh(written_s) && first.is_fresh(written_s + SETTLE_S));
        assert!(!first.is_fresh(written_s + SETTLE_S + 1));
        assert!(!first.is_fresh(written_s - 1));
    }
}
