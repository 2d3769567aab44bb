//! A mounted view: the kernel's device and a [`Session`], for an event loop to drive.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wiglaf_fuse::{
    BUFFER_BYTES, Device, DeviceError, Errno, InitReply, MountError, Notification, Notifier,
    Operation, Options, Reply, Request,
};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::{Answer, Change, Filter, Gift, PieceDigest, Question};

use crate::session::{Bounds, Effect, Missing, Session, Statistics};

/// Requests that are taken before others have their turn.
const REQUESTS_PER_TURN: usize = 64;

/// Why the view can't be mounted.
#[derive(thiserror::Error, Debug)]
pub enum ViewError {
    /// No device.
    #[error(
        "can't open /dev/fuse, by which this node would see the head's files: {error}; {}",
        remedy(.error)
    )]
    Device {
        /// Why not.
        error: DeviceError,
    },
    /// The mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// There is no thread for it.
    #[error("can't start the view's thread: {0}")]
    Thread(#[source] std::io::Error),
}

fn remedy(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::Io(Errno::ACCESS | Errno::PERM) => {
            "run as root, or let this user open it (`chmod 666 /dev/fuse`, as most distributions \
             have it; in a container, give it the device)"
        }
        _ => "load the kernel's module (`modprobe fuse`); in a container, give it the device",
    }
}

/// Whether a view can be mounted here at all, before anything is made for it.
///
/// # Errors
/// [`ViewError::Device`].
pub fn check_device() -> Result<(), ViewError> {
    match Device::open() {
        Ok(_) => Ok(()),
        Err(error) => Err(ViewError::Device { error }),
    }
}

/// What a mounted view has for its driver.
#[derive(Debug)]
pub enum Outcome {
    /// A barrier is passed.
    Passed {
        /// Its number.
        token: u64,
    },
    /// See [`Effect::CloseFailed`].
    CloseFailed {
        /// What the driver's witness said of the closing process.
        witness: u64,
        /// The file.
        path: Vec<u8>,
        /// Why.
        errno: i32,
    },
    /// See [`Effect::Checked`].
    Checked {
        /// Its number.
        token: u64,
        /// How much was compared.
        compared: u64,
        /// What differed.
        differences: Vec<String>,
    },
    /// A process that waits for this request has a signal; if that is a deadly one, or one comes
    /// later, of which the kernel does not tell, say so by [`ViewMount::abandon`].
    Interrupted {
        /// The request.
        unique: u64,
        /// The process, in the numbers of the mount's PID namespace.
        pid: u32,
    },
}

/// Looks at a process whose close fails, before it is told; `None` if that process will see to
/// it itself.
pub type Witness = fn(u32) -> Option<u64>;

/// Of which task a process is, if what that makes anew may have to be undone.
pub type Makers = Box<dyn Fn(u32) -> Option<TaskId> + Send>;

fn makes_something(operation: &Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Create { .. }
            | Operation::MakeDirectory { .. }
            | Operation::MakeNode { .. }
            | Operation::Symlink { .. }
            | Operation::Link { .. }
    )
}

/// A mounted view. Dropping it unmounts.
pub struct ViewMount {
    session: Session,
    device: Arc<Device>,
    notifier: Notifier,
    path: PathBuf,
    buffer: Vec<u8>,
    questions: Vec<Question>,
    outcomes: Vec<Outcome>,
    /// What waits for the notifier, by its tokens, in their order.
    after_notices: VecDeque<(u64, AfterNotices)>,
    next_token: u64,
    witness: Witness,
    makers: Option<Makers>,
    can_expire: bool,
    gone: bool,
}

impl std::fmt::Debug for ViewMount {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ViewMount")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum AfterNotices {
    Reply { unique: u64, reply: Reply },
    Passed { token: u64 },
}

