//! Machines' switches: programs that an administrator has configured, such as `ipmitool`, run by
//! the head as root, without a shell and for a bounded time.

mod said;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Signal};
use wiglaf_link::Interest;
use wiglaf_wire::boot::Switch;
use wiglaf_wire::client::Reply;
use wiglaf_wire::id::{Incarnation, NodeId};

use super::{Daemon, Kind, log, now_ms, token};
use crate::config::PowerConfig;
use crate::jobs::ClientId;
use crate::node_table::Presence;
use crate::placement::Refusal;
use crate::reactor::{Event, refuse};
use said::Said;

/// How long a program that was killed may take to end.
const END_WAIT_MS: u64 = 5_000;
/// Programs that run at once.
const MAX_AT_ONCE: usize = 16;
/// Machines whose failure one answer tells.
const MAX_TOLD: usize = 5;
/// What is read of a program's output before others have their turn: as much as a pipe holds.
const CHUNK_BYTES: usize = 4_096;
const CHUNKS_PER_TURN: usize = 16;

/// A machine that is to be switched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: NodeId,
    pub(super) name: String,
    pub(super) mac: Option<String>,
    pub(super) address: Option<String>,
    /// The agent's life that there was when this was asked for.
    pub(super) incarnation: Option<Incarnation>,
}

/// What the daemon has of it.
#[derive(Default)]
pub(super) struct Power {
    requests: Vec<Request>,
    waiting: VecDeque<(u64, Target)>,
    running: Vec<Running>,
    /// Those that not even SIGKILL has ended.
    stuck: Vec<Running>,
}

/// Somebody's wish, until all its machines are switched.
struct Request {
    number: u64,
    client: ClientId,
    switch: Switch,
    /// What was configured when it came.
    config: PowerConfig,
    left: usize,
    failures: Vec<String>,
}

struct Running {
    number: u64,
    request: u64,
    target: Target,
    child: Child,
    pidfd: OwnedFd,
    /// None when it has closed it.
    output: Option<OwnedFd>,
    said: Said,
    until_ms: u64,
    /// How long it had, if that was not long enough.
    late_s: Option<u64>,
}

impl Daemon {
    /// Whether the configuration, as it is now, has something for this.
    pub(super) fn has_switch(&self, switch: Switch) -> Result<bool, Refusal> {
        let config = self.configured()?.power;
        Ok(!command(&config, switch).is_empty())
    }

    /// Switches machines; the client is answered when all are.
    pub(super) fn switch(
        &mut self,
        client: ClientId,
        switch: Switch,
        targets: Vec<Target>,
    ) -> Result<(), Refusal> {
        let config = self.configured()?.power;
        let line = command(&config, switch);
        if line.is_empty() {
            let file = self.layout.config_file();
            return Err(Refusal::new(
                format!(
                    "nothing is configured that switches machines {}",
                    words(switch)
                ),
                format!(
                    "in {}, below [power]: {} = [\"PROGRAM\", \"ARGUMENT\"]",
                    file.display(),
                    switch.name()
                ),
            ));
        }
        for target in &targets {
            // Before anything is switched.
            arguments(line, target)?;
        }
        let number = self.number();
        self.power.requests.push(Request {
            number,
            client,
            switch,
            config,
            left: targets.len(),
            failures: Vec::new(),
        });
        for target in targets {
            self.power.waiting.push_back((number, target));
        }
        self.start_switches();
        Ok(())
    }

    fn start_switches(&mut self) {
        while self.power.running.len() < MAX_AT_ONCE
            && let Some((request, target)) = self.power.waiting.pop_front()
        {
            let name = target.name.clone();
            if let Err(why) = self.start_switch(request, target) {
                self.switched(request, Err(format!("{name}: {why}")));
            }
        }
    }

