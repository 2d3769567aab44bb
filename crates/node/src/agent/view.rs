//! The node's view: the kernel's questions come from its threads, and go by the agent's loop to
//! the deputy of whoever asks.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use wiglaf_link::Poll;
use wiglaf_process::relay::node::NodeRelay;
use wiglaf_view::{Answer, Ask, View, ViewError, ViewMount};
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::stream::{ViewAnswer, ViewAsk, ViewQuestion};

use crate::root::{OWN_DIRECTORIES, RootError, TaskRoot};

/// Where the view is mounted before tasks' roots are made of it: a directory that all machines
/// have. Only this process's mounts show it.
const MOUNT_POINT: &str = "/tmp";
/// Questions that are passed on before others have their turn.
const QUESTIONS_PER_TURN: usize = 256;

/// Why a node has no view.
#[derive(Debug, thiserror::Error)]
pub enum NodeViewError {
    /// It can't be mounted.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Nothing can be put around it.
    #[error(transparent)]
    Root(#[from] RootError),
    /// There is no way to the loop.
    #[error("can't make an event counter for the view: {0}")]
    Bell(Errno),
}

/// The view, and who may look at it.
pub(super) struct NodeView {
    _mount: ViewMount,
    view: View,
    asked: Receiver<Asked>,
    bell: OwnedFd,
    seers: Seers,
    tasks: HashMap<TaskId, (u32, DeputyId)>,
    /// Whose numbers the view has for a user. A user may have several deputies, with different
    /// groups: the first whose task was here answers until it has none.
    deputies: HashMap<u32, DeputyId>,
    waiting: HashMap<u64, (DeputyId, Answer)>,
    next: u64,
}

struct Asked {
    uid: u32,
    what: ViewAsk,
    reply: Answer,
}

/// The users with tasks here. The view's threads refuse all others by themselves: root's looking
/// around while the mounts are made must not wait for the loop that makes them.
type Seers = Arc<Mutex<HashSet<u32>>>;

struct Asker {
    questions: Sender<Asked>,
    bell: OwnedFd,
    seers: Seers,
}

impl Ask for Asker {
    fn ask(&self, uid: u32, what: ViewAsk, reply: Answer) {
        let gives_back = matches!(what, ViewAsk::Forget { .. });
        if !gives_back && !locked(&self.seers).contains(&uid) {
            return reply(Err(Errno::ACCESS.raw_os_error()));
        }
        // A question to a loop that has ended is dropped, which answers it.
        if self.questions.send(Asked { uid, what, reply }).is_ok() {
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }
}

impl NodeView {
    /// Mounts the view where only this process sees it, and makes tasks' root around it.
    pub(super) fn mount() -> Result<(NodeView, TaskRoot), NodeViewError> {
        let (questions, asked) = channel();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(NodeViewError::Bell)?;
        let ring = rustix::io::fcntl_dupfd_cloexec(&bell, 0).map_err(NodeViewError::Bell)?;
        let seers = Seers::default();
        let asker = Asker {
            questions,
            bell: ring,
            seers: seers.clone(),
        };
        let path = Path::new(MOUNT_POINT);
        let mount = View::mount(path, &OWN_DIRECTORIES, Arc::new(asker))?;
        let root = TaskRoot::from_mount(path)?;
        let view = NodeView {
            view: mount.view(),
            _mount: mount,
            asked,
            bell,
            seers,
            tasks: HashMap::new(),
            deputies: HashMap::new(),
            waiting: HashMap::new(),
            next: 0,
        };
        Ok((view, root))
    }

    /// Readable when there are questions.
    pub(super) fn bell(&self) -> impl AsFd {
        &self.bell
    }

    /// A task of this user is about to start.
    pub(super) fn admit(&mut self, task: TaskId, uid: u32, deputy: DeputyId) {
        self.tasks.insert(task, (uid, deputy));
        self.choose(uid);
        locked(&self.seers).insert(uid);
    }

    /// A task has ended. What its user was told of files stays good as long as the link.
    pub(super) fn dismiss(&mut self, task: TaskId) {
        let Some((uid, _)) = self.tasks.remove(&task) else {
            return;
        };
        if self.tasks.values().any(|(other, _)| *other == uid) {
            self.choose(uid);
        } else {
            locked(&self.seers).remove(&uid);
        }
    }

    /// Keeps the user's deputy, or takes another if that has no task here.
    fn choose(&mut self, uid: u32) {
        let known = self.deputies.get(&uid).copied();
        let mut of_uid = self
            .tasks
            .values()
            .filter(|(other, _)| *other == uid)
            .map(|(_, d)| *d);
        if known.is_some_and(|known| of_uid.any(|deputy| deputy == known)) {
            return;
        }
        let chosen = self
            .tasks
            .values()
            .find(|(other, _)| *other == uid)
            .map(|(_, d)| *d);
        if let Some(known) = known
            && chosen != Some(known)
        {
            self.deputies.remove(&uid);
            self.view.fail_all(uid);
        }
        if let Some(chosen) = chosen {
            self.deputies.insert(uid, chosen);
        }
    }

    /// Passes questions on.
    pub(super) fn pass_questions(&mut self, poll: &Poll, relay: &mut NodeRelay) {
        // An empty counter is no error.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        for _ in 0..QUESTIONS_PER_TURN {
            let Ok(Asked { uid, what, reply }) = self.asked.try_recv() else {
                return;
            };
            let Some(&deputy) = self.deputies.get(&uid) else {
                reply(Err(Errno::ACCESS.raw_os_error()));
                continue;
            };
            let id = self.next;
            self.next += 1;
            if relay.ask(poll, deputy, ViewQuestion { id, what }) {
                self.waiting.insert(id, (deputy, reply));
            } else {
                reply(Err(Errno::ACCESS.raw_os_error()));
            }
            self.forget_unlinked(relay);
        }
        // What is left rings again.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// A deputy answers.
    pub(super) fn answered(&mut self, deputy: DeputyId, answer: ViewAnswer) {
        // Only whom it was asked: a deputy answers for nobody else (S3).
        if self
            .waiting
            .get(&answer.id)
            .is_some_and(|(asked, _)| *asked == deputy)
            && let Some((_, reply)) = self.waiting.remove(&answer.id)
        {
            reply(answer.result);
        }
    }

    /// What links took with them is asked for anew.
    pub(super) fn forget_unlinked(&mut self, relay: &mut NodeRelay) {
        for lost in relay.take_unlinked() {
            let uids: Vec<_> = self
                .deputies
                .iter()
                .filter(|(_, it)| **it == lost)
                .map(|(uid, _)| *uid)
                .collect();
            for uid in uids {
                self.view.fail_all(uid);
                self.deputies.remove(&uid);
                self.choose(uid);
            }
            self.waiting.retain(|_, (deputy, _)| *deputy != lost);
        }
    }
}

fn locked(seers: &Seers) -> MutexGuard<'_, HashSet<u32>> {
    seers.lock().unwrap_or_else(PoisonError::into_inner)
}
