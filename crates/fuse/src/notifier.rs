//! A thread that tells the kernel what may have to wait there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::EventfdFlags;

use crate::outbox::{Outbox, Step};
use crate::{Device, Notification};

/// Sends notifications in a thread of its own, in their order, so that whoever serves the mount
/// never waits for the kernel, which may be waiting for a reply. Of several that are the same and
/// wait, one is sent.
///
/// The thread ends after this is dropped; it is not waited for, since what it waits for may be
/// an answer. [`unmount`](crate::unmount) sets it free. A process that is killed while its thread
/// waits is not quite dead, nor are those who wait for its answers, until somebody else forces
/// the unmount: the thread keeps the device open.
#[derive(Debug)]
pub struct Notifier {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Rings when a barrier is reached.
    bell: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    outbox: Outbox,
    ended: bool,
}

impl Notifier {
    /// Starts the thread.
    pub fn start(device: Arc<Device>) -> std::io::Result<Notifier> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            bell: rustix::event::eventfd(0, flags)?,
        });
        let its = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("wiglaf: notify".to_owned())
            .spawn(move || its.run(&device))?;
        Ok(Notifier { shared })
    }

    /// Has the kernel told. With `retry`, `Attributes` and `Content` of a node that it does not
    /// know are told again during some 20 ms, since the reply that makes it known may not have
    /// been taken in; other things go on meanwhile.
    pub fn send(&self, notification: Notification, retry: bool) {
        if self.shared.lock().outbox.send(notification, retry) {
            self.shared.changed.notify_one();
        }
    }

    /// Once everything that was sent before has been told, or given up, `token` is among what
    /// [`done`](Self::done) returns.
    pub fn barrier(&self, token: u64) {
        self.shared.lock().outbox.barrier(token);
        self.shared.changed.notify_one();
    }

    /// Tokens of the barriers that have been reached, each once, in their order. Silences the
    /// bell.
    pub fn done(&self) -> Vec<u64> {
        // Silenced first: a token that comes in between rings again.
        let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
        self.shared.lock().outbox.take_done()
    }

    /// Readable when there is something in [`done`](Self::done).
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// Whether all that was sent has been told, and all barriers are reached.
    pub fn is_idle(&self) -> bool {
        self.shared.lock().outbox.is_idle()
    }

    /// How many notifications the kernel has refused so far for another reason than that it does
    /// not know the node or name, or is gone. What it has cached may then be wrong.
    pub fn failures(&self) -> u64 {
        self.shared.lock().outbox.failures()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, device: &Device) {
        let mut state = self.lock();
        while !state.ended {
            match state.outbox.next(Instant::now()) {
                Step::Tell(attempt) => {
                    drop(state);
                    let result = device.notify(&attempt.notification);
                    state = self.lock();
                    state.outbox.told(attempt, result, Instant::now());
                    self.ring(&state);
                }
                Step::WaitUntil(then) => {
                    self.ring(&state);
                    state = self.wait(state, then);
                }
            }
        }
    }

    fn ring(&self, state: &State) {
        if state.outbox.has_done() {
            // It can fail only when it has been ringing for 2^64 times.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        then: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(then) = then else {
            let woken = self.changed.wait(state);
            return woken.unwrap_or_else(PoisonError::into_inner);
        };
        let time = then.saturating_duration_since(Instant::now());
        let woken = self.changed.wait_timeout(state, time);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}
