//! PID 1's life once there is a network: one agent after the other.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::dup2_stderr;
use rustix::system::{RebootCommand, reboot};
use wiglaf_linux::process::{
    ChildChange, ChildState, ExitStatus, pidfd_send_signal, wait_any_child,
};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_wire::agent::PowerAction;

use super::hotplug::Hotplug;
use super::journal::Journal;
use super::modules::{Loaded, Modules};
use super::network::{Home, Network};
use super::report::Report;
use super::rootfs::{self, System};
use super::{card, now_ms, power};
use crate::agent::{AgentConfig, Departure, Trust, live, start_apart};
use crate::root::{Files, TaskRoot, ViewOptions};

const SIGHUP: i32 = 1;
/// The kernel's word for Ctrl-Alt-Del.
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGKILL: i32 = 9;

/// What an agent ends with, beside 0: it left; and anything else: it failed.
const EXIT_REBOOT: i32 = 100;
const EXIT_KEXEC: i32 = 102;
const EXIT_HALT: i32 = 103;
const EXIT_POWER_OFF: i32 = 104;

/// Wait before the next agent; it doubles while none lives long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How long an agent may take to end its tasks and leave when somebody is at the keyboard.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
/// How long a system's own init may take to end the machine: its services have 90 s (systemd's
/// `DefaultTimeoutStopSec`).
const INIT_WAIT: Duration = Duration::from_secs(100);
/// Between two times that it is asked.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A system that ends everything ends the machine, too. If it does not, the node comes back.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(120);
const MAX_LINE_BYTES: usize = 4096;
const LINE_CHUNK: usize = 4096;
const CHUNKS_PER_TURN: usize = 16;

struct Agent {
    pid: i32,
    process: OwnedFd,
    lines: Lines,
    born: Instant,
}

/// What a process writes, by lines.
struct Lines {
    pipe: OwnedFd,
    partial: Vec<u8>,
}

/// PID 1, or its child where a system's own init is that.
pub(super) struct Supervisor {
    pub(super) journal: Journal,
    pub(super) modules: Modules,
    pub(super) hotplug: Option<Hotplug>,
    pub(super) network: Network,
    pub(super) home: Home,
    pub(super) authority: [u8; 32],
    pub(super) system: Option<System>,
}

/// What is to become of the machine, unless its agent says it.
struct Plan {
    action: PowerAction,
    /// When the agent is not waited for any more.
    until: Instant,
}

