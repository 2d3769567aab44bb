//! Makes tasks' main processes, in a thread of its own: it is suspended until the program runs.
//!
//! The thread gives itself a UTS namespace for each task, which the task's processes inherit.
//! Nothing but root can leave it, so it is the tag by which all of a task's processes are known,
//! whatever sessions they start and whatever parents they lose.
//!
//! A task with a terminal gets a leader for its session ([`wiglaf_linux::session`]), which is the
//! main process's parent in the agent's stead, or there would be no job control on it.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use wiglaf_linux::namespace::{NamespaceFlags, unshare};
use wiglaf_linux::session::{self, Leader};
use wiglaf_linux::signal::{SignalSet, block_signals};
use wiglaf_linux::spawn::{Limit, SpawnError, SpawnRequest, Stage, spawn};
use wiglaf_process::relay::node::ChildStdio;
use wiglaf_wire::id::{DeputyId, Pid, TaskId};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Status};

use super::private::{Lent, Makers, NoPrivate, Pool};
use crate::root::{OwnDirectories, RootError, TaskRoot};

/// The thread's stack: what is large is on the heap.
const STACK_BYTES: usize = 256 << 10;

/// A process to be made.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) task: TaskId,
    pub(super) pid: Pid,
    pub(super) credential: Credential,
    pub(super) spec: Box<LaunchSpec>,
    pub(super) stdio: ChildStdio,
    pub(super) root: Root,
}

/// Where a process is to live.
#[derive(Clone, Debug)]
pub(super) enum Root {
    /// It is there.
    Made(Arc<TaskRoot>),
    /// Around a view. It is made here, once for each view, because looking at a view takes the
    /// agent's loop to answer.
    View {
        /// Whose view.
        deputy: DeputyId,
        /// Where it is mounted.
        path: PathBuf,
        /// What is put into it.
        own: Arc<OwnDirectories>,
    },
}

/// What the thread is told.
#[derive(Debug)]
enum Word {
    Make(Box<Order>),
    /// This view is gone, and its root with it.
    Forget(DeputyId),
    /// A task has left this as it was.
    TakeBack(Box<Lent>),
}

/// What became of an order: a process, or what to tell the user.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) task: TaskId,
    pub(super) outcome: Result<Made, Status>,
    /// What it lives in, if that is its own.
    pub(super) private: Option<Box<Lent>>,
}

/// A task's main process.
#[derive(Debug)]
pub(super) struct Made {
    /// The tag of all the task's processes.
    pub(super) tag: UtsTag,
    /// The main process's parent, if that is not the agent.
    pub(super) leader: Option<Leader>,
}

/// The inode number of a UTS namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct UtsTag(u64);

impl UtsTag {
    /// Of the namespace with this inode number.
    pub(super) fn from_number(number: u64) -> UtsTag {
        UtsTag(number)
    }

    /// The namespace's inode number.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// Of this thread.
    pub(super) fn own() -> io::Result<UtsTag> {
        UtsTag::read("/proc/thread-self/ns/uts")
    }

    /// Of a process. `NotFound` when it is ending: it leaves its namespaces after its files and
    /// before its end.
    pub(super) fn of(pid: i32) -> io::Result<UtsTag> {
        UtsTag::read(&format!("/proc/{pid}/ns/uts")).map_err(|error| {
            let ended = error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
            if ended {
                io::ErrorKind::NotFound.into()
            } else {
                error
            }
        })
    }

