//! The rack: virtual nodes on this machine.
//!
//! One process, titled `wiglaf: rack`, makes a network with a switch in it and holds one agent
//! per virtual node. The agents are its forks, never exec'd: so they share their pages, and a
//! rootless one keeps its capabilities. An agent is PID 1 of its node's PID namespace, so its
//! end, which its pidfd tells, proves the end of everything that ran on the node.
//!
//! As root the switch is a bridge of the machine itself. Otherwise the rack moves into a user
//! namespace, and the switch into a network namespace that only the rack and its nodes know;
//! therefore the rack makes the socket on which the head listens for them, in both cases.

pub mod hold;
mod namespace;
pub(crate) mod network;
mod subnet;

pub use namespace::{NamespaceError, Obstacle};
pub use network::NetworkError;

use crate::root::{Files, TaskRoot, ViewOptions, mount_own_proc};
use network::RouteSocket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use subnet::{MAX_NODES, Network, PREFIX_LEN, free_networks};
use wiglaf_linux::process::{
    ChildChange, ChildState, ExitStatus, Fork, clone_into, pidfd_send_signal, set_pdeathsig,
    set_process_title, wait,
};

/// A bridge's name is `wg<tag>`, a port's `wg<tag>.<number>`: the longest must fit into the
/// kernel's 15 characters.
const MAX_TAG: usize = 8;
/// A host name's limit (RFC 1035, section 2.3.4).
const MAX_NODE_NAME: usize = 63;
/// The node's own name for its network device.
const NODE_DEVICE: &str = "eth0";
/// A node that has not set itself up by then never will.
const START_TIMEOUT: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};
/// The longest account that a node gives of why it did not start.
const MAX_REPORT_BYTES: u64 = 4096;
/// What a node reports when it is ready.
const READY: &[u8] = b"ready";
/// What the rack sends a node whose network device is there.
const GO: &[u8] = b"g";
const EXIT_NOT_STARTED: i32 = 1;
/// As Rust's runtime ends after a panic.
const EXIT_PANIC: i32 = 101;

/// How virtual nodes come to the head's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtualFiles {
    /// By the view, as every other node.
    View(ViewOptions),
    /// From this machine's disk, by its kernel.
    Disk,
}

/// What a rack is to be.
#[derive(Clone, Debug)]
pub struct RackConfig {
    /// Tells this cluster's devices from others': lower-case letters and digits.
    pub tag: String,
    /// The nodes' names, which become their host names.
    pub nodes: Vec<String>,
    /// Whether to do without root's rights, in a user namespace.
    pub rootless: bool,
    /// What tasks must not reach on the disk: the head's run directory, unless it is in `/run`.
    pub hidden: Vec<PathBuf>,
    /// Where tasks' files come from.
    pub files: VirtualFiles,
}

/// Why a rack or one of its nodes does not work.
#[derive(thiserror::Error, Debug)]
pub enum RackError {
    /// The tag can't be part of a device's name.
    #[error("the tag {0:?} must be 1 to {MAX_TAG} lower-case letters or digits")]
    Tag(String),
    /// The name can't be a host name.
    #[error("{0:?} can't be the name of a node: letters, digits and -, at most {MAX_NODE_NAME}")]
    NodeName(String),
    /// There are more nodes than addresses.
    #[error("{0} nodes are too many for one machine: at most {MAX_NODES}")]
    TooMany(usize),
    /// There is no such node.
    #[error("the rack has no node with the index {0}")]
    NoSuchNode(usize),
    /// The kernel refuses namespaces.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel refuses network devices.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A rack of this tag runs, or was killed.
    #[error(
        "there is a network device {0} already: another rack of this cluster runs, or has left it"
    )]
    BridgeExists(String),
    /// Routes cover every network that could be used.
    #[error("all networks that a rack may use (in 10.77, 172.29 and 192.168) are in use here")]
    NoFreeNetwork,
    /// The head's socket can't be made.
    #[error("can't listen for the nodes on {address}: {source}")]
    Listen {
        /// The address.
        address: IpAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A node's process can't be made or talked to.
    #[error("can't {action} node {node}: {errno}")]
    Node {
        /// What was tried.
        action: &'static str,
        /// Which node.
        node: String,
        /// What went wrong.
        errno: Errno,
    },
    /// A node could not set itself up.
    #[error("node {node} did not start: {report}")]
    Start {
        /// Which node.
        node: String,
        /// Its own words.
        report: String,
    },
}

