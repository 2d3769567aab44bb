//! The second machine: a network namespace, and a cable to it with a machine room's rate and delay.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::delay;
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;
use crate::run;

/// For measurements between machines (RFC 2544): nobody routes it.
const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const SUBNETS: u32 = 1 << 14;
/// Two of the largest segments, so that none has to be cut.
const BURST: &str = "128kb";
/// The whole round trip, with what sockets and processes take by themselves.
const ROUND_TRIP_US: f64 = 300.0;
const TOLERANCE_US: f64 = 10.0;
const ADJUSTMENTS: u32 = 4;
/// Before everything that shares its time, as a cable does not wait for a processor.
const PRIORITY: &str = "10";
const PROBE_PORT: u16 = 7495;
const PROBES: usize = 300;
const PROBE_BYTES: usize = 256 << 20;
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Echoes x by x; what follows something else it reads to the end, and says so.
const PROBE: &str = r#"
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
peer, _ = server.accept()
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while peer.recv(1) == b"x":
    peer.sendall(b"x")
buffer = bytearray(1 << 20)
while peer.recv_into(buffer):
    pass
peer.sendall(b"x")
"#;

pub(super) struct Cable<'a> {
    stage: &'a Stage,
    pub(super) space: String,
    link: String,
    pub(super) head: Ipv4Addr,
    pub(super) node: Ipv4Addr,
    /// Why there is no delay.
    pub(super) undelayed: Option<String>,
}

/// How fast it is, as tc has it, and what a switch in it can hold.
pub(super) struct Rate {
    pub(super) name: &'static str,
    bits: &'static str,
    limit: &'static str,
}

pub(super) const GIGABIT: Rate = Rate {
    name: "1 Gb/s",
    bits: "1gbit",
    limit: "2mb",
};
pub(super) const HUNDRED: Rate = Rate {
    name: "100 Mb/s",
    bits: "100mbit",
    limit: "512kb",
};
pub(super) const TEN: Rate = Rate {
    name: "10 Mb/s",
    bits: "10mbit",
    limit: "256kb",
};

/// What was measured of it.
pub(super) struct Wire {
    pub(super) round_trip_us: f64,
    pub(super) bytes_per_s: f64,
    /// Of a core, by the delay, while the wire was full.
    pub(super) delay_load: f64,
}

/// What has gone over it.
#[derive(Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) bytes: u64,
    pub(super) packets: u64,
}

impl<'a> Cable<'a> {
    pub(super) fn lay(stage: &'a Stage) -> Result<Cable<'a>> {
        let pid = std::process::id();
        let at = |host| Ipv4Addr::from(u32::from(NETWORK) + (pid % SUBNETS) * 4 + host);
        let mut cable = Cable {
            stage,
            space: format!("wgbench{pid}"),
            link: format!("wgb{pid}"),
            head: at(1),
            node: at(2),
            undelayed: None,
        };
        let (space, link) = (&cable.space, &cable.link);
        ip(&format!("netns add {space}"))?;
        stage.sweeper.add_space(space)?;
        ip(&format!(
            "link add {link} type veth peer name far0 netns {space}"
        ))?;
        stage.sweeper.add_link(link)?;
        ip(&format!("address add {}/30 dev {link}", cable.head))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!(
            "-n {space} address add {}/30 dev far0",
            cable.node
        ))?;
        ip(&format!("-n {space} link set far0 up"))?;
        ip(&format!("-n {space} link set lo up"))?;
        cable.set(&GIGABIT)?;
        cable.undelayed = cable.slow_down().err().map(|error| format!("{error:#}"));
        Ok(cable)
    }

    /// Makes it this fast.
    pub(super) fn set(&self, rate: &Rate) -> Result<()> {
        let Rate { bits, limit, .. } = rate;
        let words = |device: &str| {
            format!("qdisc replace dev {device} root tbf rate {bits} burst {BURST} limit {limit}")
        };
        quiet(Command::new("tc").args(words(&self.link).split(' ')))?;
        let mut far = Command::new("ip");
        far.args(["netns", "exec", &self.space, "tc"]);
        quiet(far.args(words("far0").split(' ')))
    }

    /// Runs something on the second machine.
    pub(super) fn there(&self, program: &Path) -> Command {
        let mut command = self.stage.command("ip");
        command.args(["netns", "exec", &self.space]).arg(program);
        command.current_dir("/");
        command
    }