    fn read(path: &str) -> io::Result<UtsTag> {
        let link = fs::read_link(path)?;
        let text = link.to_str().unwrap_or_default();
        let number = text
            .strip_prefix("uts:[")
            .and_then(|rest| rest.strip_suffix(']'));
        number
            .and_then(|number| number.parse().ok())
            .map(UtsTag)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// The thread's other end.
#[derive(Debug)]
pub(super) struct Spawner {
    words: Sender<Word>,
    answers: Receiver<Answer>,
    answered: OwnedFd,
}

impl Spawner {
    /// Starts the thread. `node` is the node's name, for what users are told.
    pub(super) fn start(rootless: bool, node: &str, makers: Makers) -> io::Result<Spawner> {
        let (words, inbox) = channel::<Word>();
        let (outbox, answers) = channel();
        let answered = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = rustix::io::fcntl_dupfd_cloexec(&answered, 0)?;
        let node = node.to_owned();
        thread::Builder::new()
            .name("spawner".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // The loop reads them from a descriptor.
                block_signals(SignalSet::ALL);
                let home = open_own_uts();
                let mut roots = Roots::default();
                let mut pool = Pool::new(rootless);
                let thread = Thread {
                    home,
                    rootless,
                    node,
                    makers,
                };
                for word in inbox {
                    let order = match word {
                        Word::Make(order) => order,
                        Word::Forget(deputy) => {
                            roots.0.remove(&deputy);
                            pool.forget(deputy);
                            continue;
                        }
                        Word::TakeBack(lent) => {
                            pool.take_back(*lent);
                            continue;
                        }
                    };
                    let task = order.task;
                    let mut private = thread.lend(&order, &mut pool);
                    let outcome = match &private {
                        Some(lent) => thread.make(&order, &lent.root.root),
                        None => match roots.get(&order.root) {
                            Ok(root) => thread.make(&order, &root),
                            Err(error) => {
                                Err(Status::cluster_failed(format!("{}: {error}", thread.node)))
                            }
                        },
                    };
                    drop(order);
                    if outcome.is_err()
                        && let Some(lent) = private.take()
                    {
                        pool.take_back(*lent);
                    }
                    let answer = Answer {
                        task,
                        outcome,
                        private,
                    };
                    if outbox.send(answer).is_err() {
                        return;
                    }
                    // Can only fail when nobody listens any more.
                    let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
                }
            })?;
        Ok(Spawner {
            words,
            answers,
            answered,
        })
    }

    /// Readable when there are answers.
    pub(super) fn bell(&self) -> impl AsFd {
        &self.answered
    }

    /// Gives an order; `false` when the thread is gone.
    pub(super) fn order(&self, order: Order) -> bool {
        self.words.send(Word::Make(Box::new(order))).is_ok()
    }

    /// A view is gone.
    pub(super) fn forget(&self, deputy: DeputyId) {
        let _ = self.words.send(Word::Forget(deputy));
    }

    /// A task has left its private root as it was.
    pub(super) fn take_back(&self, lent: Box<Lent>) {
        let _ = self.words.send(Word::TakeBack(lent));
    }

    /// The answers that have come.
    pub(super) fn answers(&self) -> Vec<Answer> {
        // An empty counter is no error: the answers may have been taken already.
        let _ = rustix::io::read(&self.answered, &mut [0; 8]);
        self.answers.try_iter().collect()
    }
}

/// The roots of views.
#[derive(Debug, Default)]
struct Roots(HashMap<DeputyId, Arc<TaskRoot>>);

impl Roots {
    fn get(&mut self, wanted: &Root) -> Result<Arc<TaskRoot>, RootError> {
        match wanted {
            Root::Made(root) => Ok(root.clone()),
            Root::View { deputy, path, own } => {
                if let Some(root) = self.0.get(deputy) {
                    return Ok(root.clone());
                }
                let root = Arc::new(TaskRoot::from_view(path, own)?);
                self.0.insert(*deputy, root.clone());
                Ok(root)
            }
        }
    }
}

fn open_own_uts() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/uts", flags, Mode::empty())
}

/// What the thread has for all tasks.
struct Thread {
    home: Result<OwnedFd, Errno>,
    rootless: bool,
    node: String,
    makers: Makers,
}

impl Thread {
    fn make(&self, order: &Order, root: &TaskRoot) -> Result<Made, Status> {
        make(order, root, self)
    }

    /// A private root, where one is wanted and can be had. What it is for lives on with
    /// leftovers, so these have none.
    fn lend(&self, order: &Order, pool: &mut Pool) -> Option<Box<Lent>> {
        let Root::View { deputy, path, own } = &order.root else {
            return None;
        };
        if !order.spec.private_tmp || order.spec.leave {
            return None;
        }
        match pool.lend(*deputy, path, own, (&order.credential, &order.spec)) {
            Ok(lent) => Some(Box::new(lent)),
            Err(NoPrivate::Known) => None,
            Err(error @ NoPrivate::Root(_)) => {
                // There is nobody to tell that nobody can be told.
                let _ = writeln!(io::stderr(), "wiglaf agent {}: {error}", self.node);
                None
            }
        }
    }
}

