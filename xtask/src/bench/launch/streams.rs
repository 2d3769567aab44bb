//! What the streams carry: bytes through a remote `cat`, and out of a remote `head -c`.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Effort;
use super::cluster::Cluster;
use super::peers::Peers;
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;
use crate::bench::ground::text_of;

const TIMEOUT: Duration = Duration::from_secs(120);
/// Each chunk begins with its number.
const CHUNK: usize = 1 << 20;
const STAMP: usize = size_of::<u64>();
const READ_BYTES: usize = 256 << 10;
const FAST_CIPHER: &str = "aes128-gcm@openssh.com";
const AIM_OF_SSH: f64 = 3.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Through,
    Out,
}

/// In the order of the columns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Local,
    Wiglaf,
    Ssh,
    SshFastCipher,
}

struct Lane {
    way: Way,
    carrier: Carrier,
    rate: Samples,
    cpu_s: Samples,
}

pub(super) fn measure(
    stage: &Stage,
    effort: &Effort,
    cluster: Option<&Cluster>,
    peers: &Peers,
    report: &mut Report,
) -> Result<()> {
    let carriers = [
        Carrier::Local,
        Carrier::Wiglaf,
        Carrier::Ssh,
        Carrier::SshFastCipher,
    ];
    let mut lanes: Vec<Lane> = [Way::Through, Way::Out]
        .iter()
        .flat_map(|way| carriers.map(|carrier| (*way, carrier)))
        .filter(|(_, carrier)| cluster.is_some() || *carrier != Carrier::Wiglaf)
        .map(|(way, carrier)| Lane {
            way,
            carrier,
            rate: Samples::default(),
            cpu_s: Samples::default(),
        })
        .collect();
    for _ in 0..effort.stream_rounds {
        for lane in &mut lanes {
            let mut command = command(stage, effort, cluster, peers, lane)?;
            let groups: &[Group] = match lane.carrier {
                Carrier::Wiglaf => &[Group::Head, Group::Nodes],
                _ => &[Group::Peer],
            };
            stage.groups.enter(groups[0])?;
            let mut took = Duration::ZERO;
            let cpu_ms = stage.cpu_ms_of(groups, || {
                took = carry(stage, &mut command, lane.way, effort.stream_bytes)?;
                Ok(())
            })?;
            lane.rate
                .push(effort.stream_bytes as f64 / took.as_secs_f64() / 1e9);
            lane.cpu_s.push(cpu_ms / 1e3);
        }
    }
    write(effort, &lanes, report);
    Ok(())
}

fn command(
    stage: &Stage,
    effort: &Effort,
    cluster: Option<&Cluster>,
    peers: &Peers,
    lane: &Lane,
) -> Result<Command> {
    let size = effort.stream_bytes.to_string();
    let words: &[&str] = match lane.way {
        Way::Through => &["cat"],
        Way::Out => &["head", "-c", &size, "/dev/zero"],
    };
    Ok(match lane.carrier {
        Carrier::Local => {
            let mut command = stage.command(words[0]);
            command.args(&words[1..]);
            command
        }
        Carrier::Wiglaf => {
            let cluster = cluster.context("no cluster")?;
            let mut command = cluster.run(&["-w", "n1"]);
            command.args(words);
            command
        }
        Carrier::Ssh => {
            let mut command = peers.sshd.ssh(&[]);
            command.args(words);
            command
        }
        Carrier::SshFastCipher => {
            let mut command = peers.sshd.ssh(&["-c", FAST_CIPHER]);
            command.args(words);
            command
        }
    })
}

/// From the start of the command to its exit status, all bytes read.
fn carry(stage: &Stage, command: &mut Command, way: Way, size: u64) -> Result<Duration> {
    command.stdout(Stdio::piped());
    if way == Way::Through {
        command.stdin(Stdio::piped());
    }
    let started = Instant::now();
    let mut child = spawn(command)?;
    let watched = stage.watchdog.watch(&child, TIMEOUT)?;
    let writer = child
        .stdin
        .take()
        .map(|pipe| {
            std::thread::Builder::new()
                .name("writer".into())
                .spawn(move || feed(pipe, size))
        })
        .transpose()?;
    let read = drain(&mut child, way);
    let status = child.wait()?;
    let took = started.elapsed();
    watched.end(command)?;
    if let Some(writer) = writer {
        let written = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        written.with_context(|| format!("writing to `{}`", text_of(command)))?;
    }
    let read = read.with_context(|| format!("reading from `{}`", text_of(command)))?;
    if !status.success() || read != size {
        bail!(
            "`{}`: {status}, {read} of {size} bytes came out",
            text_of(command)
        );
    }
    Ok(took)
}