impl Supervisor {
    /// Runs agents until one of them, or somebody at the keyboard, ends the machine.
    ///
    /// # Errors
    /// The kernel gives no signals or pipes: nothing can be done here.
    pub(super) fn run(&mut self) -> Result<(), Errno> {
        let handled = SignalSet::of(&[SIGCHLD, SIGINT, SIGTERM]);
        block_signals(handled);
        let signals = SignalFd::new(handled)?;
        if !self.is_beside_init() {
            // From now on a SIGINT: tasks are ended in order first.
            let _ = reboot(RebootCommand::CadOff);
        }
        if self.hotplug.is_none() {
            // Without it, what is plugged in later has no driver.
            self.hotplug = Hotplug::open().ok();
            let mut loaded = Loaded::default();
            // What came before that.
            self.modules.load_for_devices(&mut loaded);
            loaded.tell(&mut self.journal);
        }
        let mut agent: Option<Agent> = None;
        let mut pause = FIRST_PAUSE;
        let mut start_at = Instant::now();
        let mut plan: Option<Plan> = None;
        loop {
            if agent.is_none() {
                if let Some(plan) = plan.take() {
                    self.end(plan.action);
                }
                if rootfs::is_ending() {
                    start_at = Instant::now() + LAST_PAUSE;
                }
                if start_at <= Instant::now() {
                    match self.start() {
                        Ok(started) => agent = Some(started),
                        Err(errno) => {
                            self.journal
                                .say(format_args!("can't start the agent: {errno}; trying again"));
                            start_at = Instant::now() + pause;
                        }
                    }
                }
            }
            if let (Some(plan), Some(agent)) = (&plan, &agent)
                && plan.until <= Instant::now()
            {
                let _ = pidfd_send_signal(&agent.process, SIGKILL);
            }
            let next_start = agent.is_none().then_some(start_at);
            let deadline = next_start.or(plan.as_ref().map(|plan| plan.until));
            self.wait(&signals, agent.as_ref(), deadline)?;

            while let Some(signal) = signals.read()? {
                if matches!(signal.signo, SIGINT | SIGTERM) && self.is_beside_init() {
                    self.journal
                        .say("the system ends its processes: the agent leaves");
                    start_at = Instant::now() + SHUTDOWN_WAIT;
                    if let Some(agent) = &agent {
                        let _ = pidfd_send_signal(&agent.process, SIGTERM);
                    }
                } else if matches!(signal.signo, SIGINT | SIGTERM) && plan.is_none() {
                    self.journal
                        .say("going to start anew, as somebody wants it here");
                    plan = Some(Plan {
                        action: PowerAction::Reboot,
                        until: Instant::now() + LEAVE_WAIT,
                    });
                    if let Some(agent) = &agent {
                        // It may just have ended.
                        let _ = pidfd_send_signal(&agent.process, SIGTERM);
                    }
                }
            }
            if let Some(agent) = &mut agent {
                agent.lines.pass_on(&mut self.journal);
            }
            // All orphans of the machine are ours, too.
            while let Ok(Some(change)) = wait_any_child(true) {
                let Some(ended) = agent.take_if(|agent| agent.pid == change.pid) else {
                    continue;
                };
                let Some(action) = self.heard(ended, change, &mut agent) else {
                    if agent.is_none() {
                        start_at = start_at.max(Instant::now() + pause);
                        pause = (pause * 2).min(LAST_PAUSE);
                    }
                    continue;
                };
                plan = Some(Plan {
                    action,
                    until: Instant::now(),
                });
            }
            if agent
                .as_ref()
                .is_some_and(|agent| agent.born.elapsed() > LONG_LIFE)
            {
                pause = FIRST_PAUSE;
            }
            self.plug();
            self.renew(agent.as_ref());
        }
    }