    fn start_switch(&mut self, request: u64, target: Target) -> Result<(), String> {
        let number = self.number();
        let Some(asked) = self.power.asked(request) else {
            return Ok(());
        };
        let switch = asked.switch.name();
        let until_ms = now_ms() + asked.config.wait_s * 1_000;
        let line = command(&asked.config, asked.switch);
        let words = arguments(line, &target).map_err(|refusal| refusal.message)?;
        let (program, words) = words.split_first().ok_or("nothing is configured")?;
        let failed = |error: std::io::Error| format!("{program}: {error}");
        let (output, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|errno| failed(errno.into()))?;
        let mut child = Command::new(program)
            .args(words)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            // With all that it starts it can be ended.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let watch = || {
            let pidfd = rustix::process::pidfd_open(pid_of(&child), PidfdFlags::empty())?;
            self.poll
                .add(&pidfd, token(Kind::Switch, number), Interest::Read)?;
            self.poll
                .add(&output, token(Kind::SwitchOutput, number), Interest::Read)?;
            Ok(pidfd)
        };
        let pidfd = match watch() {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                let errno: rustix::io::Errno = errno;
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(errno.into()));
            }
        };
        log(&format!("{}: {switch} by {program}", target.name));
        self.power.running.push(Running {
            number,
            request,
            target,
            child,
            pidfd,
            output: Some(output),
            said: Said::default(),
            until_ms,
            late_s: None,
        });
        Ok(())
    }

    /// A program has written something, or will write nothing more.
    pub(super) fn switch_output_ready(&mut self, number: u64) {
        let power = &mut self.power;
        let mut all = power.running.iter_mut().chain(&mut power.stuck);
        let Some(running) = all.find(|one| one.number == number) else {
            return;
        };
        if running.read()
            && let Some(output) = running.output.take()
        {
            let _ = self.poll.remove(&output);
        }
    }

    /// A program has ended.
    pub(super) fn switch_ready(&mut self, number: u64) {
        self.reap_stuck(number);
        let running = &mut self.power.running;
        let Some(place) = running.iter().position(|one| one.number == number) else {
            return;
        };
        let Ok(Some(status)) = running[place].child.try_wait() else {
            return;
        };
        let mut ended = running.swap_remove(place);
        let _ = self.poll.remove(&ended.pidfd);
        // What it has left behind may hold the other end, and is not waited for.
        ended.read();
        if let Some(output) = ended.output.take() {
            let _ = self.poll.remove(&output);
        }
        let outcome = outcome(&ended.target.name, status, ended.late_s, &ended.said);
        match &outcome {
            Ok(()) => self.was_switched(ended.request, &ended.target),
            Err(text) => log(text),
        }
        self.switched(ended.request, outcome);
        self.start_switches();
    }

    /// One that nobody waits for any more has ended.
    fn reap_stuck(&mut self, number: u64) {
        let has_ended = |one: &mut Running| {
            one.number == number && one.child.try_wait().is_ok_and(|status| status.is_some())
        };
        for ended in self.power.stuck.extract_if(.., has_ended) {
            let _ = self.poll.remove(&ended.pidfd);
            if let Some(output) = &ended.output {
                let _ = self.poll.remove(output);
            }
        }
    }

    /// A machine that is certainly off runs nothing any more, if the program's word is to be
    /// taken for that (P4). A life that began meanwhile is another one.
    fn was_switched(&mut self, request: u64, target: &Target) {
        let node = target.node;
        let is_member = self.reactor.nodes().get(node).is_some_and(|node| {
            node.presence != Presence::Absent && node.incarnation == target.incarnation
        });
        let is_certain = self
            .power
            .asked(request)
            .is_some_and(|asked| asked.switch == Switch::Off && asked.config.off_is_certain);
        if is_certain && is_member {
            self.event(Event::NodeProvenDead(node));
        }
    }

    fn switched(&mut self, number: u64, outcome: Result<(), String>) {
        let requests = &mut self.power.requests;
        let Some(place) = requests.iter().position(|one| one.number == number) else {
            return;
        };
        let request = &mut requests[place];
        request.left -= 1;
        request.failures.extend(outcome.err());
        if request.left > 0 {
            return;
        }
        let Request {
            client,
            mut failures,
            ..
        } = requests.swap_remove(place);
        let reply = if failures.is_empty() {
            Reply::Done
        } else {
            let more = failures.len().saturating_sub(MAX_TOLD);
            failures.truncate(MAX_TOLD);
            if more > 0 {
                failures.push(format!("and {more} more"));
            }
            refuse(Refusal::new(
                failures.join("\n"),
                format!("{} has what is run", self.layout.config_file().display()),
            ))
        };
        self.reply(client, &reply, Vec::new());
    }

    /// When a program has to be ended.
    pub(super) fn switch_deadline_ms(&self) -> Option<u64> {
        self.power.running.iter().map(|one| one.until_ms).min()
    }

    /// Ends programs that take too long, with all that they have started. Their end is told as any
    /// other; one that does not even end so is waited for no more.
    pub(super) fn end_late_switches(&mut self) {
        let now = now_ms();
        for late in &mut self.power.running {
            if late.until_ms <= now && late.late_s.is_none() {
                let _ = rustix::process::kill_process_group(pid_of(&late.child), Signal::KILL);
                late.until_ms = now + END_WAIT_MS;
                let request = late.request;
                let mut requests = self.power.requests.iter();
                let asked = requests.find(|asked| asked.number == request);
                late.late_s = Some(asked.map_or(0, |asked| asked.config.wait_s));
            }
        }
        let is_stuck = |one: &mut Running| one.until_ms <= now;
        let stuck: Vec<_> = self.power.running.extract_if(.., is_stuck).collect();
        for one in stuck {
            let text = format!(
                "{}: it took more than {} s, and does not end, though it was killed",
                one.target.name,
                one.late_s.unwrap_or_default()
            );
            log(&text);
            self.switched(one.request, Err(text));
            self.power.stuck.push(one);
            self.start_switches();
        }
    }
}

