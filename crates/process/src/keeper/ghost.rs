//! One ghost, as the keeper sees it: a pure state machine. What the kernel and the head say goes
//! in, what the keeper has to do comes out.

use wiglaf_linux::ghost::{MAX_COMPLAINT, Order};
use wiglaf_wire::keeper::{GhostEnd, GhostMode};

const SIGILL: u8 = 4;
const SIGTRAP: u8 = 5;
const SIGBUS: u8 = 7;
const SIGFPE: u8 = 8;
pub(super) const SIGKILL: u8 = 9;
const SIGSEGV: u8 = 11;
pub(super) const SIGCONT: u8 = 18;
pub(super) const SIGSTOP: u8 = 19;
pub(super) const SIGTSTP: u8 = 20;
pub(super) const SIGTTIN: u8 = 21;
pub(super) const SIGTTOU: u8 = 22;
const SIGSYS: u8 = 31;

/// Where a ghost stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Traced, but not yet known to be what the head said.
    Seizing,
    /// As the remote process runs.
    Running,
    /// Told to stop itself by this signal, because the remote process has.
    Stopping(u8),
    /// In a group stop.
    Stopped(u8),
    /// Told to end itself.
    Finishing(GhostEnd),
    /// Died unasked: a zombie that its parent can't see until the head has said `Finish` (P1).
    Dead(GhostEnd),
    /// Reaped.
    Gone,
}

/// Who sent a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// The terminal, or its hang-up.
    Kernel,
    /// The ghost, because the keeper told it to.
    Itself,
    /// The keeper.
    Keeper,
    /// Anybody else.
    Other,
    /// The ghost's own instruction went wrong.
    Fault,
}

impl Sender {
    /// From a `siginfo_t`; `code` is `si_code`.
    pub(super) fn of(signal: u8, code: i32, sender: i32, ghost: i32, keeper: i32) -> Sender {
        const SI_KERNEL: i32 = 0x80;
        let faults = matches!(
            signal,
            SIGILL | SIGTRAP | SIGBUS | SIGFPE | SIGSEGV | SIGSYS
        );
        match code {
            1.. if faults => Sender::Fault,
            SI_KERNEL => Sender::Kernel,
            ..=0 if sender == ghost => Sender::Itself,
            ..=0 if sender == keeper => Sender::Keeper,
            _ => Sender::Other,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Its uids and start time are the ones that the head named (S3).
    Seized,
    /// A signal is about to be delivered; the ghost waits for the keeper's word.
    Delivery(u8, Sender),
    /// It is in a group stop.
    GroupStop(u8),
    /// Any other ptrace stop: a group stop has ended.
    Trap,
    /// It is a zombie.
    Died(GhostEnd),
    /// `ToKeeper::Finish`.
    Finish(GhostEnd, Option<String>),
    /// `ToKeeper::Stop`.
    Stop(u8),
    /// `ToKeeper::Continue`.
    Continue,
    /// It did not end in time.
    Overdue,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// PTRACE_CONT with this signal, or 0.
    Resume(u8),
    /// PTRACE_LISTEN: leave it in its group stop.
    Listen,
    /// Send it a signal.
    Kill(u8),
    /// Write to its control socket.
    Send(Packet),
    /// Reap it as its tracer; from now on its parent sees the status.
    Reap,
    /// Tell the head.
    Report(Report),
}

/// A message to the ghost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Mode(GhostMode),
    Text(String),
    Exit(u8),
    Die(u8),
    Stop(u8),
    Raw,
}

impl Packet {
    pub(super) fn bytes(&self) -> Vec<u8> {
        const AROUND: usize = "wiglaf: \n".len();
        let order = match self {
            Packet::Mode(mode) => Order::Mode {
                pump: mode.pump,
                raw: mode.raw,
            },
            Packet::Text(text) => {
                let end = text.floor_char_boundary(MAX_COMPLAINT - AROUND);
                return Order::Complain(&format!("wiglaf: {}\n", &text[..end])).encode();
            }
            Packet::Exit(code) => Order::Exit(*code),
            Packet::Die(signal) => Order::Die(*signal),
            Packet::Stop(signal) => Order::Stop(*signal),
            Packet::Raw => Order::RawAgain,
        };
        order.encode()
    }
}

/// What the head is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Seized,
    Signal { signal: u8, from_kernel: bool },
    Stopped(u8),
    Continued,
    Died(GhostEnd),
    Gone,
}

/// An event that can't happen in this state: a mistake of ours or of the head's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ghost that is {state:?} can't take {event:?}")]
pub(super) struct InvalidTransition {
    state: State,
    event: Event,
}

/// The machine.
#[derive(Clone, Debug)]
pub(super) struct Ghost {
    state: State,
    mode: GhostMode,
}

