//! What the peers run on: a head and nodes in network namespaces, with a hub between them.
//!
//! Their head is in a namespace as well, as icecream announces itself on every network that it
//! finds.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::medium::Medium;
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::run;

pub(super) const DISTCC: &str = "/usr/bin/distcc";
pub(super) const DISTCCD: &str = "/usr/bin/distccd";
pub(super) const ICECC: &str = "/usr/bin/icecc";
const ICECCD: &str = "/usr/sbin/iceccd";
const SCHEDULER: &str = "/usr/sbin/icecc-scheduler";
pub(super) const PACKAGES: &[(&str, &str)] = &[
    (DISTCCD, "distcc"),
    (ICECCD, "icecc"),
    ("/usr/sbin/ip", "iproute2"),
];
/// For measurements between machines (RFC 2544); nothing leads out of the namespaces.
const NETWORK: &str = "198.19.0";
const FIRST_NODE: u32 = 10;
const HUB: &str = "hub";
pub(super) const SLOTS: u32 = 2;
const SCHEDULER_PORT: u32 = 8765;
const ICE_USER: &str = "icecc";
/// The daemons look for their scheduler every three seconds.
const ICE_TIMEOUT: Duration = Duration::from_secs(30);
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

pub(super) struct Farm<'a> {
    stage: &'a Stage,
    pub(super) nodes: u32,
    dir: PathBuf,
    distccds: Vec<Child>,
    ice: Vec<Child>,
}