impl Power {
    fn asked(&self, request: u64) -> Option<&Request> {
        self.requests.iter().find(|asked| asked.number == request)
    }
}

impl Running {
    /// Takes some of what it has written. Whether nothing more will come.
    fn read(&mut self) -> bool {
        let Some(output) = &self.output else {
            return false;
        };
        let mut buffer = [0; CHUNK_BYTES];
        for _ in 0..CHUNKS_PER_TURN {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => return true,
                Ok(length) => self.said.take(&buffer[..length]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
                Err(_) => return true,
            }
        }
        false
    }
}

fn pid_of(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

fn command(config: &PowerConfig, switch: Switch) -> &[String] {
    match switch {
        Switch::On => &config.on,
        Switch::Off => &config.off,
        Switch::Cycle => &config.cycle,
    }
}

fn words(switch: Switch) -> &'static str {
    match switch {
        Switch::On => "on",
        Switch::Off => "off",
        Switch::Cycle => "off and on",
    }
}

/// The words with `%n`, `%m` and `%a` replaced: name, Ethernet address, address. Each stays one
/// word: no shell reads it.
fn arguments(line: &[String], target: &Target) -> Result<Vec<String>, Refusal> {
    let unknown = |what: &str| {
        Refusal::new(
            format!("{} has no {what} that is known", target.name),
            "it has to be adopted, or to have been connected since the head was started",
        )
    };
    let replace = |word: &String| {
        let mut made = String::new();
        let mut rest = word.chars();
        while let Some(c) = rest.next() {
            match c {
                '%' => match rest.next() {
                    Some('n') => made.push_str(&target.name),
                    Some('m') => made.push_str(
                        target
                            .mac
                            .as_deref()
                            .ok_or_else(|| unknown("Ethernet address"))?,
                    ),
                    Some('a') => {
                        let address = target.address.as_deref();
                        made.push_str(address.ok_or_else(|| unknown("address"))?);
                    }
                    Some('%') => made.push('%'),
                    other => {
                        made.push('%');
                        made.extend(other);
                    }
                },
                c => made.push(c),
            }
        }
        Ok(made)
    };
    line.iter().map(replace).collect()
}

/// What a program's end says, with its output if it failed.
fn outcome(name: &str, status: ExitStatus, late_s: Option<u64>, said: &Said) -> Result<(), String> {
    if status.success() && late_s.is_none() {
        return Ok(());
    }
    let how = match (late_s, status.code()) {
        (Some(seconds), _) => format!("it took more than {seconds} s, and was ended"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => format!("it was ended by {status}"),
    };
    let said = said.text();
    Err(match said.is_empty() {
        true => format!("{name}: {how}, and it said nothing"),
        false => format!("{name}: {how}: {said}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            node: NodeId(3),
            name: "n3".into(),
            mac: Some("52:54:00:00:00:03".into()),
            address: None,
            incarnation: None,
        }
    }

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_machine_takes_its_places_in_the_words_and_stays_one_word() {
        let line = words(&["ipmitool", "-H", "%n-bmc", "%m;reboot", "100%%", "%x", "%"]);
        let made = arguments(&line, &target()).unwrap();
        let wanted = words(&[
            "ipmitool",
            "-H",
            "n3-bmc",
            "52:54:00:00:00:03;reboot",
            "100%",
            "%x",
            "%",
        ]);
        assert_eq!(made, wanted);
        assert!(arguments(&words(&["x", "%a"]), &target()).is_err());
    }

    #[test]
    fn what_failed_says_why_in_its_own_words() {
        let run = |script: &str| {
            let output = Command::new("/bin/sh")
                .args(["-c", script])
                .output()
                .unwrap();
            let mut said = Said::default();
            said.take(&output.stdout);
            said.take(&output.stderr);
            (output.status, said)
        };
        let told = |script: &str, late_s| {
            let (status, said) = run(script);
            outcome("n3", status, late_s, &said)
        };
        assert_eq!(told("echo fine", None), Ok(()));
        let failed = told("echo no route to n3-bmc >&2; exit 3", None).unwrap_err();
        assert_eq!(failed, "n3: exit code 3: no route to n3-bmc");
        assert!(told("exit 1", None).unwrap_err().contains("said nothing"));
        let killed = told("kill -9 $$", None).unwrap_err();
        assert!(killed.contains("signal: 9"), "{killed}");
        // It may have ended just before it was killed: what it says was too late.
        let late = told("echo asking", Some(60)).unwrap_err();
        assert_eq!(late, "n3: it took more than 60 s, and was ended: asking");
        let long = told(
            "i=0; while [ $i -lt 999 ]; do echo $i; i=$((i+1)); done; exit 1",
            None,
        );
        let long = long.unwrap_err();
        assert!(
            long.ends_with("998") && long.contains("left out here") && long.len() < 2_100,
            "{long}"
        );
    }
}
