//! The private roots of a node's tasks: lent to one task after the other while each leaves them
//! clean, and emptied by a thread of its own where one does not.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};
use wiglaf_linux::signal::{SignalSet, block_signals};
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::launch::{Credential, LaunchSpec};

use super::leavings;
use super::spawner::UtsTag;
use crate::root::{OwnDirectories, PrivateRoot, RootError, Shared};

/// Private roots that wait for tasks. Each has a mount namespace, which is some 10 kB.
const MAX_IDLE: usize = 64;
/// The stack of the thread that empties one: directories may be deep.
const STACK_BYTES: usize = 8 << 20;

/// A private root, and for whom it is of use.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) root: PrivateRoot,
    deputy: DeputyId,
    /// Which of the deputy's views it stands in.
    generation: u64,
    shared: Shared,
    borrower: Option<Borrower>,
}

/// Whose leavings these are.
#[derive(Debug)]
struct Borrower {
    credential: Credential,
    /// What is made in the task's name may have to be undone.
    undo: bool,
}

/// Those that nobody has. In the spawner's thread.
#[derive(Debug)]
pub(super) struct Pool {
    rootless: bool,
    /// Latest last.
    idle: Vec<Lent>,
    generations: HashMap<DeputyId, u64>,
    made: u64,
    prepared: bool,
    /// There is no way to have any on this node.
    unable: bool,
}

/// Why a task has no private root.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPrivate {
    /// As was said before.
    #[error("this node has no private roots")]
    Known,
    /// It can't be made.
    #[error("/tmp is the head's for a command that could have its own: {0}")]
    Root(#[source] RootError),
}

impl Pool {
    pub(super) fn new(rootless: bool) -> Pool {
        Pool {
            rootless,
            idle: Vec::new(),
            generations: HashMap::new(),
            made: 0,
            prepared: false,
            unable: false,
        }
    }

    /// One for a task of this deputy's that works in `cwd`
    pub(super) fn lend(
        &mut self,
        deputy: DeputyId,
        view: &Path,
        own: &OwnDirectories,
        (credential, spec): (&Credential, &LaunchSpec),
    ) -> Result<Lent, NoPrivate> {
        if self.unable {
            return Err(NoPrivate::Known);
        }
        let shared = Shared::by(&spec.cwd);
        let borrower = || {
            Some(Borrower {
                credential: credential.clone(),
                undo: spec.undo,
            })
        };
        let fits = |idle: &Lent| idle.deputy == deputy && idle.shared == shared;
        while let Some(place) = self.idle.iter().rposition(fits) {
            let mut lent = self.idle.remove(place);
            if lent.root.refresh().is_ok() {
                lent.borrower = borrower();
                return Ok(lent);
            }
            lent.root.discard();
        }
        let made = self.make(view, own, &shared);
        let root = made.map_err(|error| {
            // Another directory to work in changes nothing about that.
            self.unable = error.is_about_overlays();
            NoPrivate::Root(error)
        })?;
        Ok(Lent {
            root,
            deputy,
            generation: self.generation(deputy),
            shared,
            borrower: borrower(),
        })
    }

    fn make(
        &mut self,
        view: &Path,
        own: &OwnDirectories,
        shared: &Shared,
    ) -> Result<PrivateRoot, RootError> {
        if !self.prepared {
            PrivateRoot::prepare()?;
            self.prepared = true;
        }
        self.made += 1;
        PrivateRoot::make(view, own, shared, self.made, self.rootless)
    }

    fn generation(&self, deputy: DeputyId) -> u64 {
        self.generations.get(&deputy).copied().unwrap_or_default()
    }

    /// A task has left it clean.
    pub(super) fn take_back(&mut self, lent: Lent) {
        if lent.generation != self.generation(lent.deputy) {
            return lent.root.discard();
        }
        self.idle.push(lent);
        if self.idle.len() > MAX_IDLE {
            self.idle.remove(0).root.discard();
        }
    }

    /// The deputy's view is gone.
    pub(super) fn forget(&mut self, deputy: DeputyId) {
        *self.generations.entry(deputy).or_default() += 1;
        for gone in self.idle.extract_if(.., |idle| idle.deputy == deputy) {
            gone.root.discard();
        }
    }
}

/// The tasks whose making is to be undone if the cluster fails them, by the tags of their
/// processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Makers(Arc<Mutex<HashMap<u64, TaskId>>>);

