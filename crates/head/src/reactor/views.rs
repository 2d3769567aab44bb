//! The nodes' views, as commands ask: what they have done, and whether what they believe is so.

use wiglaf_wire::agent::ToAgent;
use wiglaf_wire::client::{NodeCheck, ViewInfo};
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::view::{ViewCheck, ViewState};

use super::lists::Found;
use super::{Effect, LIST_WAIT_MS, Reactor};
use crate::jobs::Caller;
use crate::placement::{Refusal, resolve};

/// How long `view check` waits for the nodes: one asks for everything that it knows.
const CHECK_WAIT_MS: u64 = 60_000;
/// Most bytes of differences that one command is told; it has to fit into a frame (S1).
const MAX_DIFFERENCE_BYTES: usize = 1 << 20;
/// Most views of one list, for the same reason.
const MAX_VIEWS: usize = 16_384;

impl Reactor {
    pub(super) fn list_views(
        &mut self,
        now_ms: u64,
        caller: &Caller,
        nodes: Option<String>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let nodes = self.nodes_or_all(nodes)?;
        let found = Found::Views(self.whose(caller), Vec::new());
        let ask = |request| ToAgent::ListViews { request };
        let who = (caller.client, LIST_WAIT_MS);
        self.start_list(now_ms, who, nodes, found, ask, effects);
        Ok(())
    }

    pub(super) fn check_views(
        &mut self,
        now_ms: u64,
        caller: &Caller,
        nodes: Option<String>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let nodes = self.nodes_or_all(nodes)?;
        let connected = self.connected_nodes();
        let uid = self.whose(caller);
        let deputies = self.deputies.iter();
        let asked = deputies.filter(|(credential, _)| uid.is_none_or(|uid| uid == credential.uid));
        // Before the agents are told: their questions must find it known.
        for (_, deputy) in asked.filter(|(_, deputy)| self.ready_deputies.contains(deputy)) {
            for &node in nodes.iter().filter(|node| connected.contains(node)) {
                let for_ms = CHECK_WAIT_MS;
                let allow = ToDeputy::AllowCheck { node, for_ms };
                effects.push(Effect::ToDeputy(*deputy, allow));
            }
        }
        let found = Found::Checks(uid, Vec::new());
        let ask = |request| ToAgent::CheckViews { request, uid };
        let who = (caller.client, CHECK_WAIT_MS);
        self.start_list(now_ms, who, nodes, found, ask, effects);
        Ok(())
    }

    /// Whose views the caller may know of; `None` is everybody's.
    fn whose(&self, caller: &Caller) -> Option<u32> {
        (!self.is_admin(&caller.credential)).then_some(caller.credential.uid)
    }

    fn nodes_or_all(&self, nodes: Option<String>) -> Result<Vec<NodeId>, Refusal> {
        nodes.map_or_else(
            || Ok(self.connected_nodes()),
            |text| resolve(&self.nodes, &text),
        )
    }

    pub(super) fn view_infos(&self, mut found: Vec<(NodeId, ViewState)>) -> Vec<ViewInfo> {
        found.sort_by_key(|(node, view)| (*node, view.uid));
        let info = |(node, view)| ViewInfo {
            node: self.nodes.name(node),
            view,
        };
        found.into_iter().map(info).collect()
    }

    /// What the nodes that have said all of it have said.
    pub(super) fn node_checks(
        &self,
        mut answered: Vec<NodeId>,
        mut found: Vec<(NodeId, ViewCheck)>,
    ) -> Vec<NodeCheck> {
        answered.sort_unstable();
        found.sort_by_key(|(_, check)| check.uid);
        let of_node = |node| NodeCheck {
            node: self.nodes.name(node),
            views: found
                .iter()
                .filter(|(of, _)| *of == node)
                .map(|(_, check)| check.clone())
                .collect(),
        };
        answered.into_iter().map(of_node).collect()
    }
}

/// Those of this user that there is room for.
pub(super) fn take_views(
    uid: Option<u32>,
    found: &mut Vec<(NodeId, ViewState)>,
    node: NodeId,
    list: Vec<ViewState>,
) {
    let mine = |view: &ViewState| uid.is_none_or(|uid| uid == view.uid);
    let room = MAX_VIEWS.saturating_sub(found.len());
    let views = list.into_iter().filter(mine).take(room);
    found.extend(views.map(|view| (node, view)));
}

/// The same of checks. A check whose differences don't fit keeps one of them at least as a word,
/// so that it is not taken for one that has found none.
pub(super) fn take_checks(
    uid: Option<u32>,
    found: &mut Vec<(NodeId, ViewCheck)>,
    node: NodeId,
    list: Vec<ViewCheck>,
) {
    let bytes = |check: &ViewCheck| check.differences.iter().map(String::len).sum::<usize>();
    let mut used: usize = found.iter().map(|(_, check)| bytes(check)).sum();
    let mine = |check: &ViewCheck| uid.is_none_or(|uid| uid == check.uid);
    for mut check in list.into_iter().filter(mine) {
        if found.len() >= MAX_VIEWS {
            return;
        }
        let total = check.differences.len();
        let mut fits = 0;
        for difference in &check.differences {
            used += difference.len();
            if used > MAX_DIFFERENCE_BYTES {
                break;
            }
            fits += 1;
        }
        if fits < total {
            check.differences.truncate(fits);
            check.differences.push(format!("{} more", total - fits));
        }
        found.push((node, check));
    }
}