impl ViewMount {
    /// Mounts the head's `/` at `path`. The names `own` in it are empty directories of the
    /// node's own, for it to mount on.
    pub fn mount(
        path: &Path,
        own: &[impl AsRef<str>],
        bounds: Bounds,
        witness: Witness,
    ) -> Result<ViewMount, ViewError> {
        let device = Device::open().map_err(|error| ViewError::Device { error })?;
        let device = Arc::new(device);
        // Device files mean the head's devices, and the node's /dev is its own.
        let options = Options {
            no_devices: true,
            no_set_uid: false,
        };
        device.mount(path, &options)?;
        let notifier = match Notifier::start(Arc::clone(&device)) {
            Ok(notifier) => notifier,
            Err(error) => {
                let _ = wiglaf_fuse::unmount(path);
                return Err(ViewError::Thread(error));
            }
        };
        Ok(ViewMount {
            session: Session::new(own, bounds),
            device,
            notifier,
            path: path.to_owned(),
            buffer: vec![0; BUFFER_BYTES],
            questions: Vec::new(),
            outcomes: Vec::new(),
            after_notices: VecDeque::new(),
            next_token: 0,
            witness,
            makers: None,
            can_expire: false,
            gone: false,
        })
    }

    /// Readable when the kernel asks.
    #[must_use]
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Readable when notices have been taken.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.notifier.bell()
    }

    /// See [`Session::pin`].
    pub fn pin(&mut self, path: &Path) {
        self.session.pin(path);
    }

    /// See [`Session::show_link`].
    pub fn show_link(&mut self, path: &Path, target: Option<&Path>) {
        self.session.show_link(path, target);
        self.carry_out();
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the mount is gone: nobody will ask any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// What is to be sent to the deputy, in this order.
    pub fn take_questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    /// What has happened.
    pub fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// See [`Session::statistics`].
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.session.statistics()
    }

    /// See [`Session::is_waiting`].
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.session.is_waiting()
    }

    /// A question can't be sent.
    pub fn refuse(&mut self, now: u64, id: u64) {
        self.session.refuse(now, id, Errno::NOTCONN.raw_os_error());
        self.carry_out();
    }

    /// Takes some of the kernel's requests. What is left keeps the device readable.
    pub fn serve(&mut self, now: u64) {
        for _ in 0..REQUESTS_PER_TURN {
            let length = match self.device.receive(&mut self.buffer) {
                Ok(Some(length)) => length,
                Ok(None) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            };
            // A request that does not parse is the kernel's mistake, and can't be answered.
            let Ok(request) = Request::parse(&self.buffer[..length]) else {
                continue;
            };
            if let Operation::Init(offer) = &request.operation {
                let reply = match InitReply::answering(offer) {
                    Ok(reply) => {
                        self.can_expire = reply.can_expire();
                        Reply::Init(reply)
                    }
                    Err(_) => Reply::Error(Errno::PROTO.raw_os_error()),
                };
                let _ = self.device.reply(request.unique, &reply);
                continue;
            }
            if let Operation::Interrupt { unique } = request.operation {
                let pid = self.session.asker(unique).unwrap_or(0);
                self.outcomes.push(Outcome::Interrupted { unique, pid });
            }
            if let Some(makers) = &self.makers
                && makes_something(&request.operation)
            {
                self.session.set_maker(makers(request.pid));
            }
            self.session.request(now, &request);
            self.carry_out();
        }
    }

    /// Finds tasks whose making is to be undone if the cluster fails them, by their processes.
    pub fn set_makers(&mut self, makers: Makers) {
        self.makers = Some(makers);
    }

    /// The deputy answers.
    pub fn answer(&mut self, now: u64, answer: Answer) {
        self.session.answer(now, answer);
        self.carry_out();
    }

    /// The deputy tells changes.
    pub fn changed(&mut self, now: u64, changes: Vec<Change>) {
        self.session.changed(now, changes);
        self.carry_out();
    }

    /// The deputy gives.
    pub fn given(&mut self, now: u64, gifts: Vec<Gift>, missing: Missing) {
        self.session.given(now, gifts, missing);
        self.carry_out();
    }

    /// See [`Session::expect`].
    pub fn expect(&mut self, paths: Vec<Vec<u8>>) {
        self.session.expect(paths);
        self.carry_out();
    }

    /// See [`Session::tell_uses`].
    pub fn tell_uses(&mut self) {
        self.session.tell_uses();
        self.carry_out();
    }

    /// See [`Session::drop_unused`].
    pub fn drop_unused(&mut self) {
        self.session.drop_unused();
        self.carry_out();
    }

    /// See [`Session::keep`].
    pub fn keep(&mut self, filter: Filter) {
        self.session.keep(filter);
        self.carry_out();
    }

    /// See [`Session::lose_kept`].
    pub fn lose_kept(&mut self, pieces: Vec<PieceDigest>) {
        self.session.lose_kept(pieces);
        self.carry_out();
    }

    /// The bell has rung.
    pub fn noticed(&mut self) {
        for done in self.notifier.done() {
            while let Some((token, _)) = self.after_notices.front()
                && *token <= done
                && let Some((_, what)) = self.after_notices.pop_front()
            {
                match what {
                    AfterNotices::Reply { unique, reply } => self.reply(unique, &reply),
                    AfterNotices::Passed { token } => self.outcomes.push(Outcome::Passed { token }),
                }
            }
        }
    }

    /// See [`Session::barrier`].
    pub fn barrier(&mut self, now: u64, token: u64) {
        self.session.barrier(now, token);
        self.carry_out();
    }

    /// See [`Session::check`].
    pub fn check(&mut self, now: u64, token: u64) {
        self.session.check(now, token);
        self.carry_out();
    }

    /// Whether this request, of which [`Outcome::Interrupted`] told, still waits for the deputy.
    #[must_use]
    pub fn awaits(&self, unique: u64) -> bool {
        self.session.asker(unique).is_some()
    }

    /// See [`Session::abandon`].
    pub fn abandon(&mut self, unique: u64) {
        self.session.abandon(unique);
        self.carry_out();
    }

    /// See [`Session::lose`].
    pub fn lose(&mut self) {
        self.session.lose();
        self.carry_out();
        // They would reach a deputy that knows nothing of them.
        self.questions.clear();
    }

    /// See [`Session::resume`].
    pub fn resume(&mut self) {
        self.session.resume();
    }

    fn reply(&mut self, unique: u64, reply: &Reply) {
        if self.device.reply(unique, reply).is_err() {
            self.gone = true;
        }
    }

    fn carry_out(&mut self) {
        for effect in self.session.take_effects() {
            match effect {
                Effect::Reply { unique, reply } => self.reply(unique, &reply),
                Effect::ReplyAfterNotices { unique, reply } => {
                    self.after_notices(AfterNotices::Reply { unique, reply });
                }
                Effect::Passed { token } => self.after_notices(AfterNotices::Passed { token }),
                Effect::Ask(question) => self.questions.push(question),
                Effect::Refresh { node } => {
                    let notification = Notification::Attributes { node };
                    if self.device.notify(&notification) == Err(Errno::NOENT) {
                        // The kernel is about to learn of it: the reply is on its way.
                        self.notifier.send(notification, true);
                    }
                }
                // Older kernels forget the name, and with it what they hold of the file.
                Effect::Notice(Notification::Expire { parent, name }) if !self.can_expire => {
                    let notification = Notification::Entry { parent, name };
                    self.notifier.send(notification, true);
                }
                Effect::Notice(notification) => self.notifier.send(notification, true),
                Effect::CloseFailed { pid, path, errno } => {
                    if let Some(witness) = (self.witness)(pid) {
                        self.outcomes.push(Outcome::CloseFailed {
                            witness,
                            path,
                            errno,
                        });
                    }
                }
                Effect::Checked {
                    token,
                    compared,
                    differences,
                } => self.outcomes.push(Outcome::Checked {
                    token,
                    compared,
                    differences,
                }),
            }
        }
    }

    fn after_notices(&mut self, what: AfterNotices) {
        if self.after_notices.is_empty() && self.notifier.is_idle() {
            match what {
                AfterNotices::Reply { unique, reply } => self.reply(unique, &reply),
                AfterNotices::Passed { token } => self.outcomes.push(Outcome::Passed { token }),
            }
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.after_notices.push_back((token, what));
        self.notifier.barrier(token);
    }
}

impl Drop for ViewMount {
    fn drop(&mut self) {
        // Copies of the mount in tasks' namespaces may live on; they get ENOTCONN.
        self.session.lose();
        self.carry_out();
        let _ = wiglaf_fuse::unmount(&self.path);
    }
}
