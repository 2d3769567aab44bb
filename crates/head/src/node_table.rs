//! The node table: who is a member, in which state, and from when on a silent node is dead.

use std::collections::{BTreeMap, BTreeSet};

use wiglaf_wire::agent::Machine;
use wiglaf_wire::client::{NodeInfo, NodeState};
use wiglaf_wire::id::{Incarnation, NodeId, Pid, TaskId};

/// One more than the highest PID that Linux gives (`PID_MAX_LIMIT`, linux/threads.h).
const PID_LIMIT: i32 = 4 << 20;
/// PIDs that the descendants on one node have for themselves.
const PIDS_PER_NODE: i32 = 8192;
/// The head's own processes stay below this.
pub const FIRST_NODE_PID: i32 = 1 << 19;
/// Nodes whose PIDs are unique over the cluster.
pub const MAX_NODES: u32 = ((PID_LIMIT - FIRST_NODE_PID) / PIDS_PER_NODE).unsigned_abs();

/// Execute permissions of a new node: everybody, as BProc has it.
const DEFAULT_MODE: u32 = 0o111;

/// The PIDs of a node's descendants: first, and one more than the last.
pub fn pid_block(node: NodeId) -> (Pid, Pid) {
    let index = i32::try_from(block_of(node)).unwrap_or(0);
    let first = FIRST_NODE_PID + index * PIDS_PER_NODE;
    (Pid(first), Pid(first + PIDS_PER_NODE))
}

/// Which block a node has. Numbers are never given twice, as certificates name them; blocks are.
fn block_of(node: NodeId) -> u32 {
    node.0 % MAX_NODES
}

/// Which block a PID is in.
fn block_of_pid(pid: Pid) -> Option<u32> {
    if !(FIRST_NODE_PID..PID_LIMIT).contains(&pid.0) {
        return None;
    }
    u32::try_from((pid.0 - FIRST_NODE_PID) / PIDS_PER_NODE).ok()
}

/// What an administrator wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To work.
    Up,
    /// To finish what it has.
    Drain,
    /// To stay connected, for nobody.
    Unavailable,
    /// Marked as broken.
    Error,
}

/// Whether the head hears of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing of it is alive: never joined, left, was proven dead or fenced.
    Absent,
    /// Its agent is connected.
    Connected,
    /// Its agent is silent; what it runs may live until the fence.
    Silent,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Execute permissions.
    pub mode: u32,
    /// Tasks that it takes at once; `None`: its processors.
    pub slots: Option<u32>,
    /// The administrator's wish.
    pub wanted: Wanted,
    /// Whether it is heard of.
    pub presence: Presence,
    /// The agent's present or last life.
    pub incarnation: Option<Incarnation>,
    /// When the head last sent it an answer that renews its lease.
    pub answered_ms: u64,
    /// When it was last heard of.
    pub heard_ms: u64,
    /// What it runs on.
    pub machine: Machine,
    /// Load × 100.
    pub load_centi: u32,
    /// Available memory.
    pub available_kib: u64,
    /// Held by this head's rack.
    pub is_virtual: bool,
    /// It has been a member since it was last known to be dead: what it ran may live, whatever a
    /// new head sees of it.
    pub may_live: bool,
    /// Its machine boots, and has not joined yet.
    pub is_booting: bool,
    /// Its tasks.
    pub tasks: BTreeSet<TaskId>,
    /// A job that has it for itself.
    pub exclusive: Option<wiglaf_wire::id::JobId>,
    /// What `@NAME` in node sets finds it by.
    pub groups: BTreeSet<String>,
}

impl Node {
    fn new(id: NodeId, name: String) -> Node {
        Node {
            id,
            name,
            uid: 0,
            gid: 0,
            mode: DEFAULT_MODE,
            slots: None,
            wanted: Wanted::Up,
            presence: Presence::Absent,
            incarnation: None,
            answered_ms: 0,
            heard_ms: 0,
            machine: Machine::default(),
            load_centi: 0,
            available_kib: 0,
            is_virtual: false,
            may_live: false,
            is_booting: false,
            tasks: BTreeSet::new(),
            exclusive: None,
            groups: BTreeSet::new(),
        }
    }

