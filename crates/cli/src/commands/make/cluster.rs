//! The nodes that a build may use, as the head tells of them.

use std::time::{Duration, Instant};

use rustix::process::{getegid, geteuid, getgroups};
use wiglaf_build::{Event, Node};
use wiglaf_head::config::Layout;
use wiglaf_link::{Channel, Interest, Poll, Ready};
use wiglaf_wire::client::{NodeInfo, NodeState, Reply, Request};
use wiglaf_wire::nodeset::NodeSet;

use super::token::{Kind, token};
use crate::error::CommandError;
use crate::head::Head;

/// After a failure the nodes are asked for again, but not more often.
const PERIOD: Duration = Duration::from_secs(1);
/// While lines wait for nodes, it is looked this often whether there are more.
const WANTED_PERIOD: Duration = Duration::from_secs(2);

pub(super) struct Cluster {
    pub(super) layout: Layout,
    channel: Option<Channel<Reply, Request>>,
    wanted: Option<String>,
    asked: Instant,
    /// All of the cluster's, that those not wanted can be left out by name.
    names: Vec<String>,
    nodes: Vec<Node>,
    /// PIDs of what serves the nodes.
    daemons: Vec<i32>,
}

impl Cluster {
    /// Of the head that answers, with the nodes of this set.
    pub(super) fn reach(wanted: Option<&str>) -> Result<Cluster, CommandError> {
        let mut head = Head::connect()?;
        let nodes = match head.ask(&Request::Nodes)? {
            Reply::Nodes(nodes) => nodes,
            other => return Err(CommandError::from_reply(other)),
        };
        let daemons = match head.ask(&Request::HeadStatus)? {
            Reply::HeadStatus(status) => [status.pid, status.keeper_pid]
                .into_iter()
                .chain(status.deputy_pids)
                .collect(),
            other => return Err(CommandError::from_reply(other)),
        };
        let mut cluster = Cluster {
            layout: Layout::reachable()?,
            channel: Some(head.into_channel()?),
            wanted: wanted.map(str::to_owned),
            asked: Instant::now(),
            names: Vec::new(),
            nodes: Vec::new(),
            daemons,
        };
        cluster.take(&nodes)?;
        if cluster.nodes.is_empty() {
            let message = match wanted {
                Some(set) => format!("no node of {set} is up for you"),
                None => "no node is up for you".to_owned(),
            };
            return Err(
                CommandError::new(message).hint("`wiglaf nodes` shows the nodes and their states")
            );
        }
        Ok(cluster)
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The head's daemons, whose work takes processors from lines that run here.
    pub(super) fn daemons(&self) -> Vec<i32> {
        self.daemons.clone()
    }

    pub(super) fn slots(&self) -> u32 {
        self.nodes.iter().map(|node| node.slots).sum()
    }

    /// Nodes that this build must not use, and these as well, as a node set.
    pub(super) fn excluded(&self, failed: &[String]) -> Option<String> {
        let is_used = |name: &String| self.nodes.iter().any(|node| node.name == *name);
        let left_out = self.wanted.iter().flat_map(|_| &self.names);
        let names: Vec<_> = left_out
            .filter(|name| !is_used(name))
            .chain(failed.iter().filter(|name| self.names.contains(name)))
            .map(String::as_str)
            .collect();
        (!names.is_empty()).then(|| names.join(","))
    }

    pub(super) fn watch(&self, poll: &Poll) -> Result<(), CommandError> {
        if let Some(channel) = &self.channel {
            poll.add(channel, token(Kind::Nodes, 0), Interest::Read)?;
        }
        Ok(())
    }

    /// Something has failed on a node: which are up?
    pub(super) fn ask_again(&mut self, poll: &Poll) {
        if self.asked.elapsed() < PERIOD {
            return;
        }
        self.asked = Instant::now();
        if self.channel.is_none()
            && let Ok(head) = Head::connect_to(&self.layout)
        {
            self.channel = Some(head.into_ungreeted_channel());
            // What can't be watched is not heard: the nodes known so far are gone on with.
            let _ = self.watch(poll);
        }
        if let Some(channel) = &mut self.channel
            && channel.send(&Request::Nodes, Vec::new()).is_err()
        {
            let _ = poll.remove(&*channel);
            self.channel = None;
        }
    }

    /// While lines wait for nodes: when [`Cluster::look_for_more`] is due.
    pub(super) fn due_in(&self) -> Duration {
        WANTED_PERIOD.saturating_sub(self.asked.elapsed())
    }

    /// Lines wait for nodes: have some joined?
    pub(super) fn look_for_more(&mut self, poll: &Poll) {
        if self.due_in().is_zero() {
            self.ask_again(poll);
        }
    }

    pub(super) fn ready(&mut self, poll: &Poll, ready: Ready, events: &mut Vec<Event>) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        let is_over = ready.readable && channel.receive().is_err();
        let mut latest = None;
        while let Ok(Some(reply)) = channel.next_message() {
            if let Reply::Nodes(nodes) = reply {
                latest = Some(nodes);
            }
        }
        if is_over {
            let _ = poll.remove(&*channel);
            self.channel = None;
        }
        if let Some(nodes) = latest
            && self.take(&nodes).is_ok()
        {
            events.push(Event::Nodes(self.nodes.clone()));
        }
    }

    fn take(&mut self, nodes: &[NodeInfo]) -> Result<(), CommandError> {
        self.names = nodes.iter().map(|node| node.name.clone()).collect();
        let all = |name: &str| (name == "all").then(|| self.names.clone());
        let set = match &self.wanted {
            Some(text) => Some(NodeSet::parse(text, &all)?),
            None => None,
        };
        let is_usable = |node: &&NodeInfo| {
            node.state == NodeState::Up
                && may_execute(node)
                && set.as_ref().is_none_or(|set| set.contains(&node.name))
        };
        self.nodes = nodes
            .iter()
            .filter(is_usable)
            .map(|node| Node {
                name: node.name.clone(),
                slots: node.slots,
                is_virtual: node.is_virtual,
            })
            .collect();
        Ok(())
    }
}

/// As the head decides it, who has the last word.
fn may_execute(node: &NodeInfo) -> bool {
    let gid = getegid().as_raw();
    let groups = getgroups().unwrap_or_default();
    let bit = if geteuid().is_root() {
        return true;
    } else if geteuid().as_raw() == node.uid {
        0o100
    } else if gid == node.gid || groups.iter().any(|group| group.as_raw() == node.gid) {
        0o010
    } else {
        0o001
    };
    node.mode & bit != 0
}
