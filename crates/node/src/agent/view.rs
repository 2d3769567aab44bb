//! The node's views: one mount for each deputy that has had tasks here, driven by the agent's
//! loop. A task starts when its view knows of every change before its launch (V1), and its end
//! is told when the head has all that it wrote (V2).

mod inbox;
mod settle;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wiglaf_keep::KeepError;
use wiglaf_link::{Interest, Poll, Ready, Token};
use wiglaf_view::{Bounds, ViewError, ViewMount};
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::launch::LaunchSpec;
use wiglaf_wire::view::{Cut, MAX_EXPECTED_PATHS, Short, ViewCheck, ViewState};

use super::kept::{Kept, Said};
use super::private::Makers;
use super::spawner::{Order, Root, UtsTag};
use crate::root::{OwnDirectories, RootError, STAND_INS, private_places};

use inbox::Inbox;
pub(super) use inbox::{DISK_WAIT, Heard};

/// Tokens of views have this bit; below it are a view's number and, in the lowest, which of its
/// two descriptors.
const VIEW_BIT: u64 = 1 << 61;
const BELL_BIT: u64 = 1;
/// Views without tasks that are kept: their users' next commands find what they know.
const MAX_IDLE_VIEWS: usize = 8;
/// A process that is ending has this flag in `/proc/PID/stat` (`PF_EXITING`).
const EXITING: u64 = 0x4;
/// The flags are this field after the command's name.
const FLAGS_FIELD: usize = 6;
/// Requests that follow each other so soon come from a program that is at it.
const SOON: Duration = Duration::from_micros(100);
/// After a pause like this another program is at it.
const PAUSE: Duration = Duration::from_millis(1);
/// So many such requests show that more will follow. Starting a small program takes a dozen, and
/// waiting for more would cost as much as all the rest of its launch.
const IN_DEMAND: u32 = 32;
const MOST_DEMAND: u32 = 8 * IN_DEMAND;

/// Why a node has no view.
#[derive(Debug, thiserror::Error)]
pub enum NodeViewError {
    /// It can't be mounted.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Nothing can be put around it.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The loop can't watch it.
    #[error("can't watch the view: {0}")]
    Watch(#[from] rustix::io::Errno),
}

/// What a view has waited for.
#[derive(Debug)]
pub(super) enum Due {
    /// The task may start.
    Launch(Box<Order>),
    /// Everything that the task wrote is on the head.
    Written { task: TaskId, leave: bool },
    /// Something that a task wrote is not, and no program was told.
    Lost { tag: UtsTag, reason: String },
    /// The view or what stands in it is gone: a root made around it is of no use any more.
    Gone(DeputyId),
    /// The disk with what is kept says nothing: what is wanted of it is had from the head again.
    DiskHangs,
    /// A check is over.
    Checked {
        /// Of the head.
        request: u64,
        /// What it has found.
        found: ViewCheck,
    },
}

/// All views.
#[derive(Debug)]
pub(super) struct Views {
    own: Arc<OwnDirectories>,
    /// Some view may have been made before what is the nodes' own now was.
    has_outdated: bool,
    bounds: Bounds,
    makers: Makers,
    /// Whether the node's names stand in for the head's.
    has_names: bool,
    views: HashMap<DeputyId, NodeView>,
    by_slot: HashMap<u64, DeputyId>,
    tasks: HashMap<TaskId, DeputyId>,
    waiting: HashMap<u64, Waits>,
    next: u64,
    /// When to look at signalled processes again.
    look_at: Option<Instant>,
    served_at: Option<Instant>,
    /// How many requests came soon after the one before, less for vain waiting.
    demand: u32,
    /// What the node keeps on a disk.
    kept: Option<Kept>,
}

#[derive(Debug)]
struct NodeView {
    mount: ViewMount,
    inbox: Inbox,
    slot: u64,
    uid: u32,
    tasks: HashSet<TaskId>,
    /// What stands in it.
    own: Arc<OwnDirectories>,
    /// Overlays stand on some of its directories.
    is_covered: bool,
    /// Orders the idle ones.
    last_used: u64,
    /// Requests whose processes have been signalled while they wait.
    signalled: Vec<(u64, u32)>,
}

#[derive(Debug)]
enum Waits {
    Launch(Box<Order>),
    Written {
        task: TaskId,
        leave: bool,
    },
    Check {
        request: u64,
        deputy: DeputyId,
        uid: u32,
    },
}

impl Views {
    /// None yet.
    pub(super) fn new(
        own: OwnDirectories,
        bounds: Bounds,
        makers: Makers,
    ) -> Result<Views, NodeViewError> {
        wiglaf_view::check_device()?;
        Ok(Views {
            own: Arc::new(own),
            has_outdated: false,
            bounds,
            makers,
            has_names: false,
            views: HashMap::new(),
            by_slot: HashMap::new(),
            tasks: HashMap::new(),
            waiting: HashMap::new(),
            next: 1,
            look_at: None,
            served_at: None,
            demand: 0,
            kept: None,
        })
    }

