//! What is to be told to the kernel, in which order, and how often. Pure: the thread around it is
//! the [`Notifier`](crate::Notifier).

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::Notification;

/// How long after one attempt the next follows, where the kernel did not know the node: the reply
/// that makes it known may be on its way through the process that asked.
const RETRY_DELAYS: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(3),
    Duration::from_millis(6),
    Duration::from_millis(10),
];

/// Notifications that wait, and barriers among them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Item>,
    /// What is in the queue and makes another like it needless, with whether it is retried.
    pending: HashSet<(Notification, bool)>,
    /// What the kernel did not know the node of.
    retries: Vec<Attempt>,
    /// Barriers that only retries keep back, each with its place in the order.
    waiting: VecDeque<(u64, u64)>,
    /// Whether an attempt is under way.
    busy: bool,
    /// Items taken from the queue; the last one's place in the order.
    taken: u64,
    done: Vec<u64>,
    failures: u64,
}

#[derive(Debug)]
enum Item {
    Tell(Notification, bool),
    Barrier(u64),
}

/// A notification to be told now.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) notification: Notification,
    /// Its place in the order.
    number: u64,
    /// Delays that have been waited, or none if it is not to be retried.
    delays: Option<usize>,
    due: Instant,
}

/// What the thread has to do.
#[derive(Debug)]
pub(crate) enum Step {
    Tell(Attempt),
    /// Something may be done then, or when something is sent.
    WaitUntil(Option<Instant>),
}

impl Outbox {
    /// Whether there is anything new to do.
    pub(crate) fn send(&mut self, notification: Notification, retry: bool) -> bool {
        match &notification {
            Notification::Store { node, .. } => {
                // What is told of the node from now on must be told after this.
                let node = *node;
                for retry in [false, true] {
                    self.pending
                        .remove(&(Notification::Content { node }, retry));
                    self.pending
                        .remove(&(Notification::Attributes { node }, retry));
                }
            }
            Notification::Attributes { node } => {
                let more = Notification::Content { node: *node };
                if self.covers(&more, retry) || self.covers(&notification, retry) {
                    return false;
                }
                self.pending.insert((notification.clone(), retry));
            }
            _ => {
                if self.covers(&notification, retry) {
                    return false;
                }
                self.pending.insert((notification.clone(), retry));
            }
        }
        self.queue.push_back(Item::Tell(notification, retry));
        true
    }

    pub(crate) fn barrier(&mut self, token: u64) {
        self.queue.push_back(Item::Barrier(token));
    }

    /// The next thing to tell; [`told`](Self::told) follows. Barriers may be reached by this.
    pub(crate) fn next(&mut self, now: Instant) -> Step {
        if let Some(due) = self.retries.iter().position(|retry| retry.due <= now) {
            self.busy = true;
            return Step::Tell(self.retries.remove(due));
        }
        while let Some(item) = self.queue.pop_front() {
            self.taken += 1;
            match item {
                Item::Barrier(token) => {
                    self.waiting.push_back((self.taken, token));
                    self.reach_barriers();
                }
                Item::Tell(notification, retry) => {
                    let key = (notification, retry);
                    self.pending.remove(&key);
                    let notification = key.0;
                    let may = retry
                        && matches!(
                            notification,
                            Notification::Attributes { .. } | Notification::Content { .. }
                        );
                    self.busy = true;
                    return Step::Tell(Attempt {
                        notification,
                        number: self.taken,
                        delays: may.then_some(0),
                        due: now,
                    });
                }
            }
        }
        Step::WaitUntil(self.retries.iter().map(|retry| retry.due).min())
    }