    fn wait(
        &self,
        signals: &SignalFd,
        agent: Option<&Agent>,
        deadline: Option<Instant>,
    ) -> Result<(), Errno> {
        let mut waited = vec![PollFd::new(signals, PollFlags::IN)];
        if let Some(agent) = agent {
            waited.push(PollFd::new(&agent.lines.pipe, PollFlags::IN));
        }
        if let Some(hotplug) = &self.hotplug {
            waited.push(PollFd::new(hotplug, PollFlags::IN));
        }
        for socket in self.network.sockets() {
            waited.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
        let until = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let renewal = self
            .network
            .deadline()
            .map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
        let wait = until
            .into_iter()
            .chain(renewal)
            .min()
            .and_then(|wait| Timespec::try_from(wait).ok());
        match poll(&mut waited, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn start(&self) -> Result<Agent, Errno> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        let has_tasks = self.system.as_ref().filter(|system| system.has_tasks);
        let (pid, process) = start_apart(|| {
            // Init's would start the machine anew.
            drop(std::panic::take_hook());
            dup2_stderr(&writer)?;
            // It belongs to the agent's own namespaces.
            let files = match has_tasks {
                Some(system) => Files::Disk(TaskRoot::from_tree(&system.root)?),
                None => Files::View(ViewOptions::default()),
            };
            let config = AgentConfig {
                head: SocketAddr::V4(self.home.head),
                trust: Trust::Booted {
                    authority: self.authority,
                    mac: self.home.mac,
                    boot: self.home.boot,
                },
                name: None,
                files,
                // Scratch, once it is mounted.
                keep: None,
                address: self.home.address.to_string(),
                rootless: false,
                is_virtual: false,
            };
            Ok(exit_code(live(config, true)?))
        })?;
        Ok(Agent {
            pid,
            process,
            lines: Lines {
                pipe: reader,
                partial: Vec::new(),
            },
            born: Instant::now(),
        })
    }

    /// What becomes of the machine by the end of its agent. One that was only stopped is put back.
    fn heard(
        &mut self,
        mut ended: Agent,
        change: ChildChange,
        agent: &mut Option<Agent>,
    ) -> Option<PowerAction> {
        let ChildState::Ended(status) = change.state else {
            *agent = Some(ended);
            return None;
        };
        ended.lines.pass_on(&mut self.journal);
        match departure(status) {
            Ok(Departure::Power(action)) => return Some(action),
            Ok(Departure::Left) => self.journal.say("the agent has left the cluster"),
            Err(why) => self
                .journal
                .say(format_args!("the agent {why}, and all its tasks with it")),
        }
        self.journal.say("going to join the head anew");
        None
    }

    fn plug(&mut self) {
        let Some(hotplug) = &mut self.hotplug else {
            return;
        };
        let mut loaded = Loaded::default();
        hotplug.load(&mut self.modules, &mut loaded);
        loaded.tell(&mut self.journal);
    }

    /// Renews the address, if it is lent for a time only.
    fn renew(&mut self, agent: Option<&Agent>) {
        let Some(home) = self.network.step(now_ms(), &mut self.journal) else {
            return;
        };
        let has_moved = home.address != self.home.address || home.head != self.home.head;
        let old_boot = self.home.boot;
        // A renewal need not say all again.
        self.home = Home {
            boot: home.boot.or(old_boot),
            ..home
        };
        if let Some(boot) = self.home.boot
            && old_boot != Some(boot)
        {
            self.report_to(boot);
        }
        if has_moved && let Some(agent) = agent {
            self.journal
                .say("the network has changed: the agent starts anew");
            let _ = pidfd_send_signal(&agent.process, SIGTERM);
        }
    }

    /// Sends the log there from now on.
    fn report_to(&mut self, boot: SocketAddrV4) {
        // It ends by itself: nobody writes to it any more.
        drop(self.journal.stop_reporting());
        let wants_whole = !self.modules.absent().is_empty();
        match Report::start(boot, self.home.mac, wants_whole) {
            Ok(report) => self.journal.report_by(report),
            Err(errno) => self
                .journal
                .say(format_args!("can't tell the head of this: {errno}")),
        }
    }

    /// Does what was asked for. Returns only if the machine can't even start anew.
    fn end(&mut self, action: PowerAction) {
        let action = match action {
            PowerAction::Kexec => {
                self.journal.say("fetching the next kernel");
                // One card's drivers may not be enough for what is here.
                let is_enough = self.modules.absent().is_empty();
                let card = is_enough.then(|| card::of(&self.home.card)).flatten();
                match power::load_next(&self.home, card.as_deref(), self.network.line()) {
                    Ok(initramfs) => {
                        self.journal
                            .say(format_args!("the next kernel is loaded, and {initramfs}"));
                        PowerAction::Kexec
                    }
                    Err(error) => {
                        self.journal.say(format_args!(
                            "{error}; starting anew by the firmware instead"
                        ));
                        PowerAction::Reboot
                    }
                }
            }
            action => action,
        };
        if self.is_beside_init() {
            self.ask_init(action);
        }
        finish(action, &mut self.journal);
    }

    /// Whether PID 1 is a system's own init.
    fn is_beside_init(&self) -> bool {
        let system = self.system.as_ref();
        system.is_some_and(|system| system.init.is_some())
    }

    /// Returns if the system does not end the machine in time.
    fn ask_init(&mut self, action: PowerAction) {
        let Some(system) = &self.system else { return };
        self.journal.say(format_args!(
            "the system ends its services first; it has {} s",
            INIT_WAIT.as_secs()
        ));
        let asked = Instant::now();
        while asked.elapsed() < INIT_WAIT {
            // One that has just been started does not hear it yet.
            if let Err(errno) = system.ask_init(action) {
                self.journal
                    .say(format_args!("the system's init can't be asked: {errno}"));
                return;
            }
            std::thread::sleep(ASK_AGAIN);
        }
        self.journal.say("the system takes too long");
    }
}

/// Ends the machine so, after its last words. Returns only if it can't even start anew.
pub(super) fn finish(action: PowerAction, journal: &mut Journal) {
    journal.say(match action {
        PowerAction::Reboot => "starting anew",
        PowerAction::Kexec => "starting the next kernel",
        PowerAction::Halt => "halting",
        PowerAction::PowerOff => "switching off",
    });
    if let Some(report) = journal.stop_reporting() {
        report.finish();
    }
    let errno = power::end(action);
    journal.say(format_args!("the kernel refuses: {errno}"));
    let errno = power::end(PowerAction::Reboot);
    journal.say(format_args!(
        "can't start anew ({errno}): switch this machine off and on"
    ));
}

fn exit_code(departure: Departure) -> i32 {
    match departure {
        Departure::Left => 0,
        Departure::Power(PowerAction::Reboot) => EXIT_REBOOT,
        Departure::Power(PowerAction::Kexec) => EXIT_KEXEC,
        Departure::Power(PowerAction::Halt) => EXIT_HALT,
        Departure::Power(PowerAction::PowerOff) => EXIT_POWER_OFF,
    }
}

/// What the end of an agent says; an error in words that follow "the agent".
fn departure(status: ExitStatus) -> Result<Departure, String> {
    Ok(match status {
        ExitStatus::Exited(0) => Departure::Left,
        ExitStatus::Exited(EXIT_REBOOT) => Departure::Power(PowerAction::Reboot),
        ExitStatus::Exited(EXIT_KEXEC) => Departure::Power(PowerAction::Kexec),
        ExitStatus::Exited(EXIT_HALT) => Departure::Power(PowerAction::Halt),
        ExitStatus::Exited(EXIT_POWER_OFF) => Departure::Power(PowerAction::PowerOff),
        // What the kernel makes of reboot(2) in a PID namespace: a task of root's wants it.
        ExitStatus::Signaled { signal: SIGHUP, .. } => Departure::Power(PowerAction::Reboot),
        ExitStatus::Signaled { signal: SIGINT, .. } => Departure::Power(PowerAction::PowerOff),
        ExitStatus::Exited(code) => return Err(format!("has ended with exit code {code}")),
        ExitStatus::Signaled { signal, .. } => {
            return Err(format!("was killed by signal {signal}"));
        }
    })
}

impl Lines {
    fn pass_on(&mut self, journal: &mut Journal) {
        let mut buffer = [0; LINE_CHUNK];
        for _ in 0..CHUNKS_PER_TURN {
            match rustix::io::read(self.pipe.as_fd(), &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => self.take(&buffer[..length], journal),
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], journal: &mut Journal) {
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..at]);
            bytes = &bytes[at + 1..];
            journal.say(bare(&String::from_utf8_lossy(&self.partial)));
            self.partial.clear();
        }
        self.partial.extend_from_slice(bytes);
        self.partial.truncate(MAX_LINE_BYTES);
    }
}

