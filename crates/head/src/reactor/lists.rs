//! What several nodes are asked at once for one command: gathered until all have answered, or for
//! as long as the command should wait.

use wiglaf_wire::agent::{Process, ToAgent};
use wiglaf_wire::client::{ProcessInfo, Reply};
use wiglaf_wire::disk::DiskAnswer;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::view::{ViewCheck, ViewState};

use super::{Effect, Reactor, disks, views};
use crate::jobs::ClientId;
use crate::node_table::Presence;

/// A question to several nodes that is under way.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) client: ClientId,
    awaited: Vec<NodeId>,
    answered: Vec<NodeId>,
    /// Lost while they were awaited, or not there at all.
    silent: Vec<NodeId>,
    found: Found,
    pub(super) deadline_ms: u64,
}

/// What the nodes have answered so far. Other answers than those that were asked for are not
/// listened to.
#[derive(Debug)]
pub(super) enum Found {
    Processes(Vec<(NodeId, Process)>),
    /// Of one user only, unless `None`.
    Views(Option<u32>, Vec<(NodeId, ViewState)>),
    Checks(Option<u32>, Vec<(NodeId, ViewCheck)>),
    Disks(Vec<(NodeId, DiskAnswer)>),
}

/// Part of a node's answer.
#[derive(Debug)]
pub(super) enum Part {
    Processes(Vec<Process>),
    Views(Vec<ViewState>),
    Checks(Vec<ViewCheck>),
    Disks(Box<DiskAnswer>),
}

impl Reactor {
    /// Nodes that can be asked now.
    pub(super) fn connected_nodes(&self) -> Vec<NodeId> {
        let connected = |node: &&crate::node_table::Node| node.presence == Presence::Connected;
        let nodes = self.nodes.iter().filter(connected);
        nodes.map(|node| node.id).collect()
    }

    /// Asks these nodes with what `ask` makes of the request's number. Those that are not
    /// connected don't answer.
    pub(super) fn start_list(
        &mut self,
        now_ms: u64,
        (client, wait_ms): (ClientId, u64),
        nodes: Vec<NodeId>,
        found: Found,
        ask: impl Fn(u64) -> ToAgent,
        effects: &mut Vec<Effect>,
    ) {
        let who = (client, wait_ms);
        self.start_list_of_each(
            now_ms,
            who,
            nodes,
            found,
            |_, request| ask(request),
            effects,
        );
    }

    /// The same with a question of its own for each.
    pub(super) fn start_list_of_each(
        &mut self,
        now_ms: u64,
        (client, wait_ms): (ClientId, u64),
        nodes: Vec<NodeId>,
        found: Found,
        ask: impl Fn(NodeId, u64) -> ToAgent,
        effects: &mut Vec<Effect>,
    ) {
        let request = self.next_list;
        self.next_list += 1;
        let connected = self.connected_nodes();
        let (awaited, silent): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|node| connected.contains(node));
        for node in &awaited {
            effects.push(Effect::ToNode(*node, ask(*node, request)));
        }
        let listing = Listing {
            client,
            awaited,
            answered: Vec::new(),
            silent,
            found,
            deadline_ms: now_ms + wait_ms,
        };
        self.lists.insert(request, listing);
        self.check_lists(now_ms, effects);
    }

    pub(super) fn listed(
        &mut self,
        node: NodeId,
        request: u64,
        part: Part,
        last: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(list) = self.lists.get_mut(&request) else {
            return;
        };
        if !list.awaited.contains(&node) || !list.found.take(node, part) {
            return;
        }
        if last {
            list.awaited.retain(|awaited| *awaited != node);
            list.answered.push(node);
        }
        self.check_lists(0, effects);
    }

    /// A node that was lost answers no list.
    pub(super) fn answer_for_silent(
        &mut self,
        now_ms: u64,
        node: NodeId,
        effects: &mut Vec<Effect>,
    ) {
        for list in self.lists.values_mut() {
            if list.awaited.contains(&node) {
                list.awaited.retain(|awaited| *awaited != node);
                list.silent.push(node);
            }
        }
        self.check_lists(now_ms, effects);
    }

    pub(super) fn check_lists(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let done: Vec<_> = self
            .lists
            .iter()
            .filter(|(_, list)| list.awaited.is_empty() || list.deadline_ms <= now_ms)
            .map(|(request, _)| *request)
            .collect();
        for request in done {
            if let Some(listing) = self.lists.remove(&request) {
                let client = listing.client;
                effects.push(Effect::Reply(client, self.reply_to(listing)));
            }
        }
    }

    fn reply_to(&self, listing: Listing) -> Reply {
        let unheard = listing.silent.iter().chain(&listing.awaited);
        let silent = unheard.map(|node| self.nodes.name(*node)).collect();
        match listing.found {
            Found::Processes(found) => {
                let info = |(node, process)| ProcessInfo {
                    node: self.nodes.name(node),
                    process,
                };
                let list = found.into_iter().map(info).collect();
                Reply::Processes { list, silent }
            }
            Found::Views(_, found) => {
                let list = self.view_infos(found);
                Reply::Views { list, silent }
            }
            Found::Checks(_, found) => {
                let list = self.node_checks(listing.answered, found);
                Reply::ViewsChecked { list, silent }
            }
            Found::Disks(found) => {
                let list = self.node_disks(found);
                Reply::Disks { list, silent }
            }
        }
    }
}

impl Found {
    /// Returns whether it is part of the answer.
    fn take(&mut self, node: NodeId, part: Part) -> bool {
        match (self, part) {
            (Found::Processes(found), Part::Processes(list)) => {
                found.extend(list.into_iter().map(|process| (node, process)));
            }
            (Found::Views(uid, found), Part::Views(list)) => {
                views::take_views(*uid, found, node, list);
            }
            (Found::Checks(uid, found), Part::Checks(list)) => {
                views::take_checks(*uid, found, node, list);
            }
            (Found::Disks(found), Part::Disks(answer)) => disks::take_disks(found, node, *answer),
            _ => return false,
        }
        true
    }
}