fn feed(mut pipe: ChildStdin, size: u64) -> Result<()> {
    let mut chunk = vec![b'w'; CHUNK];
    for number in 0..size / CHUNK as u64 {
        chunk[..STAMP].copy_from_slice(&number.to_le_bytes());
        pipe.write_all(&chunk)?;
    }
    Ok(())
}

/// How many bytes came; those that we wrote must come in order.
fn drain(child: &mut Child, way: Way) -> Result<u64> {
    let mut pipe = child.stdout.take().context("there is no pipe")?;
    let mut bytes = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let read = pipe.read(&mut bytes)?;
        if read == 0 {
            return Ok(total);
        }
        if way == Way::Through {
            check_stamp(total, &bytes[..read])?;
        }
        total += read as u64;
    }
}

/// Checks the chunk's number if all of it is in what was read.
fn check_stamp(offset: u64, bytes: &[u8]) -> Result<()> {
    let number = offset.div_ceil(CHUNK as u64);
    let at = usize::try_from(number * CHUNK as u64 - offset)?;
    let Some(stamp) = bytes.get(at..at + STAMP) else {
        return Ok(());
    };
    if stamp != number.to_le_bytes() {
        bail!(
            "the chunk at byte {} is not the one that was written",
            offset + at as u64
        );
    }
    Ok(())
}

fn write(effort: &Effort, lanes: &[Lane], report: &mut Report) {
    let rate = |way, carrier| {
        lanes
            .iter()
            .find(|lane| lane.way == way && lane.carrier == carrier)
            .map_or(f64::NAN, |lane| lane.rate.median())
    };
    let wiglaf = rate(Way::Through, Carrier::Wiglaf);
    if !wiglaf.is_nan() {
        let ssh = rate(Way::Through, Carrier::Ssh);
        let local = rate(Way::Through, Carrier::Local);
        let ratio = wiglaf / ssh;
        report.aim(
            &format!(
                "{} MiB through `wiglaf run -w n1 cat`",
                effort.stream_bytes >> 20
            ),
            format!("≥ {AIM_OF_SSH} × ssh"),
            format!(
                "{ratio:.2} × ({wiglaf:.2} of {ssh:.2} GB/s; {:.2} × a local pipe's {local:.2})",
                wiglaf / local
            ),
            ratio >= AIM_OF_SSH,
        );
    }
    let rows = lanes
        .iter()
        .map(|lane| {
            let way = match lane.way {
                Way::Through => "stdin and stdout: `cat`",
                Way::Out => "stdout only: `head -c SIZE /dev/zero`",
            };
            let carrier = match lane.carrier {
                Carrier::Local => "local pipes",
                Carrier::Wiglaf => "`wiglaf run -w n1`",
                Carrier::Ssh => "ssh, its default cipher (chacha20-poly1305)",
                Carrier::SshFastCipher => "ssh, aes128-gcm",
            };
            let to_ssh = lane.rate.median() / rate(lane.way, Carrier::Ssh);
            let to_local = lane.rate.median() / rate(lane.way, Carrier::Local);
            vec![
                way.to_owned(),
                carrier.to_owned(),
                lane.rate.text(3),
                format!("{to_ssh:.2}"),
                format!("{to_local:.2}"),
                lane.cpu_s.text(2),
            ]
        })
        .collect();
    report.table(
        "Streams",
        &format!(
            "{} rounds of {} MiB, set-up included, lengths and the order of what came back \
             checked; the CPU time includes this benchmark's own reader and writer",
            effort.stream_rounds,
            effort.stream_bytes >> 20
        ),
        &["", "", "GB/s", "× ssh", "× local", "CPU in all, s"],
        rows,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_moved_chunk_is_seen() {
        let mut stream = vec![b'w'; 2 * CHUNK];
        stream[..STAMP].copy_from_slice(&0_u64.to_le_bytes());
        stream[CHUNK..CHUNK + STAMP].copy_from_slice(&1_u64.to_le_bytes());
        assert!(check_stamp(0, &stream[..100]).is_ok());
        assert!(check_stamp(100, &stream[100..]).is_ok());
        // One byte less before it.
        assert!(check_stamp(100, &stream[101..]).is_err());
        assert!(check_stamp(CHUNK as u64, &stream[..100]).is_err());
    }
}