impl Makers {
    /// A task has this tag from now on.
    pub(super) fn add(&self, tag: UtsTag, task: TaskId) {
        self.lock().insert(tag.number(), task);
    }

    /// The task is over.
    pub(super) fn remove(&self, task: TaskId) {
        self.lock().retain(|_, of| *of != task);
    }

    /// Of which of them a process is.
    pub(super) fn find(&self, pid: u32) -> Option<TaskId> {
        if self.lock().is_empty() {
            return None;
        }
        let tag = UtsTag::of(i32::try_from(pid).ok()?).ok()?;
        self.lock().get(&tag.number()).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, TaskId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task whose private root has been emptied, and what could not be brought to the head.
pub(super) type Emptied = (TaskId, Option<String>);

/// The private roots that tasks have. In the agent's loop.
#[derive(Debug)]
pub(super) struct Privates {
    rootless: bool,
    lent: HashMap<TaskId, Lent>,
    emptied: (Sender<Emptied>, Receiver<Emptied>),
    bell: OwnedFd,
    /// Those that are being emptied.
    under_way: HashSet<TaskId>,
}

/// What becomes of a private root at its task's end.
#[derive(Debug)]
pub(super) enum End {
    /// There is none.
    None,
    /// It is for the next one.
    Clean(Box<Lent>),
    /// The bell rings when it is empty.
    Emptying,
}

impl Privates {
    pub(super) fn new(rootless: bool) -> io::Result<Privates> {
        Ok(Privates {
            rootless,
            lent: HashMap::new(),
            emptied: channel(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            under_way: HashSet::new(),
        })
    }

    /// Readable when [`Privates::emptied`] has something.
    pub(super) fn bell(&self) -> impl AsFd {
        &self.bell
    }

    pub(super) fn has(&mut self, task: TaskId, lent: Lent) {
        self.lent.insert(task, lent);
    }

    /// All processes of a task are gone.
    pub(super) fn end(&mut self, task: TaskId, makers: &Makers) -> End {
        let Some(mut lent) = self.lent.remove(&task) else {
            return End::None;
        };
        if lent.root.is_clean() {
            return End::Clean(Box::new(lent));
        }
        let Some(Borrower { credential, undo }) = lent.borrower.take() else {
            return End::None;
        };
        let rootless = self.rootless;
        let sender = self.emptied.0.clone();
        let makers = makers.clone();
        let Ok(bell) = rustix::io::fcntl_dupfd_cloexec(&self.bell, 0) else {
            return End::None;
        };
        let empty = move || {
            block_signals(SignalSet::ALL);
            let _ = unshare(NamespaceFlags::FS);
            rustix::process::umask(rustix::fs::Mode::empty());
            if undo && unshare(NamespaceFlags::NEWUTS).is_ok() {
                let _ = UtsTag::own().map(|tag| makers.add(tag, task));
            }
            let failed = leavings::bring(&lent.root, &credential, rootless).err();
            let _ = sender.send((task, failed.map(|error| error.to_string())));
            // Can only fail when nobody listens any more.
            let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
            lent.root.discard();
        };
        let name = thread::Builder::new().name("leavings".into());
        match name.stack_size(STACK_BYTES).spawn(empty) {
            Ok(_) => {
                self.under_way.insert(task);
                End::Emptying
            }
            Err(error) => {
                let reason = format!("what it had left in /tmp is lost: {error}");
                let _ = self.emptied.0.send((task, Some(reason)));
                let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
                self.under_way.insert(task);
                End::Emptying
            }
        }
    }

    /// Those that have been emptied, of tasks that wait for it.
    pub(super) fn emptied(&mut self) -> Vec<Emptied> {
        // An empty counter is no error: they may have been taken already.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let done: Vec<_> = self.emptied.1.try_iter().collect();
        let under_way = &mut self.under_way;
        done.into_iter()
            .filter(|(task, _)| under_way.remove(task))
            .collect()
    }

    /// A task is over, whatever has become of its root.
    pub(super) fn close(&mut self, task: TaskId) {
        self.under_way.remove(&task);
        if let Some(lent) = self.lent.remove(&task) {
            discard(lent.root);
        }
    }
}

/// Not in the loop, as it takes its time.
fn discard(root: PrivateRoot) {
    // Without a thread the closure is dropped, and the memory goes with the node.
    let _ = thread::Builder::new()
        .name("leavings".into())
        .spawn(move || root.discard());
}