/// A network for virtual nodes, and what it takes to start them in it.
pub struct Rack {
    /// The socket on which the head listens: bound and listening, with a port that the kernel
    /// chose. The head, which is outside of the switch's namespace, gets it by `SCM_RIGHTS`.
    pub listener: OwnedFd,
    /// Where the nodes reach it.
    pub listen_addr: SocketAddr,
    config: RackConfig,
    network: Network,
    bridge: u32,
    route: RouteSocket,
}

/// What an agent is given: its node, ready for work. The process is PID 1 of the node's PID
/// namespace, has its own mounts with a `/proc` that fits, and its own network, host name and
/// IPC objects. It must never exec, and it reaps what its tasks orphan.
#[derive(Debug)]
pub struct NodePlace {
    /// The node's name.
    pub name: String,
    /// Its address in the rack's network.
    pub address: IpAddr,
    /// Where the head listens.
    pub head: SocketAddr,
    /// What tasks see as their root.
    pub files: Files,
}

/// A running virtual node, a child of the rack.
#[derive(Debug)]
pub struct VirtualNode {
    /// Its name.
    pub name: String,
    /// Its address in the rack's network.
    pub address: IpAddr,
    /// Its agent's PID in the rack's PID namespace.
    pub pid: i32,
    /// Its agent. Readable once it has ended, and with it everything on the node.
    pub pidfd: OwnedFd,
}

impl Rack {
    /// Makes the network. Call it in the rack's own process while that has one thread: without
    /// root's rights it *moves this process* into new user and network namespaces.
    pub fn set_up(config: &RackConfig) -> Result<Rack, RackError> {
        check(config)?;
        if config.rootless {
            namespace::enter_switch()?;
        }
        let mut route = RouteSocket::open()?;
        if config.rootless {
            route.set_up("lo")?;
        }
        let name = bridge_name(&config.tag);
        let bridge = route.add_bridge(&name).map_err(|error| match error {
            NetworkError::Refused {
                errno: Errno::EXIST,
                ..
            } => RackError::BridgeExists(name.clone()),
            error => error.into(),
        })?;
        let listening = take_network(&mut route, &name, bridge)
            .and_then(|network| Ok((network, listen(network.head().into())?)));
        match listening {
            Ok((network, (listener, listen_addr))) => Ok(Rack {
                listener: listener.into(),
                listen_addr,
                config: config.clone(),
                network,
                bridge,
                route,
            }),
            Err(error) => {
                remove_devices(&mut route, &config.tag)?;
                Err(error)
            }
        }
    }

