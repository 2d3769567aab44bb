//! Machines' switches: programs that an administrator has configured, such as `ipmitool`, run by
//! the head as root, without a shell and for a bounded time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::MemfdFlags;
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

/// How long a program may take for one machine.
const SWITCH_WAIT_MS: u64 = 60_000;
/// Programs that run at once.
const MAX_AT_ONCE: usize = 16;
/// What of a program's output is told.
const MAX_TOLD_BYTES: u64 = 2_000;
/// Machines whose failure one answer tells.
const MAX_TOLD: usize = 5;

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
    waiting: VecDeque<(u64, Switch, Target)>,
    running: Vec<Running>,
}

/// Somebody's wish, until all its machines are switched.
struct Request {
    number: u64,
    client: ClientId,
    left: usize,
    failures: Vec<String>,
}

struct Running {
    number: u64,
    request: u64,
    switch: Switch,
    target: Target,
    child: Child,
    pidfd: OwnedFd,
    output: File,
    until_ms: u64,
}

impl Daemon {
    /// Whether this can be done at all.
    pub(super) fn has_switch(&self, switch: Switch) -> bool {
        !command(&self.config.power, switch).is_empty()
    }

    /// Switches machines; the client is answered when all are.
    pub(super) fn switch(
        &mut self,
        client: ClientId,
        switch: Switch,
        targets: Vec<Target>,
    ) -> Result<(), Refusal> {
        let line = command(&self.config.power, switch);
        if line.is_empty() {
            let file = self.layout.config_file();
            return Err(Refusal::new(
                format!(
                    "nothing is configured that switches machines {}",
                    words(switch)
                ),
                format!(
                    "in {}, below [power]: {} = [\"PROGRAM\", \"ARGUMENT\"]; then restart the head",
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
            left: targets.len(),
            failures: Vec::new(),
        });
        for target in targets {
            self.power.waiting.push_back((number, switch, target));
        }
        self.start_switches();
        Ok(())
    }

    fn start_switches(&mut self) {
        while self.power.running.len() < MAX_AT_ONCE
            && let Some((request, switch, target)) = self.power.waiting.pop_front()
        {
            let name = target.name.clone();
            if let Err(why) = self.start_switch(request, switch, target) {
                self.switched(request, Err(format!("{name}: {why}")));
            }
        }
    }

    fn start_switch(&mut self, request: u64, switch: Switch, target: Target) -> Result<(), String> {
        let line = command(&self.config.power, switch);
        let words = arguments(line, &target).map_err(|refusal| refusal.message)?;
        let (program, words) = words.split_first().ok_or("nothing is configured")?;
        let failed = |error: std::io::Error| format!("{program}: {error}");
        let output: File = rustix::fs::memfd_create("wiglaf-power", MemfdFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?
            .into();
        let mut child = Command::new(program)
            .args(words)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output.try_clone().map_err(failed)?)
            // With all that it starts it can be ended.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let number = self.number();
        let watched = rustix::process::pidfd_open(pid_of(&child), PidfdFlags::empty())
            .and_then(|pidfd| {
                let token = token(Kind::Switch, number);
                self.poll.add(&pidfd, token, Interest::Read)?;
                Ok(pidfd)
            })
            .map_err(|errno| failed(errno.into()));
        let pidfd = match watched {
            Ok(pidfd) => pidfd,
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(why);
            }
        };
        log(&format!("{}: {} by {program}", target.name, switch.name()));
        self.power.running.push(Running {
            number,
            request,
            switch,
            target,
            child,
            pidfd,
            output,
            until_ms: now_ms() + SWITCH_WAIT_MS,
        });
        Ok(())
    }

    /// A program has ended.
    pub(super) fn switch_ready(&mut self, number: u64) {
        let running = &mut self.power.running;
        let Some(place) = running.iter().position(|one| one.number == number) else {
            return;
        };
        let Ok(Some(status)) = running[place].child.try_wait() else {
            return;
        };
        let mut ended = running.swap_remove(place);
        let _ = self.poll.remove(&ended.pidfd);
        let outcome = outcome(&ended.target.name, status, &mut ended.output);
        match &outcome {
            Ok(()) => self.was_switched(ended.switch, &ended.target),
            Err(text) => log(text),
        }
        self.switched(ended.request, outcome);
        self.start_switches();
    }

    /// A machine that is certainly off runs nothing any more, if the program's word is to be
    /// taken for that (P4). A life that began meanwhile is another one.
    fn was_switched(&mut self, switch: Switch, target: &Target) {
        let node = target.node;
        let is_member = self.reactor.nodes().get(node).is_some_and(|node| {
            node.presence != Presence::Absent && node.incarnation == target.incarnation
        });
        if switch == Switch::Off && self.config.power.off_is_certain && is_member {
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

    /// Ends programs that take too long; their end is told as any other.
    pub(super) fn end_late_switches(&mut self) {
        let now = now_ms();
        for late in &mut self.power.running {
            if late.until_ms <= now {
                let _ = rustix::process::kill_process_group(pid_of(&late.child), Signal::KILL);
                late.until_ms = now + SWITCH_WAIT_MS;
            }
        }
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

/// What a program's end says, with the end of its output if it failed.
fn outcome(name: &str, status: ExitStatus, output: &mut File) -> Result<(), String> {
    if status.success() {
        return Ok(());
    }
    let length = output.seek(SeekFrom::End(0)).unwrap_or(0);
    let _ = output.seek(SeekFrom::Start(length.saturating_sub(MAX_TOLD_BYTES)));
    let mut said = Vec::new();
    let _ = output.take(MAX_TOLD_BYTES).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    let said: String = said
        .trim()
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect();
    let how = match status.code() {
        Some(code) => format!("exit code {code}"),
        None => format!(
            "it was ended, or took more than {} s",
            SWITCH_WAIT_MS / 1000
        ),
    };
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
            let mut output: File = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC)
                .unwrap()
                .into();
            let status = Command::new("/bin/sh")
                .args(["-c", script])
                .stdout(output.try_clone().unwrap())
                .stderr(output.try_clone().unwrap())
                .status()
                .unwrap();
            outcome("n3", status, &mut output)
        };
        assert_eq!(run("echo fine"), Ok(()));
        let failed = run("echo no route to n3-bmc >&2; exit 3").unwrap_err();
        assert_eq!(failed, "n3: exit code 3: no route to n3-bmc");
        assert!(run("exit 1").unwrap_err().contains("said nothing"));
        // Only the end of it.
        let long = run("i=0; while [ $i -lt 999 ]; do echo $i; i=$((i+1)); done; exit 1");
        let long = long.unwrap_err();
        assert!(
            long.ends_with("998") && long.len() < 2_100,
            "{}",
            long.len()
        );
    }
}
