//! Nodes' own disks, as commands ask. What is done with them the agents decide.

use std::collections::BTreeMap;

use wiglaf_wire::agent::ToAgent;
use wiglaf_wire::disk::{DiskAction, DiskAnswer, DiskOrder, DiskRequest, MAX_DISK_TEXT, NodeDisks};
use wiglaf_wire::id::NodeId;

use super::lists::Found;
use super::{Effect, Reactor};
use crate::jobs::{Caller, ClientId};
use crate::placement::{Refusal, resolve};

/// How long a disk may take to say what is on it: it may have to start to turn.
const LOOK_WAIT_MS: u64 = 60_000;
/// How long making file systems, or writing a medium, may take. Nodes give up sooner, so that they
/// can say why.
const APPLY_WAIT_MS: u64 = 900_000;
/// Most of what one command is told; it has to fit into a frame (S1).
const MAX_TOLD: usize = 2 << 20;
/// Most that one command may name.
const MAX_ERASED: usize = 4096;

impl Reactor {
    /// The nodes that are asked, by number and name: those that are named, or all that are
    /// connected and have disks of their own.
    ///
    /// # Errors
    /// The caller may not, or names what is not there.
    pub fn disk_nodes(
        &self,
        caller: &Caller,
        request: &DiskRequest,
    ) -> Result<Vec<(NodeId, String)>, Refusal> {
        if !self.is_admin(&caller.credential) {
            return Err(Refusal::new(
                "only root and the cluster's administrators may look after nodes' disks",
                "use sudo, or ask an administrator",
            ));
        }
        let ids = match &request.nodes {
            Some(text) => resolve(&self.nodes, text)?,
            None => {
                let mut ids = self.connected_nodes();
                ids.retain(|id| self.nodes.get(*id).is_some_and(|node| !node.is_virtual));
                ids
            }
        };
        let nodes: Vec<_> = ids
            .into_iter()
            .map(|id| (id, self.nodes.name(id)))
            .collect();
        if request.erase.len() > MAX_ERASED {
            return Err(Refusal::new(
                "too many disks are named at once",
                "name some, and then the others",
            ));
        }
        if let DiskAction::Write(medium) = &request.action
            && (nodes.len() != 1 || medium.device.len() > MAX_DISK_TEXT)
        {
            return Err(Refusal::new(
                "a medium is written to one disk of one node at a time",
                "name one that is up; `wiglaf nodes` shows them",
            ));
        }
        let is_asked = |name: &String| nodes.iter().any(|(_, asked)| asked == name);
        if let Some((name, device)) = request.erase.iter().find(|(name, _)| !is_asked(name)) {
            return Err(Refusal::new(
                format!("--erase {name}:{device}: {name} is not among the nodes that are asked"),
                "it has to be up; `wiglaf nodes` shows them",
            ));
        }
        Ok(nodes)
    }

    /// Has agents do this with their disks.
    pub fn order_disks(
        &mut self,
        now_ms: u64,
        client: ClientId,
        orders: BTreeMap<NodeId, DiskOrder>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let is_work = |order: &DiskOrder| {
            matches!(order, DiskOrder::Apply { .. })
                || matches!(order, DiskOrder::Write(medium) if medium.file.is_some())
        };
        let wait_ms = if orders.values().any(is_work) {
            APPLY_WAIT_MS
        } else {
            LOOK_WAIT_MS
        };
        let nodes = orders.keys().copied().collect();
        let ask = |node, request| ToAgent::Disk {
            request,
            order: Box::new(orders.get(&node).cloned().unwrap_or(DiskOrder::Look)),
        };
        let found = Found::Disks(Vec::new());
        self.start_list_of_each(now_ms, (client, wait_ms), nodes, found, ask, &mut effects);
        effects
    }

    pub(super) fn node_disks(&self, mut found: Vec<(NodeId, DiskAnswer)>) -> Vec<NodeDisks> {
        found.sort_by_key(|(node, _)| *node);
        let of_node = |(node, answer)| NodeDisks {
            node: self.nodes.name(node),
            answer,
        };
        found.into_iter().map(of_node).collect()
    }
}

/// One more answer, if there is room for it.
pub(super) fn take_disks(
    found: &mut Vec<(NodeId, DiskAnswer)>,
    node: NodeId,
    mut answer: DiskAnswer,
) {
    answer.bound();
    let told: usize = found.iter().map(|(_, answer)| answer.weight()).sum();
    if told + answer.weight() > MAX_TOLD {
        answer = DiskAnswer::refused("there is no room for its answer; ask for it alone by -w");
    }
    found.push((node, answer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_talkative_node_leaves_room_for_others() {
        let step = wiglaf_wire::disk::DiskStep {
            device: None,
            verdict: wiglaf_wire::disk::DiskVerdict::Right,
            text: "x".repeat(200),
        };
        let answer = DiskAnswer {
            steps: vec![step; 1000],
            ..DiskAnswer::default()
        };
        let mut found = Vec::new();
        for node in 0..2000 {
            take_disks(&mut found, NodeId(node), answer.clone());
        }
        assert_eq!(found.len(), 2000);
        let total: usize = found.iter().map(|(_, answer)| answer.weight()).sum();
        assert!(total < wiglaf_wire::frame::MAX_FRAME_BYTES);
    }
}