    /// What came of it.
    pub(crate) fn told(&mut self, attempt: Attempt, result: Result<(), Errno>, now: Instant) {
        self.busy = false;
        match result {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                let waited = attempt.delays.unwrap_or(RETRY_DELAYS.len());
                if let Some(delay) = RETRY_DELAYS.get(waited) {
                    self.retries.push(Attempt {
                        delays: Some(waited + 1),
                        due: now + *delay,
                        ..attempt
                    });
                }
            }
            Err(Errno::NODEV | Errno::CONNABORTED) => self.give_up(),
            Err(_) => self.failures += 1,
        }
        self.reach_barriers();
    }

    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    pub(crate) fn take_done(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.done)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.busy && self.retries.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    fn covers(&self, notification: &Notification, retry: bool) -> bool {
        self.pending.contains(&(notification.clone(), true))
            || (!retry && self.pending.contains(&(notification.clone(), false)))
    }

    fn reach_barriers(&mut self) {
        let first = self.retries.iter().map(|retry| retry.number).min();
        while let Some(&(number, token)) = self.waiting.front()
            && first.is_none_or(|first| number < first)
        {
            self.waiting.pop_front();
            self.done.push(token);
        }
    }

    /// There is no kernel to tell any more.
    fn give_up(&mut self) {
        self.retries.clear();
        self.pending.clear();
        for item in self.queue.drain(..) {
            if let Item::Barrier(token) = item {
                self.waiting.push_back((self.taken, token));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN_UP_AFTER: Duration = Duration::from_millis(20);

    fn content(node: u64) -> Notification {
        Notification::Content { node }
    }

    fn attributes(node: u64) -> Notification {
        Notification::Attributes { node }
    }

    fn store(node: u64) -> Notification {
        Notification::Store {
            node,
            offset: 0,
            data: vec![1],
        }
    }

    fn name(name: &[u8]) -> Notification {
        Notification::Entry {
            parent: 1,
            name: name.to_vec(),
        }
    }

    /// Tells everything that can be told now.
    fn run(
        outbox: &mut Outbox,
        now: Instant,
        mut kernel: impl FnMut(&Notification) -> Result<(), Errno>,
    ) -> (Vec<Notification>, Option<Instant>) {
        let mut told = Vec::new();
        loop {
            match outbox.next(now) {
                Step::Tell(attempt) => {
                    assert!(!outbox.is_idle());
                    let result = kernel(&attempt.notification);
                    told.push(attempt.notification.clone());
                    outbox.told(attempt, result, now);
                }
                Step::WaitUntil(then) => return (told, then),
            }
        }
    }

    #[test]
    fn order_is_kept_and_the_same_is_told_once() {
        let mut outbox = Outbox::default();
        let sent = [content(1), name(b"a"), content(1), name(b"b"), name(b"a")];
        let new: Vec<bool> = sent
            .into_iter()
            .map(|notification| outbox.send(notification, false))
            .collect();
        assert_eq!(new, [true, true, false, true, false]);
        outbox.barrier(7);
        assert!(!outbox.has_done());
        let (told, then) = run(&mut outbox, Instant::now(), |_| Ok(()));
        assert_eq!(told, [content(1), name(b"a"), name(b"b")]);
        assert_eq!(then, None);
        assert_eq!(outbox.take_done(), [7]);
        assert!(outbox.is_idle() && outbox.take_done().is_empty());
        assert!(outbox.send(content(1), false), "it was told, so it is new");
    }

    #[test]
    fn pages_include_attributes_but_not_the_other_way_round() {
        let mut outbox = Outbox::default();
        assert!(outbox.send(attributes(1), false));
        assert!(outbox.send(content(1), false));
        assert!(!outbox.send(attributes(1), false));
        assert!(outbox.send(attributes(2), false));
    }

    #[test]
    fn what_is_retried_is_not_left_to_what_is_not() {
        let mut outbox = Outbox::default();
        assert!(outbox.send(content(1), false));
        assert!(outbox.send(content(1), true));
        assert!(!outbox.send(content(1), false));
        assert!(!outbox.send(attributes(1), true));
    }

    #[test]
    fn what_follows_a_store_is_told_after_it() {
        let mut outbox = Outbox::default();
        let sent = [content(1), store(1), content(1), store(2), content(1)];
        for notification in sent {
            outbox.send(notification, true);
        }
        let (told, _) = run(&mut outbox, Instant::now(), |_| Ok(()));
        assert_eq!(told, [content(1), store(1), content(1), store(2)]);
    }

    #[test]
    fn an_unknown_node_is_told_again_while_others_go_on() {
        let mut outbox = Outbox::default();
        outbox.send(content(1), true);
        outbox.barrier(1);
        outbox.send(content(2), true);
        outbox.barrier(2);
        let start = Instant::now();
        let mut known = false;
        let unknown = |notification: &Notification| match notification {
            Notification::Content { node: 1 } => Err(Errno::NOENT),
            _ => Ok(()),
        };
        let (told, then) = run(&mut outbox, start, unknown);
        assert_eq!(told, [content(1), content(2)]);
        let then = then.expect("another attempt");
        assert!(then > start && outbox.take_done().is_empty() && !outbox.is_idle());
        let (told, _) = run(&mut outbox, then, |_| {
            known = true;
            Ok(())
        });
        assert!(known && told == [content(1)]);
        assert_eq!(outbox.take_done(), [1, 2]);
        assert!(outbox.is_idle() && outbox.failures() == 0);
    }

    #[test]
    fn a_barrier_does_not_wait_for_what_was_sent_after_it() {
        let mut outbox = Outbox::default();
        outbox.barrier(1);
        outbox.send(content(1), true);
        run(&mut outbox, Instant::now(), |_| Err(Errno::NOENT));
        assert_eq!(outbox.take_done(), [1]);
        assert!(!outbox.is_idle());
    }

    #[test]
    fn what_stays_unknown_is_given_up() {
        let mut outbox = Outbox::default();
        outbox.send(content(1), true);
        outbox.send(content(2), false);
        outbox.send(name(b"a"), true);
        outbox.send(store(3), true);
        outbox.barrier(1);
        let start = Instant::now();
        let (mut now, mut attempts) = (start, 0);
        loop {
            let (told, then) = run(&mut outbox, now, |_| Err(Errno::NOENT));
            attempts += told.len();
            match then {
                Some(then) => now = then,
                None => break,
            }
        }
        assert_eq!(attempts, 4 + RETRY_DELAYS.len());
        assert_eq!(now - start, GIVEN_UP_AFTER);
        assert_eq!(outbox.take_done(), [1]);
    }

    #[test]
    fn a_kernel_that_is_gone_reaches_every_barrier() {
        let mut outbox = Outbox::default();
        outbox.send(content(1), true);
        outbox.barrier(1);
        outbox.send(content(2), true);
        outbox.barrier(2);
        let (told, then) = run(&mut outbox, Instant::now(), |_| Err(Errno::NODEV));
        assert_eq!((told.len(), then), (1, None));
        assert_eq!(outbox.take_done(), [1, 2]);
        assert!(outbox.is_idle());
        assert!(outbox.send(content(2), true));
    }

    #[test]
    fn other_refusals_are_counted() {
        let mut outbox = Outbox::default();
        outbox.send(content(1), true);
        outbox.barrier(1);
        run(&mut outbox, Instant::now(), |_| Err(Errno::NOMEM));
        assert_eq!((outbox.failures(), outbox.take_done()), (1, vec![1]));
    }
}