impl Ghost {
    pub(super) fn new(mode: GhostMode) -> Ghost {
        Ghost {
            state: State::Seizing,
            mode,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Takes one step.
    pub(super) fn step(&mut self, event: Event) -> Result<Vec<Effect>, InvalidTransition> {
        use Effect::{Listen, Reap, Resume, Send};
        use Event as E;
        use State as S;
        let report = Effect::Report;
        let (next, effects) = match (self.state, event) {
            (S::Seizing, E::Seized) => (
                S::Running,
                vec![Send(Packet::Mode(self.mode)), report(Report::Seized)],
            ),

            (S::Finishing(end), E::Delivery(signal, sender)) => (
                S::Finishing(end),
                vec![delivery_at_the_end(end, signal, sender)],
            ),
            (S::Running | S::Stopping(_) | S::Stopped(_), E::Delivery(signal, sender)) => {
                self.delivery(signal, sender)
            }

            (S::Running | S::Stopping(_), E::GroupStop(signal)) => (
                S::Stopped(signal),
                vec![Listen, report(Report::Stopped(signal))],
            ),
            (S::Stopped(_), E::GroupStop(signal)) => (S::Stopped(signal), vec![Listen]),
            (state @ S::Finishing(_), E::GroupStop(_) | E::Trap) => (state, vec![Resume(0)]),
            (S::Stopped(_), E::Trap) => (S::Running, vec![Resume(0)]),
            (state @ (S::Running | S::Stopping(_)), E::Trap) => (state, vec![Resume(0)]),

            (S::Seizing | S::Running | S::Stopping(_) | S::Stopped(_), E::Died(end)) => {
                (S::Dead(end), vec![report(Report::Died(end))])
            }
            (S::Finishing(_), E::Died(_)) => (S::Gone, vec![Reap, report(Report::Gone)]),

            (S::Running | S::Stopping(_), E::Finish(end, text)) => {
                (S::Finishing(end), ending(end, text))
            }
            (S::Stopped(_), E::Finish(end, text)) => {
                let mut effects = ending(end, text);
                effects.push(Effect::Kill(SIGCONT));
                (S::Finishing(end), effects)
            }
            // A restarted head says again what it may have said before.
            (state @ S::Finishing(_), E::Finish(..)) => (state, vec![]),
            (S::Dead(_), E::Finish(..)) => (S::Gone, vec![Reap, report(Report::Gone)]),
            (state @ S::Finishing(_), E::Overdue) => (state, vec![Effect::Kill(SIGKILL)]),

            (S::Stopping(old), E::Stop(new)) if old == new => (S::Stopping(old), vec![]),
            (S::Running | S::Stopping(_), E::Stop(signal)) => {
                (S::Stopping(signal), vec![Send(Packet::Stop(signal))])
            }
            (S::Running | S::Stopping(_) | S::Stopped(_), E::Continue) => {
                (S::Running, vec![Effect::Kill(SIGCONT)])
            }
            (state @ S::Stopped(_), E::Stop(_)) => (state, vec![]),
            (state @ (S::Finishing(_) | S::Dead(_)), E::Stop(_) | E::Continue) => (state, vec![]),

            (state, event) => return Err(InvalidTransition { state, event }),
        };
        self.state = next;
        Ok(effects)
    }

    /// A signal while the remote process lives.
    fn delivery(&self, signal: u8, sender: Sender) -> (State, Vec<Effect>) {
        use Effect::{Report as Tell, Resume};
        // A delivery means that it runs, whatever was thought before.
        let state = match self.state {
            State::Stopping(wanted) => State::Stopping(wanted),
            _ => State::Running,
        };
        let told = Tell(Report::Signal {
            signal,
            from_kernel: sender == Sender::Kernel,
        });
        match (signal, sender) {
            // Swallowed, the faulting instruction would run again without end.
            (_, Sender::Fault) => (state, vec![Effect::Kill(SIGKILL)]),
            (SIGCONT, Sender::Keeper) => (state, self.continued()),
            (SIGCONT, _) => {
                let mut effects = self.continued();
                effects.push(Tell(Report::Continued));
                (State::Running, effects)
            }
            // The stop that the keeper asked for; whoever sent this one, the kernel may have
            // merged it with the ghost's own, so it is let through.
            (_, Sender::Itself) if state == State::Stopping(signal) => {
                (State::Running, vec![Resume(signal)])
            }
            (_, _) if state == State::Stopping(signal) => (state, vec![Resume(signal), told]),
            // Overtaken by a `Continue` or `Finish`: the ghost stops or ends for nobody.
            (_, Sender::Itself) => (state, vec![Resume(0)]),
            (SIGSTOP, _) => (state, vec![Resume(SIGSTOP), told]),
            (SIGTTIN | SIGTTOU, _) => (state, vec![Resume(signal)]),
            _ => (state, vec![Resume(0), told]),
        }
    }

    fn continued(&self) -> Vec<Effect> {
        let mut effects = vec![Effect::Resume(SIGCONT)];
        if self.mode.raw {
            // The shell has had the terminal meanwhile.
            effects.push(Effect::Send(Packet::Raw));
        }
        effects
    }
}

/// What makes it end; a SIGKILL needs no help from the ghost, the others let it put its terminal
/// right first.
fn ending(end: GhostEnd, text: Option<String>) -> Vec<Effect> {
    let mut effects: Vec<_> = text
        .into_iter()
        .map(|text| Effect::Send(Packet::Text(text)))
        .collect();
    effects.push(match end {
        GhostEnd::Exit(code) => Effect::Send(Packet::Exit(code)),
        GhostEnd::Signal(SIGKILL) => Effect::Kill(SIGKILL),
        GhostEnd::Signal(signal) => Effect::Send(Packet::Die(signal)),
    });
    effects
}

/// The remote process is gone: nobody is left to be told of signals.
fn delivery_at_the_end(end: GhostEnd, signal: u8, sender: Sender) -> Effect {
    match sender {
        Sender::Fault => Effect::Kill(SIGKILL),
        _ if end == GhostEnd::Signal(signal) => Effect::Resume(signal),
        _ => Effect::Resume(0),
    }
}

#[cfg(test)]
mod tests;