    /// Its state, in BProc's words.
    pub fn state(&self) -> NodeState {
        match (self.presence, self.wanted) {
            (Presence::Absent, _) if self.is_booting => NodeState::Boot,
            (Presence::Absent, _) => NodeState::Down,
            (Presence::Silent, _) => NodeState::Suspect,
            (Presence::Connected, Wanted::Up) => NodeState::Up,
            (Presence::Connected, Wanted::Drain) => NodeState::Drain,
            (Presence::Connected, Wanted::Unavailable) => NodeState::Unavailable,
            (Presence::Connected, Wanted::Error) => NodeState::Error,
        }
    }

    /// Tasks that it takes at once.
    pub fn slot_count(&self) -> u32 {
        self.slots.unwrap_or(self.machine.cpus.max(1))
    }

    /// Tasks that it has.
    pub fn task_count(&self) -> u32 {
        u32::try_from(self.tasks.len()).unwrap_or(u32::MAX)
    }

    /// Whether this user may start tasks on it, as BProc decides it: the first of owner, group
    /// and others that fits.
    pub fn may_execute(&self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        let bit = if uid == 0 {
            return true;
        } else if uid == self.uid {
            0o100
        } else if gid == self.gid || groups.contains(&self.gid) {
            0o010
        } else {
            0o001
        };
        self.mode & bit != 0
    }

    /// When a node that was last answered then has certainly killed its work (P4).
    pub fn fence_ms(&self, lease_ms: u64, margin_ms: u64) -> u64 {
        self.answered_ms + lease_ms + margin_ms
    }

    /// For lists.
    pub fn info(&self) -> NodeInfo {
        NodeInfo {
            id: self.id,
            name: self.name.clone(),
            state: self.state(),
            uid: self.uid,
            gid: self.gid,
            mode: self.mode,
            slots: self.slot_count(),
            tasks: self.task_count(),
            load_centi: self.load_centi,
            available_kib: self.available_kib,
            machine: self.machine.clone(),
            is_virtual: self.is_virtual,
        }
    }
}

/// No further node fits.
#[derive(Debug, thiserror::Error)]
#[error("the cluster has all the {MAX_NODES} nodes that PIDs can be unique over")]
pub struct TableFull;

/// All nodes.
#[derive(Clone, Debug, Default)]
pub struct NodeTable {
    nodes: BTreeMap<NodeId, Node>,
    /// The last number of a node that was removed, by its block.
    retired: BTreeMap<u32, NodeId>,
}

impl NodeTable {
    /// The node with this name, made if it is new: `n7` gets number 7 where that is free.
    ///
    /// # Errors
    /// [`TableFull`].
    pub fn enrol(&mut self, name: &str) -> Result<&mut Node, TableFull> {
        let id = match self.by_name(name) {
            Some(node) => node.id,
            None => self.free_id(name).ok_or(TableFull)?,
        };
        Ok(self
            .nodes
            .entry(id)
            .or_insert_with(|| Node::new(id, name.to_owned())))
    }

    /// A node with this number and name, as the store remembers it.
    pub fn insert(&mut self, id: NodeId, name: String) -> &mut Node {
        self.nodes.entry(id).or_insert_with(|| Node::new(id, name))
    }

    /// A name for a machine that has not asked for one.
    pub fn free_name(&self) -> String {
        self.free_name_but(|_| false)
    }

    /// The same, without the names that are kept for others.
    pub fn free_name_but(&self, is_kept: impl Fn(&str) -> bool) -> String {
        let number = (1..=MAX_NODES).find(|number| {
            let name = format!("n{number}");
            self.by_name(&name).is_none() && !is_kept(&name)
        });
        format!("n{}", number.unwrap_or(0))
    }

    /// A number whose block of PIDs nobody has, and that nobody ever had: who still has the
    /// certificate of a node that was removed must not be taken for the one that came after it.
    fn free_id(&self, name: &str) -> Option<NodeId> {
        let wish = name
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .ok();
        let taken: BTreeSet<u32> = self.nodes.keys().copied().map(block_of).collect();
        let fresh = |block: u32| match self.retired.get(&block) {
            None => Some(NodeId(block)),
            Some(last) => last.0.checked_add(MAX_NODES).map(NodeId),
        };
        wish.filter(|block| *block < MAX_NODES)
            .into_iter()
            .chain(0..MAX_NODES)
            .filter(|block| !taken.contains(block))
            .find_map(fresh)
    }

