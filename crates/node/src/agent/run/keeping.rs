//! What the node keeps of the head's files, in the agent's loop: where, once there is a disk for
//! it, and sealed with which key, once the head has told.

use std::fmt::Display;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use wiglaf_link::Interest;
use wiglaf_wire::agent::KeepingKey;

use super::super::kept::{DIRECTORY, Kept, SharedStore};
use super::{Agent, AgentError, KEPT, Shown, log};

/// What is needed for it.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    pub(super) store: SharedStore,
    directory: Option<PathBuf>,
    /// What that is called outside.
    given: Option<Place>,
    key: Option<KeepingKey>,
    /// It is open, or being opened.
    is_open: bool,
}

impl Keeping {
    /// Keeps in a directory of its own on scratch, or in one that was given.
    pub(super) fn new(store: SharedStore, scratch: Option<&Path>, given: Option<Place>) -> Keeping {
        let place = given.as_ref().map(Place::path);
        let place = place.or(scratch.map(Path::to_owned));
        Keeping {
            store,
            directory: place.map(|place| place.join(DIRECTORY)),
            given,
            ..Keeping::default()
        }
    }
}

/// A directory that is given by its name outside: the agent mounts its own over some of those.
#[derive(Debug)]
pub(super) struct Place {
    name: PathBuf,
    directory: OwnedFd,
}

impl Place {
    pub(super) fn open(name: PathBuf) -> Result<Place, AgentError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&name, flags, Mode::empty()) {
            Ok(directory) => Ok(Place { name, directory }),
            Err(errno) => Err(AgentError::Keep { name, errno }),
        }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    /// A text in which it has its name.
    fn named(&self, text: &str) -> String {
        let path = self.path().display().to_string();
        text.replace(&path, &self.name.display().to_string())
    }
}

impl Agent {
    pub(super) fn hear_key(&mut self, key: KeepingKey) {
        if self.keeping.key.replace(key) != Some(key) {
            self.keeping.is_open = false;
        }
        self.keep();
    }

    /// There is a new disk for it.
    pub(super) fn keep_on(&mut self, place: &Path) {
        self.keeping.directory = Some(place.join(DIRECTORY));
        self.keeping.is_open = false;
        self.keep();
    }

    /// Begins to keep, if everything is there that is needed. Without it a node is slower, and no
    /// worse.
    pub(super) fn keep(&mut self) {
        let (Some(directory), Some(key)) = (self.keeping.directory.clone(), self.keeping.key)
        else {
            return;
        };
        if self.keeping.is_open || self.spawner.is_none() {
            return;
        }
        // The thread must not have a ghost's number.
        self.steer();
        let Shown::Views(views) = &mut self.files else {
            return;
        };
        if views.kept().is_none() {
            let started = Kept::start(self.keeping.store.clone()).and_then(|kept| {
                self.poll.add(kept.bell(), KEPT, Interest::Read)?;
                Ok(kept)
            });
            match started {
                Ok(kept) => views.keep_with(kept),
                Err(error) => return self.not_kept(&error),
            }
        }
        if let Some(kept) = views.kept() {
            kept.open(&directory, key);
            self.keeping.is_open = true;
        }
    }

    fn not_kept(&self, why: &dyn Display) {
        let why = why.to_string();
        let given = self.keeping.given.as_ref();
        let why = given.map_or(why.clone(), |given| given.named(&why));
        log(
            &self.name,
            &format_args!("what it reads of the head's files is not kept: {why}"),
        );
    }

    pub(super) fn hear_kept(&mut self) {
        if let Shown::Views(views) = &mut self.files
            && let Some(Err(error)) = views.hear_kept()
        {
            self.not_kept(&error);
        }
    }
}
