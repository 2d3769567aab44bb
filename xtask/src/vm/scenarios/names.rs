//! A node resolves names: those of nodes, what the head's `/etc/hosts` has, and the outer world's
//! by the head's own resolver, which is systemd-resolved as Debian and Ubuntu set it up.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::parts::join;
use crate::vm::guest::{Firmware, Plan};
use crate::vm::head::Head;
use crate::vm::stage::Stage;
use crate::{debs, run};

/// A machine that is never switched on.
const ABSENT: &str = "52:54:00:99:99:99";
/// Where the outer world's name server is, and what it knows.
const SERVER: &str = "10.99.0.53";
const OUTER: (&str, &str) = ("www.outer.example", "192.0.2.7");
/// Beyond what fits into a packet, so that it is asked for by TCP.
const LONG: &str = "long.outer.example";
const LONG_RECORDS: usize = 40;
const STUB: &str = "/run/systemd/resolve/stub-resolv.conf";
const START: Duration = Duration::from_secs(20);
/// The head looks every two seconds.
const HEARD: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

/// A process that ends with us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file of the machine's that is another one for a while. The mounts are those of the ground.
struct Covered(&'static str);

impl Covered {
    fn with(path: &'static str, other: &Path) -> Result<Covered> {
        run::output(Command::new("mount").arg("--bind").arg(other).arg(path))?;
        Ok(Covered(path))
    }

    /// With an empty directory: the machine may have such a program of its own.
    fn empty(path: &'static str) -> Result<Covered> {
        fs::create_dir_all(path)?;
        run::output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", path]))?;
        Ok(Covered(path))
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", self.0]).status();
    }
}

pub(super) fn names(stage: &Stage<'_>) -> Result<()> {
    let _outer = outer_world(stage)?;
    let (_resolved, _covered) = resolved(stage)?;
    let hosts = stage.dir.join("hosts");
    let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
    fs::write(
        &hosts,
        format!("{own}\n192.0.2.99 printer\n127.0.1.1 wiki\n"),
    )?;
    let _hosts = Covered::with("/etc/hosts", &hosts)?;

    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::BiosIpxe))?;
    join(&head, &guest, "n1", 1)?;
    head.adopt(ABSENT, "n2")?;
    let (_, address) = head.node("n1")?;
    let node_of = |name: &str| -> Result<String> {
        let said = head.on_node("n1", &["getent", "ahostsv4", name])?;
        let first = said.split_ascii_whitespace().next();
        Ok(first.unwrap_or_default().to_owned())
    };
    ensure!(node_of("n1")? == address, "n1 is not {address} to itself");
    let heads = run::output(&mut Command::new("hostname"))?;
    for (name, wanted) in [
        (heads.trim(), "10.77.0.1"),
        ("wiki", "10.77.0.1"),
        ("printer", "192.0.2.99"),
        ("localhost", "127.0.0.1"),
    ] {
        let found = node_of(name)?;
        ensure!(found == wanted, "{name} is {found} and not {wanted}");
    }
    wait_for("n1 to know n2", || {
        Ok(head.on_node("n1", &["getent", "hosts", "n2"]).is_ok())
    })?;
    stage.say("n1 knows itself, the head, a machine that is off, and the head's /etc/hosts");

    let text = head.on_node("n1", &["cat", "/etc/resolv.conf"])?;
    ensure!(
        text.contains("nameserver 10.77.0.1") && !text.contains("127.0.0"),
        "its resolv.conf is {text}"
    );
    let (name, wanted) = OUTER;
    let found = node_of(name)?;
    ensure!(found == wanted, "{name} is {found:?} and not {wanted}");
    // An unqualified name is looked for in the head's domain.
    let found = node_of("www")?;
    ensure!(found == wanted, "www is {found:?} and not {wanted}");
    let missing = head.on_node("n1", &["getent", "hosts", "missing.outer.example"]);
    ensure!(missing.is_err(), "a name that nobody has is found");
    let long = head.on_node("n1", &["getent", "ahostsv4", LONG])?;
    let count = long.lines().filter(|line| line.contains("STREAM")).count();
    ensure!(count == LONG_RECORDS, "{LONG} has {count} addresses");
    stage.say("n1 resolves outer names by systemd-resolved on the head, long answers by TCP");

    fs::write(&hosts, format!("{own}\n192.0.2.98 printer\n"))?;
    wait_for("n1 to hear of the head's new /etc/hosts", || {
        Ok(node_of("printer")? == "192.0.2.98")
    })?;
    let denied = head.on_node("n1", &["sh", "-c", "echo >>/etc/hosts"]);
    ensure!(denied.is_err(), "a user can change what all see");
    stage.say("a change of the head's /etc/hosts is seen, and can't be made on the node");
    Ok(())
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > HEARD {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A name server that the head can reach.
fn outer_world(stage: &Stage<'_>) -> Result<Running> {
    let ip = format!("address add {SERVER}/32 dev lo");
    run::output(Command::new("ip").args(ip.split(' ')))?;
    let mut command = Command::new("dnsmasq");
    command
        .args(["--conf-file=/dev/null", "--no-daemon", "--user=root"])
        .args(["--no-hosts", "--no-resolv", "--bind-interfaces"])
        .arg(format!("--listen-address={SERVER}"))
        .arg("--local=/outer.example/")
        .arg(format!("--host-record={},{}", OUTER.0, OUTER.1));
    for last in 0..LONG_RECORDS {
        command.arg(format!("--host-record={LONG},198.51.100.{last}"));
    }
    let log = File::create(stage.logs.join("outer.log"))?;
    let child = command.stdout(Stdio::null()).stderr(log).spawn();
    Ok(Running(child.context("can't run dnsmasq")?))
}

/// The program and the libraries that it was built with.
pub(crate) fn fetch_resolved(target: &Path) -> Result<(PathBuf, PathBuf)> {
    let program = debs::fetch(target, "systemd-resolved")?;
    Ok((program, debs::fetch(target, "libsystemd-shared")?))
}

/// Debian's systemd-resolved, without systemd: the stub at 127.0.0.53, and the `resolv.conf` that
/// it writes in place of the machine's.
fn resolved(stage: &Stage<'_>) -> Result<(Running, Vec<Covered>)> {
    let (tree, libraries) = fetch_resolved(&stage.workspace.join("target"))?;
    let program = ["usr/lib/systemd", "lib/systemd"].map(|dir| tree.join(dir));
    let program = program.iter().map(|dir| dir.join("systemd-resolved"));
    let program: PathBuf = (program.into_iter())
        .find(|path| path.exists())
        .context("the package has no systemd-resolved")?;
    let mut covered = account(stage)?;
    covered.push(Covered::empty("/run/systemd")?);
    fs::create_dir_all("/run/systemd/resolved.conf.d")?;
    let config = format!(
        "[Resolve]\nDNS={SERVER}\nFallbackDNS=\nDomains=outer.example\nDNSSEC=no\nLLMNR=no\n\
         MulticastDNS=no\n"
    );
    fs::write("/run/systemd/resolved.conf.d/outer.conf", config)?;
    let folder = libraries.join("usr/lib/x86_64-linux-gnu/systemd");
    let log = File::create(stage.logs.join("resolved.log"))?;
    let child = Command::new(program)
        .env("LD_LIBRARY_PATH", folder)
        .env("SYSTEMD_LOG_TARGET", "console")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("can't run systemd-resolved")?;
    let mut running = Running(child);
    let started = Instant::now();
    while !fs::metadata(STUB).is_ok_and(|about| about.len() > 0) {
        if running.0.try_wait()?.is_some() || started.elapsed() > START {
            bail!("systemd-resolved does not start");
        }
        std::thread::sleep(POLL);
    }
    let text = fs::read_to_string(STUB)?;
    ensure!(text.contains("nameserver 127.0.0.53"), "its stub is {text}");
    covered.push(Covered::with("/etc/resolv.conf", Path::new(STUB))?);
    stage.say("systemd-resolved answers on the head, for the head");
    Ok((running, covered))
}

/// The account that it runs as, where the package has never been installed.
fn account(stage: &Stage<'_>) -> Result<Vec<Covered>> {
    let name = "systemd-resolve";
    let mut covered = Vec::new();
    for (path, line) in [
        ("/etc/passwd", "x:64195:64195::/:/usr/sbin/nologin"),
        ("/etc/group", "x:64195:"),
    ] {
        let text = fs::read_to_string(path)?;
        if text
            .lines()
            .any(|line| line.split(':').next() == Some(name))
        {
            continue;
        }
        let other = stage.dir.join(path.rsplit('/').next().unwrap_or_default());
        fs::write(&other, format!("{text}{name}:{line}\n"))?;
        covered.push(Covered::with(path, &other)?);
    }
    Ok(covered)
}