    /// What comes in there is held back, as long as makes the round trip what it should be; one
    /// direction has the delay of both.
    fn slow_down(&self) -> Result<()> {
        let mut delay_us = ROUND_TRIP_US - self.round_trip_us()?;
        let mut process = self.delay(delay_us)?;
        let rule = format!(
            "-t mangle -A PREROUTING -i far0 -j NFQUEUE --queue-num {} --queue-bypass",
            delay::QUEUE
        );
        quiet(self.there(Path::new("iptables")).args(rule.split(' ')))?;
        for _ in 0..ADJUSTMENTS {
            let excess_us = self.round_trip_us()? - ROUND_TRIP_US;
            if excess_us.abs() <= TOLERANCE_US {
                break;
            }
            delay_us -= excess_us;
            process.kill()?;
            process.wait()?;
            process = self.delay(delay_us)?;
        }
        Ok(())
    }

    fn delay(&self, delay_us: f64) -> Result<Child> {
        self.stage.groups.enter(Group::Cable)?;
        let mut command = self.there(Path::new("chrt"));
        command.args(["-f", PRIORITY]);
        command.arg(std::env::current_exe()?);
        command.args(["bench", delay::NAME, &format!("{:.0}", delay_us.max(0.0))]);
        let log = self.stage.dir.join("delay.log");
        command.stderr(std::fs::File::create(&log)?);
        match wait_until_ready(&mut command)? {
            Some(process) => Ok(process),
            None => bail!("{}", std::fs::read_to_string(&log)?.trim()),
        }
    }

    /// Measures round trip and rate by a plain TCP connection, from the head.
    pub(super) fn measure(&self) -> Result<Wire> {
        let round_trip_us = self.round_trip_us()?;
        let (mut probe, mut stream) = self.probe()?;
        stream.write_all(b"-")?;
        let data = vec![0x5a; 1 << 20];
        let before = self.stage.groups.cpu_ms(Group::Cable)?;
        let started = Instant::now();
        for _ in 0..PROBE_BYTES / data.len() {
            stream.write_all(&data)?;
        }
        stream.shutdown(Shutdown::Write)?;
        stream.read_exact(&mut [0])?;
        let took = started.elapsed().as_secs_f64();
        let cpu_ms = self.stage.groups.cpu_ms(Group::Cable)? - before;
        probe.wait()?;
        Ok(Wire {
            round_trip_us,
            bytes_per_s: PROBE_BYTES as f64 / took,
            delay_load: cpu_ms / 1e3 / took,
        })
    }

    fn round_trip_us(&self) -> Result<f64> {
        let (mut probe, mut stream) = self.probe()?;
        let mut round_trips = Samples::default();
        for _ in 0..PROBES {
            let started = Instant::now();
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            round_trips.push(started.elapsed().as_secs_f64() * 1e6);
        }
        drop(stream);
        let _ = probe.kill();
        probe.wait()?;
        Ok(round_trips.median())
    }

    fn probe(&self) -> Result<(Child, TcpStream)> {
        self.stage.groups.enter(Group::Peer)?;
        let mut command = self.there(Path::new("/usr/bin/python3"));
        command.args(["-c", PROBE, &self.node.to_string(), &PROBE_PORT.to_string()]);
        let probe = wait_until_ready(&mut command)?.context("the probe does not start")?;
        let stream = TcpStream::connect((self.node, PROBE_PORT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
        Ok((probe, stream))
    }

    pub(super) fn traffic(&self) -> Result<Traffic> {
        let sum = |unit: &str| -> Result<u64> {
            ["rx", "tx"]
                .iter()
                .map(|way| {
                    let path = format!("/sys/class/net/{}/statistics/{way}_{unit}", self.link);
                    let text = std::fs::read_to_string(&path).context(path)?;
                    Ok(text.trim().parse::<u64>()?)
                })
                .sum()
        };
        Ok(Traffic {
            bytes: sum("bytes")?,
            packets: sum("packets")?,
        })
    }
}

/// Starts it and waits for its first line, `ready`; None if there is none.
pub(super) fn wait_until_ready(command: &mut Command) -> Result<Option<Child>> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let output = child.stdout.take().context("its standard output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim() == "ready" {
        return Ok(Some(child));
    }
    let _ = child.kill();
    child.wait()?;
    Ok(None)
}

fn ip(words: &str) -> Result<()> {
    quiet(Command::new("ip").args(words.split(' ')))
}

fn quiet(command: &mut Command) -> Result<()> {
    run::output(command).map(|_| ())
}
