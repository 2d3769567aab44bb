//! What the node keeps of the head's files on a disk of its own ([`wiglaf_keep`]), in the agent: a
//! thread, since disks are slow. What is wanted goes before what is to be kept, and what there is
//! no time to keep is not kept.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use wiglaf_keep::{Bounds, Digest, KeepError, Store};
use wiglaf_linux::signal::{SignalSet, block_signals};
use wiglaf_wire::agent::KeepingKey;
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::view::{Filter, MAX_ADDED, PieceDigest};

/// The directory, in one that others may write to.
pub(super) const DIRECTORY: &str = ".wiglaf-kept";
/// Of a file system, this part at most is taken, and as much is left free.
const PART: u64 = 10;
/// At most this is taken.
const MOST_BYTES: u64 = 16 << 30;
/// So much at most is left free: it is for others, who want it as it was.
const MOST_SPARE: u64 = 2 << 30;
/// What waits to be kept. More is not.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// The store, while it is open. Whoever needs its disk closes it.
#[derive(Clone, Default)]
pub(super) struct SharedStore(Arc<Mutex<Option<Store>>>);

impl fmt::Debug for SharedStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SharedStore")
            .finish_non_exhaustive()
    }
}

impl SharedStore {
    /// Whoever has it keeps the thread from its disk.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Store>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes it: from now on nothing is kept, and nothing found.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }
}

/// What the thread has to say.
#[derive(Debug)]
pub(super) enum Said {
    /// There is a store.
    Opened,
    /// There is none.
    Failed(KeepError),
    /// What it has for a deputy's user, about.
    Filter(DeputyId, Filter),
    /// What was asked for by a call of [`Kept::take`], as far as it is there.
    Taken(DeputyId, u64, Vec<Option<Vec<u8>>>),
}

#[derive(Debug)]
enum Order {
    Open(PathBuf, KeepingKey),
    Filter(DeputyId, u32),
    Take(DeputyId, u32, u64, Vec<PieceDigest>),
}

#[derive(Debug, Default)]
struct Orders {
    first: VecDeque<Order>,
    to_keep: VecDeque<(u32, Vec<u8>)>,
    to_keep_bytes: usize,
    said: Vec<Said>,
    is_over: bool,
}

#[derive(Debug)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
    bell: OwnedFd,
}

/// What is kept, for the agent's loop.
#[derive(Debug)]
pub(super) struct Kept {
    desk: Arc<Desk>,
    next_ticket: u64,
}

impl Kept {
    /// Starts the thread. Its number must not be that of a ghost, so this is only for an agent that
    /// knows its own.
    pub(super) fn start(store: SharedStore) -> io::Result<Kept> {
        let desk = Arc::new(Desk {
            orders: Mutex::default(),
            changed: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let of_thread = Arc::clone(&desk);
        let serve = move || {
            block_signals(SignalSet::ALL);
            serve(&of_thread, &store);
        };
        thread::Builder::new().name("kept".into()).spawn(serve)?;
        Ok(Kept {
            desk,
            next_ticket: 0,
        })
    }

    /// Readable when [`Kept::said`] has something.
    pub(super) fn bell(&self) -> impl AsFd {
        &self.desk.bell
    }

    /// Opens the store in this directory.
    pub(super) fn open(&self, directory: &Path, key: KeepingKey) {
        self.order(Order::Open(directory.to_owned(), key));
    }

    /// [`Said::Filter`] follows, if there is a store.
    pub(super) fn ask_for_filter(&self, deputy: DeputyId, user: u32) {
        self.order(Order::Filter(deputy, user));
    }

    /// Takes pieces out, by the names that the user's deputy has for them. [`Said::Taken`] follows
    /// with this number, in the order of the calls.
    pub(super) fn take(&mut self, deputy: DeputyId, user: u32, pieces: Vec<PieceDigest>) -> u64 {
        self.next_ticket += 1;
        self.order(Order::Take(deputy, user, self.next_ticket, pieces));
        self.next_ticket
    }

    /// Keeps a piece that the user's deputy has sent.
    pub(super) fn put(&self, user: u32, piece: &[u8]) {
        let mut orders = self.desk.lock();
        if orders.to_keep_bytes + piece.len() <= MAX_WAITING_BYTES {
            orders.to_keep_bytes += piece.len();
            orders.to_keep.push_back((user, piece.to_vec()));
            self.desk.changed.notify_one();
        }
    }

    /// What the thread has said since.
    pub(super) fn said(&self) -> Vec<Said> {
        // Only wakes us.
        let _ = rustix::io::read(&self.desk.bell, &mut [0; 8]);
        std::mem::take(&mut self.desk.lock().said)
    }

    fn order(&self, order: Order) {
        self.desk.lock().first.push_back(order);
        self.desk.changed.notify_one();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.desk.lock().is_over = true;
        self.desk.changed.notify_one();
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, said: Said) {
        self.lock().said.push(said);
        // Full is as good.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

fn serve(desk: &Desk, store: &SharedStore) {
    let mut orders = desk.lock();
    while !orders.is_over {
        if let Some(order) = orders.first.pop_front() {
            drop(orders);
            if let Some(said) = carry_out(order, store) {
                desk.say(said);
            }
            orders = desk.lock();
        } else if let Some((user, piece)) = orders.to_keep.pop_front() {
            orders.to_keep_bytes -= piece.len();
            drop(orders);
            if let Some(store) = &mut *store.lock() {
                // A full or failing disk: what is not kept is asked for again.
                let _ = store.put(user, &piece);
            }
            orders = desk.lock();
        } else {
            let waited = desk.changed.wait(orders);
            orders = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn carry_out(order: Order, store: &SharedStore) -> Option<Said> {
    let mut store = store.lock();
    match order {
        Order::Open(directory, key) => {
            *store = None;
            match open(&directory, &key) {
                Ok(opened) => {
                    *store = Some(opened);
                    Some(Said::Opened)
                }
                Err(error) => Some(Said::Failed(error)),
            }
        }
        Order::Filter(deputy, user) => {
            let store = store.as_ref()?;
            let mut filter = Filter::with_room(store.digests(user).count() + MAX_ADDED);
            store
                .digests(user)
                .for_each(|digest| filter.insert(&digest.0));
            Some(Said::Filter(deputy, filter))
        }
        Order::Take(deputy, user, ticket, pieces) => {
            let take = |piece| store.as_mut()?.get(user, &Digest(piece));
            let pieces = pieces.into_iter().map(take).collect();
            Some(Said::Taken(deputy, ticket, pieces))
        }
    }
}

fn open(directory: &Path, KeepingKey(key): &KeepingKey) -> Result<Store, KeepError> {
    let around = directory.parent().unwrap_or(directory);
    let space = rustix::fs::statvfs(around).map_err(|errno| KeepError::Disk {
        path: around.to_owned(),
        source: errno.into(),
    })?;
    let part = space.f_blocks.saturating_mul(space.f_frsize) / PART;
    let bounds = Bounds {
        bytes: part.min(MOST_BYTES),
        spare: part.min(MOST_SPARE),
    };
    Store::open(directory, key, bounds)
}