    pub(super) fn terminals(&self) -> PathBuf {
        self.own.terminals()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A task is about to start: its root, when it comes to that.
    pub(super) fn admit(
        &mut self,
        poll: &Poll,
        task: TaskId,
        (deputy, uid): (DeputyId, u32),
    ) -> Result<Root, NodeViewError> {
        let used = self.number();
        if !self.views.contains_key(&deputy) {
            let slot = self.number();
            let path = self.own.place(&format!("view-{slot}"))?;
            let mut mount = ViewMount::mount(&path, &self.own.names(), self.bounds, witness)?;
            self.own.covered().for_each(|path| mount.pin(path));
            show_names(&mut mount, self.has_names);
            let makers = self.makers.clone();
            mount.set_makers(Box::new(move |pid| makers.find(pid)));
            poll.add(mount.device(), token(slot, false), Interest::Read)?;
            poll.add(mount.bell(), token(slot, true), Interest::Read)?;
            self.by_slot.insert(slot, deputy);
            if let Some(kept) = &self.kept {
                kept.ask_for_filter(deputy, uid);
            }
            let view = NodeView {
                mount,
                inbox: Inbox::new(deputy, uid),
                slot,
                uid,
                tasks: HashSet::new(),
                own: self.own.clone(),
                is_covered: false,
                last_used: used,
                signalled: Vec::new(),
            };
            self.views.insert(deputy, view);
        }
        self.tasks.insert(task, deputy);
        let (path, own) = match self.views.get_mut(&deputy) {
            Some(view) => {
                view.tasks.insert(task);
                view.last_used = used;
                (view.mount.path().to_owned(), view.own.clone())
            }
            None => (PathBuf::new(), self.own.clone()),
        };
        Ok(Root::View { deputy, path, own })
    }

    /// Shows disks from now on, by their names in `/`. Views that are there don't.
    pub(super) fn show_disks(&mut self, names: &[&'static str]) {
        if !names.iter().all(|name| self.own.has(name)) {
            let own = names.iter();
            let own = own.fold((*self.own).clone(), |own, name| own.with_disk(name));
            self.own = Arc::new(own);
            self.has_outdated = true;
        }
    }

    /// Where disks are mounted.
    pub(super) fn disk_places(&self) -> PathBuf {
        self.own.disk_places()
    }

    /// Views that lack a disk, and have no tasks: they should go, so that the next task has one
    /// with it. They do when their links do.
    pub(super) fn outdated(&mut self) -> Vec<DeputyId> {
        if !self.has_outdated {
            return Vec::new();
        }
        let views = self.views.iter();
        let outdated = views.filter(|(_, view)| !Arc::ptr_eq(&view.own, &self.own));
        let (idle, busy): (Vec<_>, Vec<_>) = outdated
            .map(|(deputy, view)| (*deputy, view.tasks.is_empty()))
            .partition(|(_, is_idle)| *is_idle);
        self.has_outdated = !busy.is_empty();
        idle.into_iter().map(|(deputy, _)| deputy).collect()
    }

    /// Whether a deputy's tasks see this disk.
    pub(super) fn shows(&self, deputy: DeputyId, name: &str) -> bool {
        self.views
            .get(&deputy)
            .is_some_and(|view| view.own.has(name))
    }

    /// Has the node's names stand in for the head's, or not any more.
    pub(super) fn show_names(&mut self, shown: bool) {
        self.has_names = shown;
        for view in self.views.values_mut() {
            show_names(&mut view.mount, shown);
        }
    }

    /// Has a task started once its view is right.
    pub(super) fn launch(&mut self, order: Order) {
        let Some(&deputy) = self.tasks.get(&order.task) else {
            return;
        };
        if let Some(view) = self.views.get_mut(&deputy) {
            if order.spec.private_tmp && !std::mem::replace(&mut view.is_covered, true) {
                private_places().for_each(|path| view.mount.pin(&path));
            }
            view.mount.expect(places_of_program(&order.spec));
        }
        self.wait(deputy, Waits::Launch(Box::new(order)));
    }

    /// All processes of a task are gone. Returns whether something that they wrote is still on
    /// its way; then [`Due::Written`] follows.
    pub(super) fn ended(&mut self, task: TaskId, leave: bool) -> bool {
        let Some(&deputy) = self.tasks.get(&task) else {
            return false;
        };
        let is_waiting = self.views.get_mut(&deputy).is_some_and(|view| {
            view.mount.tell_uses();
            if view.tasks.len() <= 1 {
                view.mount.drop_unused();
            }
            view.mount.is_waiting()
        });
        if is_waiting {
            self.wait(deputy, Waits::Written { task, leave });
        }
        is_waiting
    }

    fn wait(&mut self, deputy: DeputyId, waits: Waits) {
        let token = self.number();
        if let Some(view) = self.views.get_mut(&deputy) {
            self.waiting.insert(token, waits);
            view.mount.barrier(now_ms(), token);
        }
    }

    /// A task has no use for its view any more. Returns the deputy whose view is one too many, if
    /// there is one: it should go, as its link does.
    pub(super) fn dismiss(&mut self, task: TaskId) -> Option<DeputyId> {
        let deputy = self.tasks.remove(&task)?;
        let used = self.number();
        let view = self.views.get_mut(&deputy)?;
        view.tasks.remove(&task);
        view.last_used = used;
        let idle = || self.views.iter().filter(|(_, view)| view.tasks.is_empty());
        if idle().count() <= MAX_IDLE_VIEWS {
            return None;
        }
        let oldest = idle().min_by_key(|(_, view)| view.last_used);
        oldest.map(|(deputy, _)| *deputy)
    }

    fn drop_view(&mut self, poll: &Poll, deputy: DeputyId) {
        if let Some(view) = self.views.remove(&deputy) {
            self.by_slot.remove(&view.slot);
            // They fail only for a set that is broken itself.
            let _ = poll.remove(view.mount.device());
            let _ = poll.remove(view.mount.bell());
        }
    }

    /// Whether this token is a view's.
    pub(super) fn owns(token: Token) -> bool {
        token.0 & VIEW_BIT != 0 && token.0 < VIEW_BIT << 1
    }

    /// A view's descriptor is ready.
    pub(super) fn ready(&mut self, ready: Ready) {
        let slot = (ready.token.0 & !VIEW_BIT) >> 1;
        let Some(view) = self
            .by_slot
            .get(&slot)
            .and_then(|deputy| self.views.get_mut(deputy))
        else {
            return;
        };
        if ready.token.0 & BELL_BIT != 0 {
            view.mount.noticed();
        } else {
            view.mount.serve(now_ms());
            let now = Instant::now();
            let pause = self.served_at.map(|last| now.duration_since(last));
            self.demand = match pause {
                Some(pause) if pause < SOON => (self.demand + 1).min(MOST_DEMAND),
                Some(pause) if pause < PAUSE => self.demand,
                _ => 0,
            };
            self.served_at = Some(now);
        }
    }

    /// Whether the kernel asks one thing after the other.
    pub(super) fn is_in_demand(&self) -> bool {
        self.demand >= IN_DEMAND
    }

    /// Nothing came for a while.
    pub(super) fn is_idle(&mut self) {
        self.demand /= 2;
    }

    /// A deputy says something.
    pub(super) fn heard(&mut self, deputy: DeputyId, heard: Heard) {
        if let Some(view) = self.views.get_mut(&deputy) {
            view.inbox.hear(heard, &mut view.mount, self.kept.as_ref());
        }
    }

    /// A deputy says something without what the node has kept.
    pub(super) fn heard_short(&mut self, deputy: DeputyId, told: Short, cuts: Vec<Cut>) {
        if let Some(view) = self.views.get_mut(&deputy) {
            let kept = self.kept.as_mut();
            view.inbox.hear_short(told, cuts, &mut view.mount, kept);
        }
    }

    /// Has pieces of files kept from now on.
    pub(super) fn keep_with(&mut self, kept: Kept) {
        self.kept = Some(kept);
    }

    /// What is kept.
    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// The disk has something to say. Returns what becomes of opening the store.
    pub(super) fn hear_kept(&mut self) -> Option<Result<(), KeepError>> {
        let kept = self.kept.as_ref()?;
        let mut opened = None;
        for said in kept.said() {
            match said {
                Said::Opened => {
                    opened = Some(Ok(()));
                    for (deputy, view) in &self.views {
                        kept.ask_for_filter(*deputy, view.uid);
                    }
                }
                Said::Failed(error) => opened = Some(Err(error)),
                Said::Filter(deputy, filter) => {
                    if let Some(view) = self.views.get_mut(&deputy) {
                        view.inbox.keep(&mut view.mount, filter);
                    }
                }
                Said::Taken(deputy, ticket, pieces) => {
                    if let Some(view) = self.views.get_mut(&deputy) {
                        let mount = &mut view.mount;
                        if view.inbox.taken(ticket, &pieces, mount, kept) {
                            kept.ask_for_filter(deputy, view.uid);
                        }
                    }
                }
            }
        }
        opened
    }

    /// Starts a check of this user's views, or of all; [`Due::Checked`] follows for each. Returns
    /// how many.
    pub(super) fn check(&mut self, request: u64, uid: Option<u32>) -> usize {
        let mine = |view: &NodeView| uid.is_none_or(|uid| uid == view.uid);
        let views = self.views.iter().filter(|(_, view)| mine(view));
        let deputies: Vec<_> = views.map(|(deputy, view)| (*deputy, view.uid)).collect();
        for &(deputy, uid) in &deputies {
            let token = self.number();
            if let Some(view) = self.views.get_mut(&deputy) {
                let check = Waits::Check {
                    request,
                    deputy,
                    uid,
                };
                self.waiting.insert(token, check);
                view.mount.check(now_ms(), token);
            }
        }
        deputies.len()
    }

    /// Checks of views that are gone.
    fn take_vain_checks(&mut self) -> Vec<Due> {
        let is_vain = |waits: &Waits| match waits {
            Waits::Check { deputy, .. } => !self.views.contains_key(deputy),
            Waits::Launch(_) | Waits::Written { .. } => false,
        };
        let vain = self.waiting.extract_if(|_, waits| is_vain(waits));
        vain.filter_map(|(_, waits)| match waits {
            Waits::Check { request, uid, .. } => Some(checked(request, uid, 0, Vec::new())),
            Waits::Launch(_) | Waits::Written { .. } => None,
        })
        .collect()
    }

    /// What the views have done and know.
    pub(super) fn states(&self) -> Vec<ViewState> {
        self.views
            .values()
            .map(|view| {
                let counted = view.mount.statistics();
                ViewState {
                    uid: view.uid,
                    tasks: u32::try_from(view.tasks.len()).unwrap_or(u32::MAX),
                    requests: counted.requests,
                    questions: counted.questions,
                    changes: counted.changes,
                    bytes_read: view.inbox.bytes_read(),
                    bytes_kept: view.inbox.bytes_kept(),
                    bytes_written: counted.bytes_written,
                    files: counted.files,
                    content_bytes: counted.content_bytes,
                    handles: counted.handles,
                }
            })
            .collect()
    }
}

/// Where a task's program may be, as far as that can be told by its words.
fn places_of_program(spec: &LaunchSpec) -> Vec<Vec<u8>> {
    let Some(program) = spec.argv.first().filter(|program| !program.is_empty()) else {
        return Vec::new();
    };
    let join = |directory: &[u8]| [directory, b"/", program].concat();
    if program.starts_with(b"/") {
        return vec![program.clone()];
    }
    if program.contains(&b'/') {
        return vec![join(&spec.cwd)];
    }
    let mut variables = spec.env.iter();
    let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="));
    let directories = path.unwrap_or_default().split(|&byte| byte == b':');
    let absolute = directories.filter(|directory| directory.starts_with(b"/"));
    absolute.take(MAX_EXPECTED_PATHS).map(join).collect()
}

fn checked(request: u64, uid: u32, compared: u64, differences: Vec<String>) -> Due {
    let found = ViewCheck {
        uid,
        compared,
        differences,
    };
    Due::Checked { request, found }
}

fn show_names(mount: &mut ViewMount, shown: bool) {
    for one in STAND_INS {
        let target = shown.then_some(Path::new(one.target));
        mount.show_link(Path::new(one.path), target);
    }
}

fn token(slot: u64, bell: bool) -> Token {
    Token(VIEW_BIT | slot << 1 | if bell { BELL_BIT } else { 0 })
}

/// A process whose close fails: if it is ending, nobody will look at the close's result, and its
/// task has to be told. It waits for its answer meanwhile, so it is there to be looked at.
fn witness(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let flags: u64 = fields.split(' ').nth(FLAGS_FIELD)?.parse().ok()?;
    let is_ending = flags & EXITING != 0;
    let tag = UtsTag::of(i32::try_from(pid).ok()?).ok()?;
    is_ending.then_some(tag.number())
}

/// Milliseconds of any clock that does not go back.
fn now_ms() -> u64 {
    super::run::now_ms()
}