    /// Starts the node `index` (again, if it has ended) and returns when it is ready. `agent`
    /// runs in the new process; if it returns, the node ends.
    ///
    /// The agent inherits the rack's descriptors and must not use them. It is killed when the
    /// *thread* that calls this ends: call it from the rack's main thread, the only one.
    pub fn start(
        &mut self,
        index: usize,
        agent: impl FnOnce(NodePlace),
    ) -> Result<VirtualNode, RackError> {
        let (Some(name), Some(address)) = (self.config.nodes.get(index), self.network.node(index))
        else {
            return Err(RackError::NoSuchNode(index));
        };
        let failed = |action| {
            move |errno| RackError::Node {
                action,
                node: name.clone(),
                errno,
            }
        };
        let (go_read, go_write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe for"))?;
        let (report_read, report_write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe for"))?;

        let (pid, pidfd) = match clone_into(namespace::NODE).map_err(namespace::node_refused)? {
            Fork::Parent { pid, pidfd } => (pid, pidfd),
            Fork::Child => {
                drop((go_write, report_read));
                let rest = || self.live(name, address.into(), go_read, report_write, agent);
                // A panic must not unwind into the copy of the rack's own frames.
                let code = catch_unwind(AssertUnwindSafe(rest)).unwrap_or(EXIT_PANIC);
                std::process::exit(code)
            }
        };
        drop((go_read, report_write));
        let node = VirtualNode {
            name: name.clone(),
            address: address.into(),
            pid,
            pidfd,
        };
        let port = port_name(&self.config.tag, index);
        let started = connect(&mut self.route, &port, self.bridge, &node)
            .and_then(|()| see_it_start(&node, go_write.into(), report_read));
        if let Err(error) = started {
            // It has nothing to lose yet. Without it its devices go, too.
            node.kill().map_err(failed("kill"))?;
            node.wait().map_err(failed("wait for"))?;
            return Err(error);
        }
        Ok(node)
    }

    /// Removes the network. The nodes should have ended; those that have not lose their network.
    /// (The rootless rack's goes with the last process in it.)
    pub fn tear_down(mut self) -> Result<(), RackError> {
        remove_devices(&mut self.route, &self.config.tag)?;
        Ok(())
    }

    /// The life of a node's first process; returns its exit code.
    fn live(
        &self,
        name: &str,
        address: IpAddr,
        go: OwnedFd,
        report: OwnedFd,
        agent: impl FnOnce(NodePlace),
    ) -> i32 {
        let mut report = File::from(report);
        match self.settle(name, address, go) {
            Ok(place) => {
                if report.write_all(READY).is_err() {
                    return EXIT_NOT_STARTED;
                }
                drop(report);
                agent(place);
                0
            }
            Err(reason) => {
                // A rack that doesn't listen any more is gone: nobody is left to tell.
                let _ = report.write_all(reason.to_string().as_bytes());
                EXIT_NOT_STARTED
            }
        }
    }

    fn settle(
        &self,
        name: &str,
        address: IpAddr,
        go: OwnedFd,
    ) -> Result<NodePlace, Box<dyn std::error::Error>> {
        // Nothing here changes credentials, which would clear it again. A rack that has died
        // before this line is found out by the next: getppid() is 0 in a new PID namespace.
        set_pdeathsig(Signal::KILL.as_raw())?;
        let mut word = [0; GO.len()];
        File::from(go).read_exact(&mut word)?;

        set_process_title(&format!("wiglaf: agent {name}"))?;
        rustix::system::sethostname(name.as_bytes())?;
        let IpAddr::V4(v4) = address else {
            return Err("a rack's network is IPv4".into());
        };
        let mut route = RouteSocket::open()?;
        route.set_up("lo")?;
        route.set_up(NODE_DEVICE)?;
        route.add_address(NODE_DEVICE, v4, PREFIX_LEN)?;
        mount_own_proc()?;
        let files = match &self.config.files {
            VirtualFiles::View(options) => {
                // The agent mounts it; what it takes is looked for now, while there is somebody
                // to be told.
                wiglaf_view::check_device()?;
                Files::View(options.clone())
            }
            VirtualFiles::Disk => Files::Disk(TaskRoot::from_head_disk(&self.config.hidden)?),
        };
        Ok(NodePlace {
            name: name.into(),
            address,
            head: self.listen_addr,
            files,
        })
    }
}

impl VirtualNode {
    /// Ends the node with everything on it. The pidfd tells when it is done.
    pub fn kill(&self) -> Result<(), Errno> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL.as_raw()) {
            Err(Errno::SRCH) => Ok(()),
            result => result,
        }
    }

    /// Takes note of the node's end, waiting for it; in the rack only, and once.
    pub fn wait(&self) -> Result<ExitStatus, Errno> {
        loop {
            if let Some(ChildChange {
                state: ChildState::Ended(status),
                ..
            }) = wait(self.pid, false)?
            {
                return Ok(status);
            }
        }
    }
}

/// Removes the network of a rack that was killed, and says whether there was one. With a rack
/// of this tag running it takes the network from its nodes.
pub fn remove_leftovers(tag: &str) -> Result<bool, RackError> {
    check_tag(tag)?;
    Ok(remove_devices(&mut RouteSocket::open()?, tag)?)
}