impl<'a> Farm<'a> {
    pub(super) fn lay(stage: &'a Stage, nodes: u32) -> Result<Farm<'a>> {
        let dir = stage.dir.join("farm");
        fs::create_dir(&dir)?;
        let farm = Farm {
            stage,
            nodes,
            dir,
            distccds: Vec::new(),
            ice: Vec::new(),
        };
        let head = farm.head_space();
        ip(&format!("netns add {head}"))?;
        stage.sweeper.add_space(&head)?;
        ip(&format!("-n {head} link set lo up"))?;
        ip(&format!("-n {head} link add name {HUB} type bridge"))?;
        ip(&format!("-n {head} address add {NETWORK}.1/24 dev {HUB}"))?;
        ip(&format!("-n {head} link set {HUB} up"))?;
        for node in 1..=nodes {
            let space = farm.space(node);
            ip(&format!("netns add {space}"))?;
            stage.sweeper.add_space(&space)?;
            ip(&format!(
                "-n {head} link add name port{node} type veth peer name eth0 netns {space}"
            ))?;
            ip(&format!("-n {head} link set port{node} master {HUB} up"))?;
            let address = address(node);
            ip(&format!("-n {space} address add {address}/24 dev eth0"))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(farm)
    }

    fn head_space(&self) -> String {
        format!("wgbh{}", std::process::id())
    }

    fn space(&self, node: u32) -> String {
        format!("wgb{}n{node}", std::process::id())
    }

    /// The hub as something that can be made slow.
    pub(super) fn medium(&self) -> Medium<'a> {
        Medium {
            stage: self.stage,
            space: Some(self.head_space()),
            device: HUB.to_owned(),
            has_queue: Cell::new(false),
        }
    }

    /// Words before a command that is to run on the head.
    pub(super) fn on_head(&self) -> [String; 4] {
        ["ip", "netns", "exec", &self.head_space()].map(str::to_owned)
    }

    fn there(&self, space: &str, words: &[&str]) -> Command {
        let mut command = self.stage.command("ip");
        command.args(["netns", "exec", space]).args(words);
        command.current_dir("/");
        command
    }

    pub(super) fn start_distcc(&mut self) -> Result<()> {
        self.stage.groups.enter(Group::Nodes)?;
        for node in 1..=self.nodes {
            let log = self.distcc_log(node);
            // It opens the file when it is no longer root.
            fs::write(&log, "")?;
            fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
            let words = format!(
                "{DISTCCD} --daemon --no-detach --user nobody --jobs {SLOTS} --allow {NETWORK}.0/24 \
                 --log-level=info --log-file={}",
                log.display()
            );
            let words: Vec<&str> = words.split(' ').collect();
            let child = spawn(&mut self.there(&self.space(node), &words))?;
            self.distccds.push(child);
        }
        self.stage.groups.enter(Group::Head)?;
        self.wait("distccd", START_TIMEOUT, |farm| {
            Ok((1..=farm.nodes).all(|node| {
                fs::read_to_string(farm.distcc_log(node))
                    .is_ok_and(|log| log.contains("preforking daemon started"))
            }))
        })
    }

    fn distcc_log(&self, node: u32) -> PathBuf {
        self.dir.join(format!("distccd{node}.log"))
    }

    pub(super) fn distcc_hosts(&self, nodes: u32) -> String {
        let hosts: Vec<String> = (1..=nodes)
            .map(|node| format!("{}/{SLOTS},lzo", address(node)))
            .collect();
        hosts.join(" ")
    }

    /// The distccds' processes, node by node.
    pub(super) fn distccds(&self) -> Vec<i32> {
        self.distccds.iter().map(pid_of).collect()
    }

    /// Files that the nodes have compiled until now.
    pub(super) fn distcc_compiled(&self) -> Result<u64> {
        let mut sum = 0;
        for node in 1..=self.nodes {
            let log = fs::read_to_string(self.distcc_log(node)).context("distccd's log")?;
            sum += log.matches(" COMPILE_OK ").count() as u64;
        }
        Ok(sum)
    }

    /// icecream on the first nodes.
    pub(super) fn start_ice(&mut self, nodes: u32) -> Result<()> {
        let dir = self.ice_dir();
        for name in (0..=nodes).map(|node| format!("ice/envs{node}")) {
            let path = self.dir.join(name);
            let owner = ["-d", "-o", ICE_USER, "-g", ICE_USER];
            run::output(Command::new("install").args(owner).arg(&dir).arg(&path))?;
        }
        let shown = dir.display();
        self.stage.groups.enter(Group::Head)?;
        let scheduler = format!(
            "{SCHEDULER} -n wgb -p {SCHEDULER_PORT} -l {shown}/scheduler.log -vvv -r -i {HUB}"
        );
        let scheduler: Vec<&str> = scheduler.split(' ').collect();
        let head = self.head_space();
        let child = spawn(&mut self.there(&head, &scheduler))?;
        self.ice.push(child);
        let daemon = |node: u32, more: &str| {
            format!(
                "{ICECCD} -n wgb -s {NETWORK}.1:{SCHEDULER_PORT} -N ice{node} -m {SLOTS} \
                 -b {shown}/envs{node} -l {shown}/iceccd{node}.log -v{more}"
            )
        };
        let words = daemon(0, " --no-remote");
        let words: Vec<&str> = words.split(' ').collect();
        let mut command = self.there(&head, &words);
        let child = spawn(command.env("ICECC_TEST_SOCKET", self.ice_socket()))?;
        self.ice.push(child);
        self.stage.groups.enter(Group::Nodes)?;
        for node in 1..=nodes {
            // The name of its socket is the same for all.
            let script = format!(
                "mount -t tmpfs none /run && install -d -o {ICE_USER} /run/icecc && exec {}",
                daemon(node, "")
            );
            let words = ["unshare", "-m", "sh", "-c", &script];
            let child = spawn(&mut self.there(&self.space(node), &words))?;
            self.ice.push(child);
        }
        self.stage.groups.enter(Group::Head)?;
        self.wait("icecream", ICE_TIMEOUT, |farm| {
            let log = fs::read_to_string(farm.ice_dir().join("scheduler.log"));
            Ok(log.is_ok_and(|log| {
                (0..=nodes).all(|node| log.contains(&format!("login ice{node} ")))
            }))
        })
    }

    fn ice_dir(&self) -> PathBuf {
        self.dir.join("ice")
    }

    pub(super) fn ice_socket(&self) -> PathBuf {
        self.ice_dir().join("socket")
    }

    /// Files that nodes other than the head have compiled until now, by the scheduler's account.
    pub(super) fn ice_compiled(&self) -> Result<u64> {
        let log = fs::read_to_string(self.ice_dir().join("scheduler.log"))
            .context("the scheduler's log")?;
        let count = log
            .lines()
            .filter(|line| {
                line.contains("] ") && line.contains(" END ") && line.contains("status=0")
            })
            .filter(|line| line.contains("server=ice") && !line.ends_with("server=ice0"))
            .count();
        Ok(count as u64)
    }

    fn wait(
        &self,
        what: &str,
        timeout: Duration,
        is_ready: impl Fn(&Farm) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !is_ready(self)? {
            if Instant::now() > deadline {
                bail!("{what} does not start on {} nodes", self.nodes);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Farm<'_> {
    fn drop(&mut self) {
        for child in self.distccds.iter_mut().chain(&mut self.ice) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pid_of(child: &Child) -> i32 {
    rustix::process::Pid::from_child(child)
        .as_raw_nonzero()
        .get()
}

fn address(node: u32) -> String {
    format!("{NETWORK}.{}", FIRST_NODE + node)
}

fn ip(words: &str) -> Result<()> {
    run::output(Command::new("ip").args(words.split(' '))).map(|_| ())
}
