//! The rack's life: it makes its nodes, tells the head of them, and outlives the head.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use wiglaf_link::{Channel, Interest, JoinToken, LinkError, Poll, Token};
use wiglaf_linux::process::{set_process_title, wait_any_child};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_wire::client::{Reply, Request};

use super::{NodePlace, Rack, RackConfig, RackError, VirtualFiles, VirtualNode};
use crate::agent::{self, AgentConfig, Trust};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const HEAD: Token = Token(0);
const SIGNALS: Token = Token(1);
/// Validity of the token that the nodes join with; their certificates outlive it.
const TOKEN_VALID_MS: u64 = 600_000;

/// A connection to the head, as any command has one.
pub type HeadChannel = Channel<Reply, Request>;

/// What to hold.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Tells this cluster's devices from others'.
    pub tag: String,
    /// The nodes' names.
    pub names: Vec<String>,
    /// Where tasks' files come from.
    pub files: VirtualFiles,
    /// What tasks must not reach on the disk.
    pub hidden: Vec<PathBuf>,
}

/// Why no rack can be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Namespaces or network.
    #[error(transparent)]
    Rack(#[from] RackError),
    /// The connection to the head.
    #[error("the head: {0}")]
    Link(#[from] LinkError),
    /// The head does not want it.
    #[error("the head refuses virtual nodes: {0}")]
    Refused(String),
    /// The loop itself.
    #[error("the rack's event loop: {0}")]
    Loop(#[from] rustix::io::Errno),
}

/// Makes the nodes and holds them until the cluster is ended. `reconnect` is called when the head
/// has gone away unasked, and returns a connection to its successor.
///
/// # Errors
/// The nodes can't be made, or the head refuses them.
pub fn hold(
    config: Hold,
    head: HeadChannel,
    mut reconnect: impl FnMut(&Hold) -> Option<HeadChannel>,
) -> Result<(), HoldError> {
    // Before the first child whose end could be missed, and inherited by no task: spawning sets
    // the mask anew.
    let handled = SignalSet::of(&[SIGCHLD, SIGTERM, SIGINT]);
    block_signals(handled);
    let rack = Rack::set_up(&RackConfig {
        tag: config.tag.clone(),
        nodes: config.names.clone(),
        rootless: !rustix::process::geteuid().is_root(),
        hidden: config.hidden.clone(),
        files: config.files.clone(),
    })?;
    // Only how `ps` shows it depends on this.
    let _ = set_process_title("wiglaf: rack");
    let mut held = Held {
        rack,
        nodes: Vec::new(),
        head: Some(head),
    };
    let result = held
        .start(&config)
        .and_then(|()| held.serve(&config, handled, &mut reconnect));
    held.end();
    result
}

struct Held {
    rack: Rack,
    nodes: Vec<VirtualNode>,
    head: Option<HeadChannel>,
}

impl Held {
    fn start(&mut self, config: &Hold) -> Result<(), HoldError> {
        self.offer_listener()?;
        let token = match self.ask(
            &Request::MakeToken {
                valid_ms: TOKEN_VALID_MS,
            },
            Vec::new(),
        )? {
            Reply::Token(text) => text
                .parse::<JoinToken>()
                .map_err(|e| HoldError::Refused(e.to_string()))?,
            other => return Err(refusal(other)),
        };
        for index in 0..config.names.len() {
            let token = token.clone();
            let node = self.rack.start(index, move |place| live(place, token))?;
            self.offer_node(&node)?;
            self.nodes.push(node);
        }
        Ok(())
    }

    fn serve(
        &mut self,
        config: &Hold,
        handled: SignalSet,
        reconnect: &mut impl FnMut(&Hold) -> Option<HeadChannel>,
    ) -> Result<(), HoldError> {
        let poll = Poll::new()?;
        let signals = SignalFd::new(handled)?;
        poll.add(&signals, SIGNALS, Interest::Read)?;
        if let Some(head) = &self.head {
            poll.add(head, HEAD, Interest::Read)?;
        }
        let mut ready = Vec::new();
        loop {
            poll.wait(&mut ready, None)?;
            for event in &ready {
                if event.token == SIGNALS {
                    if self.take_signals(&signals)? {
                        return Ok(());
                    }
                } else if self.hear_head() {
                    return Ok(());
                }
            }
            if self.head.is_none() {
                let Some(head) = reconnect(config) else {
                    return Ok(());
                };
                self.head = Some(head);
                self.offer_listener()?;
                for node in std::mem::take(&mut self.nodes) {
                    self.offer_node(&node)?;
                    self.nodes.push(node);
                }
                if let Some(head) = &self.head {
                    poll.add(head, HEAD, Interest::Read)?;
                }
            }
        }
    }

    /// Whether to end.
    fn take_signals(&mut self, signals: &SignalFd) -> Result<bool, HoldError> {
        let mut ends = false;
        while let Some(signal) = signals.read()? {
            ends |= signal.signo != SIGCHLD;
        }
        // The head learns of a node's end from its pidfd; here it is only taken note of.
        while let Ok(Some(_)) = wait_any_child(true) {}
        Ok(ends)
    }

    /// Whether the cluster is being ended.
    fn hear_head(&mut self) -> bool {
        let Some(head) = &mut self.head else {
            return false;
        };
        let lost = head.receive().is_err();
        while let Ok(Some(reply)) = head.next_message() {
            if reply == Reply::Ending {
                return true;
            }
        }
        if lost {
            self.head = None;
        }
        false
    }

    fn offer_listener(&mut self) -> Result<(), HoldError> {
        let listener = rustix::io::fcntl_dupfd_cloexec(&self.rack.listener, 0)?;
        match self.ask(&Request::Listener, vec![listener])? {
            Reply::Done => Ok(()),
            other => Err(refusal(other)),
        }
    }

    fn offer_node(&mut self, node: &VirtualNode) -> Result<(), HoldError> {
        let pidfd = rustix::io::fcntl_dupfd_cloexec(&node.pidfd, 0)?;
        match self.ask(
            &Request::VirtualNode {
                name: node.name.clone(),
            },
            vec![pidfd],
        )? {
            Reply::Done => Ok(()),
            other => Err(refusal(other)),
        }
    }

    fn ask(&mut self, request: &Request, descriptors: Vec<OwnedFd>) -> Result<Reply, HoldError> {
        let head = self
            .head
            .as_mut()
            .ok_or(HoldError::Link(LinkError::Closed))?;
        head.queue(request, descriptors)?;
        head.wait_flushed()?;
        Ok(head.wait_message()?)
    }

    fn end(self) {
        for node in &self.nodes {
            let _ = node.kill();
        }
        for node in &self.nodes {
            // It may have ended before, and been taken note of.
            let _ = node.wait();
        }
        let _ = self.rack.tear_down();
    }
}

fn refusal(reply: Reply) -> HoldError {
    match reply {
        Reply::Refused { message, .. } => HoldError::Refused(message),
        other => HoldError::Refused(format!("{other:?}")),
    }
}

/// An agent's life, in its fork.
fn live(place: NodePlace, token: JoinToken) {
    let config = AgentConfig {
        head: place.head,
        trust: Trust::Token(token),
        name: Some(place.name.clone()),
        files: place.files,
        // The head's own disk has it all.
        keep: None,
        address: place.address.to_string(),
        rootless: !rustix::process::geteuid().is_root(),
        is_virtual: true,
    };
    if let Err(error) = agent::run(config) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{}: {error}", place.name);
    }
}