fn check(config: &RackConfig) -> Result<(), RackError> {
    check_tag(&config.tag)?;
    if config.nodes.len() > MAX_NODES {
        return Err(RackError::TooMany(config.nodes.len()));
    }
    let usable = |name: &&String| {
        (1..=MAX_NODE_NAME).contains(&name.len())
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    match config.nodes.iter().find(|name| !usable(name)) {
        Some(name) => Err(RackError::NodeName(name.clone())),
        None => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), RackError> {
    let usable = (1..=MAX_TAG).contains(&tag.len())
        && tag
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if usable {
        Ok(())
    } else {
        Err(RackError::Tag(tag.into()))
    }
}

fn bridge_name(tag: &str) -> String {
    format!("wg{tag}")
}

fn port_name(tag: &str, index: usize) -> String {
    format!("wg{tag}.{}", index + 1)
}

/// Gives the bridge the head's address in a network that nobody uses.
fn take_network(route: &mut RouteSocket, name: &str, bridge: u32) -> Result<Network, RackError> {
    let in_use: Vec<Network> = (route.networks()?.into_iter())
        .filter(|&(device, _)| device != bridge)
        .map(|(_, network)| network)
        .collect();
    let network = free_networks(&in_use)
        .next()
        .ok_or(RackError::NoFreeNetwork)?;
    route.add_address(name, network.head(), PREFIX_LEN)?;
    Ok(network)
}

fn listen(address: IpAddr) -> Result<(TcpListener, SocketAddr), RackError> {
    TcpListener::bind((address, 0))
        .and_then(|listener| {
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        })
        .map_err(|source| RackError::Listen { address, source })
}

/// Gives a node its network device, whose other end is a port of the bridge.
fn connect(
    route: &mut RouteSocket,
    port: &str,
    bridge: u32,
    node: &VirtualNode,
) -> Result<(), RackError> {
    // The kernel takes some time to remove the port of a node that has just ended.
    if let Some(stale) = route.links()?.iter().find(|link| link.name == port) {
        route.delete(stale)?;
    }
    Ok(route.add_veth(port, bridge, NODE_DEVICE, node.pid)?)
}

fn see_it_start(node: &VirtualNode, mut go: File, report: OwnedFd) -> Result<(), RackError> {
    let failed = |action| {
        move |errno| RackError::Node {
            action,
            node: node.name.clone(),
            errno,
        }
    };
    let failed_io = |action| {
        move |error: std::io::Error| {
            failed(action)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    };
    go.write_all(GO).map_err(failed_io("start"))?;
    let mut ready = [PollFd::new(&report, PollFlags::IN)];
    loop {
        match poll(&mut ready, Some(&START_TIMEOUT)) {
            Ok(0) => return Err(failed("start")(Errno::TIMEDOUT)),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("wait for")(errno)),
        }
    }
    let mut text = Vec::new();
    File::from(report)
        .take(MAX_REPORT_BYTES)
        .read_to_end(&mut text)
        .map_err(failed_io("listen to"))?;
    if text == READY {
        return Ok(());
    }
    let report = if text.is_empty() {
        "it ended without a word".into()
    } else {
        String::from_utf8_lossy(&text).into_owned()
    };
    Err(RackError::Start {
        node: node.name.clone(),
        report,
    })
}

/// Removes the bridge and its ports (a pair's other end goes with it).
fn remove_devices(route: &mut RouteSocket, tag: &str) -> Result<bool, NetworkError> {
    use netlink_packet_route::link::InfoKind;

    let bridge = bridge_name(tag);
    let is_ours = |link: &network::Link| match link.kind {
        Some(InfoKind::Bridge) => link.name == bridge,
        Some(InfoKind::Veth) => is_port(&link.name, &bridge),
        _ => false,
    };
    let ours: Vec<_> = route.links()?.into_iter().filter(is_ours).collect();
    for link in &ours {
        route.delete(link)?;
    }
    Ok(!ours.is_empty())
}

fn is_port(name: &str, bridge: &str) -> bool {
    let number = name
        .strip_prefix(bridge)
        .and_then(|rest| rest.strip_prefix('.'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_a_device_or_a_host_is_refused() {
        let config = |tag: &str, node: &str| RackConfig {
            tag: tag.into(),
            nodes: vec![node.into()],
            rootless: false,
            hidden: Vec::new(),
            files: VirtualFiles::Disk,
        };
        assert!(check(&config("a1b2c3d4", "n1")).is_ok());
        for tag in ["", "a1b2c3d4e", "A", "a.b", "a/b"] {
            assert!(matches!(check(&config(tag, "n1")), Err(RackError::Tag(_))));
        }
        for node in ["", "-n", "n 1", "n.1", "n/1", &"n".repeat(64)] {
            let refused = check(&config("a", node));
            assert!(matches!(refused, Err(RackError::NodeName(_))));
        }
    }

    #[test]
    fn the_longest_names_fit_the_kernels_limit() {
        /// `IFNAMSIZ` without the terminating zero.
        const LONGEST: usize = 15;
        let tag = "a".repeat(MAX_TAG);
        assert!(port_name(&tag, MAX_NODES - 1).len() <= LONGEST);
        assert!(is_port(&port_name(&tag, 3), &bridge_name(&tag)));
        assert!(!is_port("wgab.1", "wga"));
    }
}