/// On this machine there is but one agent.
fn bare(line: &str) -> &str {
    match line.strip_prefix("wiglaf agent") {
        Some(rest) => rest.split_once(": ").map_or(line, |(_, text)| text),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_end_says_what_becomes_of_the_machine() {
        for departure in [
            Departure::Left,
            Departure::Power(PowerAction::Reboot),
            Departure::Power(PowerAction::Kexec),
            Departure::Power(PowerAction::Halt),
            Departure::Power(PowerAction::PowerOff),
        ] {
            let status = ExitStatus::Exited(exit_code(departure));
            assert_eq!(super::departure(status), Ok(departure));
        }
        // As a panic's end, and an agent's that failed.
        for code in [101, 1] {
            assert!(super::departure(ExitStatus::Exited(code)).is_err());
        }
        let core = false;
        let killed = |signal| super::departure(ExitStatus::Signaled { signal, core });
        assert_eq!(killed(SIGHUP), Ok(Departure::Power(PowerAction::Reboot)));
        assert!(killed(SIGKILL).is_err());
    }

    #[test]
    fn an_agents_name_is_left_out() {
        assert_eq!(bare("wiglaf agent 10.7.0.11: joined: well"), "joined: well");
        assert_eq!(bare("wiglaf agent: no"), "no");
        assert_eq!(bare("thread panicked: at"), "thread panicked: at");
    }
}