fn make(order: &Order, root: &TaskRoot, thread: &Thread) -> Result<Made, Status> {
    let Thread {
        home,
        rootless,
        node,
        makers,
    } = thread;
    let (home, rootless) = (home.as_ref(), *rootless);
    let spec = &order.spec;
    let failed = |reason: String| Status::Failed {
        code: EXIT_CLUSTER_FAILED,
        reason,
    };
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| failed(format!("{node} was given text with a NUL in it")))
    };
    let argv = spec
        .argv
        .iter()
        .map(|word| text(word))
        .collect::<Result<Vec<_>, _>>()?;
    let env = spec
        .env
        .iter()
        .map(|word| text(word))
        .collect::<Result<Vec<_>, _>>()?;
    let cwd = text(&spec.cwd)?;
    let named = spec.program.as_deref().map(text).transpose()?;
    let Some(program) = named.as_ref().or(argv.first()) else {
        return Err(failed(format!("{node} was given no command to run")));
    };
    for stream in order.stdio.to_own() {
        // As login does. A rootless node's belong to its only user by themselves.
        let owner = Some(rustix::fs::Uid::from_raw(order.credential.uid));
        let _ = rustix::fs::fchown(stream, owner, None);
    }
    let tagged = unshare(NamespaceFlags::NEWUTS)
        .map_err(io::Error::from)
        .and_then(|()| UtsTag::own());
    let tag = tagged.map_err(|error| failed(format!("{node} can't tag the task: {error}")))?;
    if spec.undo {
        // Before it can make anything.
        makers.add(tag, order.task);
    }
    let limits: Vec<_> = spec
        .limits
        .iter()
        .map(|limit| Limit {
            resource: limit.resource,
            soft: limit.soft,
            hard: limit.hard,
        })
        .collect();
    let request = SpawnRequest {
        program,
        argv: &argv,
        env: &env,
        cwd: &cwd,
        uid: order.credential.uid,
        gid: order.credential.gid,
        groups: (!rootless).then_some(&order.credential.groups),
        umask: spec.umask,
        limits: &limits,
        stdio: [0, 1, 2].map(|stream: usize| order.stdio.fds[stream].as_fd()),
        mount_ns: Some(root.mount_ns.as_fd()),
        root: None,
        cgroup: None,
        new_uts: false,
        hostname: spec.host_name.as_deref(),
        pid: Some(order.pid.0),
        controlling_tty: false,
        ignored_signals: SignalSet::from_bits(spec.ignored_signals),
        blocked_signals: SignalSet::from_bits(spec.blocked_signals),
    };
    let told = |error| told(error, spec, node);
    let leader = match order.stdio.terminal {
        None => {
            spawn(&request).map_err(told)?;
            None
        }
        Some(stream) => {
            let home = home.map_err(|errno| told(SpawnError::Clone { errno: *errno }))?;
            Some(session::spawn(&request, stream.index(), home.as_fd()).map_err(told)?)
        }
    };
    Ok(Made { tag, leader })
}

/// What the user is told of a process that could not be made, as a shell would where one would.
fn told(error: SpawnError, spec: &LaunchSpec, node: &str) -> Status {
    let command = spec
        .argv
        .first()
        .map(|word| String::from_utf8_lossy(word))
        .unwrap_or_default();
    let (code, reason) = match error {
        SpawnError::Child {
            stage: Stage::Exec,
            errno: Errno::NOENT | Errno::NOTDIR,
        } => (EXIT_NOT_FOUND, format!("{command}: not found on {node}")),
        SpawnError::Child {
            stage: Stage::Exec,
            errno,
        } => (
            EXIT_NOT_EXECUTABLE,
            format!("{command}: can't be executed on {node}: {errno}"),
        ),
        SpawnError::Child {
            stage: Stage::Cwd,
            errno,
        } => {
            let cwd = String::from_utf8_lossy(&spec.cwd);
            let reason = format!("{node} can't enter the working directory {cwd}: {errno}");
            (EXIT_CLUSTER_FAILED, reason)
        }
        SpawnError::PidTaken { pid } => {
            let reason = format!("process number {pid} is taken on {node}; run the command again");
            (EXIT_CLUSTER_FAILED, reason)
        }
        SpawnError::Clone { .. } | SpawnError::Leader | SpawnError::Child { .. } => (
            EXIT_CLUSTER_FAILED,
            format!("{node} can't start {command}: {error}"),
        ),
    };
    Status::Failed { code, reason }
}
