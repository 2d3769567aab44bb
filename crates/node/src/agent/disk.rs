//! The disks of a machine that booted from the network: it has no other system that could have a
//! claim on them.
//!
//! What is laid out is used from the agent's start on; the rest is done when the head says so, by
//! a thread, since disks may be slow. [`look`] says what there is, [`work`] changes it, and what is
//! to be changed is [`crate::disk`]'s to decide.

mod look;
mod medium;
mod mkfs;
mod work;

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use wiglaf_linux::signal::{SignalSet, block_signals};
use wiglaf_wire::disk::{DiskAnswer, DiskOrder};

use super::kept::SharedStore;
use crate::disk::Cluster;
use crate::root::OwnDirectories;
use work::Ground;

/// Orders that may wait for the one that is carried out.
const MAX_WAITING: usize = 8;
/// Disks may need so long until the kernel has found them.
const LATE_DISKS: Duration = Duration::from_secs(60);
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// A question of the head's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    request: u64,
    losses: u64,
}

/// What the thread has to say.
#[derive(Debug)]
pub(super) enum Said {
    /// The answer to an order of the head's.
    Answer(Asked, DiskAnswer),
    /// These directories have a disk now.
    Mounted(Vec<&'static str>),
    /// For the node's log.
    Line(String),
}

/// The node's disks.
#[derive(Debug)]
pub(super) struct Disks {
    /// Until there is a thread.
    ground: Option<Ground>,
    orders: Option<SyncSender<(Asked, DiskOrder)>>,
    /// How often the connection to the head was lost: another head may give its questions the same
    /// numbers.
    losses: u64,
    said: (Sender<Said>, Receiver<Said>),
    bell: OwnedFd,
}

impl Disks {
    /// Uses what is laid out for this cluster, and shows it in `own`. Says what came of it. `boot`
    /// is where media come from, `store` what is kept on scratch.
    pub(super) fn begin(
        authority: &[u8; 32],
        boot: Option<SocketAddrV4>,
        own: &mut OwnDirectories,
        store: SharedStore,
    ) -> Result<(Disks, Vec<String>), Errno> {
        let cluster = Cluster::new(authority);
        let mut ground = Ground::new(cluster, boot, own.disk_places(), store);
        let used = ground.use_ours();
        for name in used.mounted {
            *own = own.with_disk(name);
        }
        let disks = Disks {
            ground: Some(ground),
            orders: None,
            losses: 0,
            said: channel(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok((disks, used.lines))
    }

    /// Readable when [`Disks::said`] has something.
    pub(super) fn bell(&self) -> impl AsFd {
        &self.bell
    }

    /// Starts the thread, if it does not run yet. Its number must not be that of a ghost, so this
    /// is only for an agent that knows its own.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let Some(ground) = self.ground.take() else {
            return Ok(());
        };
        let (orders, received) = sync_channel(MAX_WAITING);
        let bell = rustix::io::fcntl_dupfd_cloexec(&self.bell, 0)?;
        let teller = Teller {
            said: self.said.0.clone(),
            bell,
        };
        let serve = move || {
            block_signals(SignalSet::ALL);
            serve(ground, &received, &teller);
        };
        thread::Builder::new().name("disks".into()).spawn(serve)?;
        self.orders = Some(orders);
        Ok(())
    }

    /// The connection to the head is lost: it does not want answers any more.
    pub(super) fn forget_questions(&mut self) {
        self.losses += 1;
    }

    /// The number of a question, if somebody still wants its answer.
    pub(super) fn is_wanted(&self, asked: Asked) -> Option<u64> {
        (asked.losses == self.losses).then_some(asked.request)
    }

    /// Has something done; an answer follows.
    pub(super) fn order(&self, request: u64, order: DiskOrder) {
        let asked = Asked {
            request,
            losses: self.losses,
        };
        let is_taken = self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.try_send((asked, order)).is_ok());
        if !is_taken {
            let answer = DiskAnswer::refused("it is busy with its disks: try again later");
            // The receiver is ours.
            let _ = self.said.0.send(Said::Answer(asked, answer));
            ring(&self.bell);
        }
    }

    /// What the thread has said since.
    pub(super) fn said(&self) -> Vec<Said> {
        // Only wakes us.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.said.1.try_iter().collect()
    }
}

struct Teller {
    said: Sender<Said>,
    bell: OwnedFd,
}

impl Teller {
    fn tell(&self, said: Said) {
        // Nobody listens any more when the agent ends, and with it this thread.
        let _ = self.said.send(said);
        ring(&self.bell);
    }
}

fn ring(bell: &OwnedFd) {
    // Full is as good.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn serve(mut ground: Ground, orders: &Receiver<(Asked, DiskOrder)>, teller: &Teller) {
    let began = Instant::now();
    loop {
        let received = if began.elapsed() < LATE_DISKS {
            orders.recv_timeout(LOOK_PERIOD)
        } else {
            orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match received {
            Ok((asked, order)) => {
                let (mut answer, used) = ground.carry_out(order);
                answer.bound();
                // First, so that whoever has the answer finds it so.
                tell(used, teller);
                teller.tell(Said::Answer(asked, answer));
            }
            Err(RecvTimeoutError::Timeout) => tell(ground.use_ours(), teller),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn tell(used: work::Used, teller: &Teller) {
    if !used.mounted.is_empty() {
        teller.tell(Said::Mounted(used.mounted));
    }
    for line in used.lines {
        teller.tell(Said::Line(line));
    }
}