    /// Forgets a node for good. Its name and its block of PIDs may be another's then, so nothing
    /// of it may be alive. Returns whether there was one.
    pub fn remove(&mut self, id: NodeId) -> bool {
        let is_there = self.nodes.remove(&id).is_some();
        if is_there {
            self.retire(id);
        }
        is_there
    }

    /// Never gives this number again.
    pub fn retire(&mut self, id: NodeId) {
        let last = self.retired.entry(block_of(id)).or_insert(id);
        *last = (*last).max(id);
    }

    /// The node whose block a PID is in.
    pub fn of_pid(&self, pid: Pid) -> Option<&Node> {
        let block = block_of_pid(pid)?;
        self.nodes.values().find(|node| block_of(node.id) == block)
    }

    /// The node with this number.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// The node with this name.
    pub fn by_name(&self, name: &str) -> Option<&Node> {
        self.nodes.values().find(|node| node.name == name)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// All, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut()
    }

    /// A node's name, for messages.
    pub fn name(&self, id: NodeId) -> String {
        self.get(id)
            .map_or_else(|| format!("node {id}"), |node| node.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_bprocs() {
        let mut node = Node::new(NodeId(1), "n1".into());
        (node.uid, node.gid, node.mode) = (10, 20, 0o100);
        assert!(node.may_execute(10, 1, &[]));
        assert!(!node.may_execute(11, 20, &[]));
        node.mode = 0o010;
        assert!(
            !node.may_execute(10, 20, &[]),
            "the owner's bit decides for the owner"
        );
        assert!(node.may_execute(11, 1, &[20]));
        assert!(node.may_execute(0, 0, &[]));
    }

    #[test]
    fn pid_blocks_do_not_overlap_and_lead_back_to_their_node() {
        for number in 0..MAX_NODES {
            let (first, end) = pid_block(NodeId(number));
            assert_eq!(block_of_pid(first), Some(number));
            assert_eq!(block_of_pid(Pid(end.0 - 1)), Some(number));
            assert!(end.0 <= PID_LIMIT);
        }
        assert_eq!(block_of_pid(Pid(FIRST_NODE_PID - 1)), None);
    }

    #[test]
    fn a_removed_nodes_name_and_pids_come_again_but_never_its_number() {
        let mut table = NodeTable::default();
        let first = table.enrol("n7").unwrap().id;
        assert!(table.remove(first) && !table.remove(first));
        let second = table.enrol("n7").unwrap().id;
        assert_ne!(first, second);
        assert_eq!(pid_block(first), pid_block(second));
        assert_eq!(table.of_pid(pid_block(first).0).unwrap().id, second);
        assert!(table.get(first).is_none());
        table.remove(second);
        assert!(![first, second].contains(&table.enrol("n7").unwrap().id));
    }

    proptest::proptest! {
        #[test]
        fn whoever_comes_and_goes_no_two_nodes_share_a_block_or_have_a_number_again(
            steps in proptest::collection::vec((proptest::prelude::any::<bool>(), 0_u32..12), 1..200),
        ) {
            let mut table = NodeTable::default();
            let mut given = BTreeSet::new();
            for (comes, number) in steps {
                let name = format!("n{number}");
                let known = table.by_name(&name).map(|node| node.id);
                match (comes, known) {
                    (true, None) => proptest::prop_assert!(given.insert(table.enrol(&name).unwrap().id)),
                    (false, Some(id)) => proptest::prop_assert!(table.remove(id)),
                    _ => {}
                }
                let blocks: BTreeSet<_> = table.iter().map(|node| pid_block(node.id).0).collect();
                proptest::prop_assert_eq!(blocks.len(), table.iter().count());
            }
        }
    }

    #[test]
    fn names_keep_their_numbers() {
        let mut table = NodeTable::default();
        assert_eq!(table.enrol("n7").unwrap().id, NodeId(7));
        assert_eq!(table.enrol("rack7").unwrap().id, NodeId(0));
        assert_eq!(table.enrol("n7").unwrap().id, NodeId(7));
        assert_eq!(table.free_name(), "n1");
    }
}
