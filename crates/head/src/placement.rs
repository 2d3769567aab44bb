//! Which nodes a job's tasks go to: the one policy of the cluster, pure.

use wiglaf_wire::client::{MAX_TASKS_PER_JOB, NodeSelection, NodeState};
use wiglaf_wire::id::NodeId;
use wiglaf_wire::nodeset::NodeSet;
use wiglaf_wire::status::EXIT_CLUSTER_FAILED;

use crate::node_table::{Node, NodeTable, Presence, Wanted};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// The answer to a selection.
#[derive(Debug, PartialEq, Eq)]
pub enum Placement {
    /// The node of each task.
    Placed(Vec<NodeId>),
    /// Nothing is free now.
    Wait(String),
    /// It can't ever be placed as things are.
    Refused(Refusal),
}

/// Why a request is refused, for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Exit code.
    pub code: u8,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal with the cluster's exit code.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal {
            code: EXIT_CLUSTER_FAILED,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

/// Chooses the nodes.
pub fn place(nodes: &NodeTable, asker: Asker<'_>, selection: &NodeSelection) -> Placement {
    choose(nodes, asker, selection).unwrap_or_else(Placement::Refused)
}

fn choose(
    nodes: &NodeTable,
    asker: Asker<'_>,
    selection: &NodeSelection,
) -> Result<Placement, Refusal> {
    let named = selection
        .nodes
        .as_deref()
        .map(|text| resolve(nodes, text))
        .transpose()?;
    let excluded = selection
        .exclude
        .as_deref()
        .map(|text| resolve(nodes, text))
        .transpose()?;
    let is_excluded = |node: &&Node| !excluded.as_ref().is_some_and(|set| set.contains(&node.id));
    let picks = named.is_some() || selection.all;
    let candidates: Vec<&Node> = match &named {
        Some(ids) => {
            let wished: Vec<_> = ids
                .iter()
                .filter_map(|id| nodes.get(*id))
                .filter(is_excluded)
                .collect();
            // Of nodes that were named, a missing one is an error; `-a` takes those that are up.
            if !selection.all
                && let Some(refusal) = wished.iter().find_map(|node| unusable(node, asker))
            {
                return Err(refusal);
            }
            wished
        }
        None => nodes.iter().filter(is_excluded).collect(),
    };
    let mut usable: Vec<_> = candidates
        .iter()
        .copied()
        .filter(|node| unusable(node, asker).is_none())
        .collect();
    if usable.is_empty() {
        return Err(nothing_usable(&candidates, asker));
    }
    if let Some(count) = selection.node_count {
        let wanted = usize::try_from(count).unwrap_or(usize::MAX).max(1);
        if wanted > usable.len() {
            return Err(Refusal::new(
                format!("{wanted} nodes are wanted and {} are up", usable.len()),
                "`wiglaf nodes` shows them; ask for fewer with -N",
            ));
        }
    }
    if let Some(wait) = busy(&mut usable, selection) {
        return Ok(wait);
    }
    if let Some(wait) = short_of_memory(&mut usable, selection) {
        return Ok(wait);
    }
    if !picks && let Some(node) = preferred(&usable, selection) {
        return Ok(Placement::Placed(vec![node]));
    }
    if !picks || selection.node_count.is_some() {
        usable.sort_by_key(|node| (free_rank(node), node.id));
    }
    let spread = match (selection.node_count, picks) {
        (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX).max(1),
        (None, true) => usable.len(),
        (None, false) => 1,
    };
    let tasks = match selection.task_count {
        Some(count) if count == 0 || count > MAX_TASKS_PER_JOB => {
            return Err(Refusal::new(
                format!("a job can't have {count} tasks"),
                format!("give -n a number from 1 to {MAX_TASKS_PER_JOB}"),
            ));
        }
        Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
        None => spread.min(usable.len()),
    };
    if picks || selection.node_count.is_some() {
        usable.truncate(spread);
        return Ok(Placement::Placed(
            (0..tasks)
                .map(|task| usable[task % usable.len()].id)
                .collect(),
        ));
    }
    Ok(fill_slots(&usable, tasks))
}

/// Puts each task where most room is left, one slot each.
fn fill_slots(usable: &[&Node], tasks: usize) -> Placement {
    let mut taken: Vec<u32> = usable.iter().map(|node| node.task_count()).collect();
    let mut placed = Vec::with_capacity(tasks);
    for _ in 0..tasks {
        let best = usable
            .iter()
            .zip(&taken)
            .enumerate()
            .filter(|(_, (node, taken))| **taken < node.slot_count())
            .min_by_key(|(_, (node, taken))| {
                (
                    u64::from(**taken) * 1000 / u64::from(node.slot_count()),
                    node.id,
                )
            })
            .map(|(index, _)| index);
        let Some(best) = best else {
            let slots: u32 = usable.iter().map(|node| node.slot_count()).sum();
            return if tasks > usize::try_from(slots).unwrap_or(usize::MAX) {
                Placement::Refused(Refusal::new(
                    format!("{tasks} tasks are wanted and the nodes have {slots} slots in all"),
                    "name the nodes with -w to put more on them than they have slots",
                ))
            } else {
                Placement::Wait(format!("all {slots} slots are taken"))
            };
        };
        taken[best] += 1;
        placed.push(usable[best].id);
    }
    Placement::Placed(placed)
}

/// The first preferred node that has a free slot, for one task by itself.
fn preferred(usable: &[&Node], selection: &NodeSelection) -> Option<NodeId> {
    if selection.node_count.is_some() || selection.task_count.is_some_and(|count| count != 1) {
        return None;
    }
    let has_slot = |node: &&&Node| node.task_count() < node.slot_count();
    let mut nodes = selection.prefer.iter().filter_map(|name| {
        let mut found = usable.iter().filter(|node| node.name == *name);
        found.next().filter(has_slot)
    });
    nodes.next().map(|node| node.id)
}

fn free_rank(node: &Node) -> u64 {
    u64::from(node.task_count()) * 1000 / u64::from(node.slot_count())
}

/// Takes out what somebody has for himself; says what to wait for when nothing is left.
fn busy(usable: &mut Vec<&Node>, selection: &NodeSelection) -> Option<Placement> {
    let named = selection.nodes.is_some() && !selection.all;
    let held =
        |node: &&Node| node.exclusive.is_some() || (selection.exclusive && !node.tasks.is_empty());
    let first_held = usable.iter().copied().find(|node| held(node))?;
    if named {
        return Some(Placement::Wait(format!("{} is taken", first_held.name)));
    }
    usable.retain(|node| !held(node));
    usable
        .is_empty()
        .then(|| Placement::Wait("all nodes are taken".into()))
}

/// Takes out nodes that have less memory available than a task is expected to need; waits when
/// tasks that run there may give it back. What no node could ever have goes where most is.
fn short_of_memory(usable: &mut Vec<&Node>, selection: &NodeSelection) -> Option<Placement> {
    let wanted = selection.memory_kib?;
    if selection.nodes.is_some() && !selection.all {
        return None;
    }
    // A node that has not told yet is taken to have enough.
    let has_it = |node: &&Node| node.available_kib == 0 || node.available_kib >= wanted;
    if usable.iter().any(has_it) {
        usable.retain(has_it);
        return None;
    }
    let may_have_it = |node: &&Node| !node.tasks.is_empty() && node.machine.memory_kib >= wanted;
    if usable.iter().any(may_have_it) {
        let reason = format!("no node has {wanted} KiB of memory available");
        return Some(Placement::Wait(reason));
    }
    let most = usable.iter().map(|node| node.available_kib).max();
    usable.retain(|node| Some(node.available_kib) == most);
    None
}

fn unusable(node: &Node, asker: Asker<'_>) -> Option<Refusal> {
    let name = &node.name;
    match node.state() {
        NodeState::Up => {}
        NodeState::Down => {
            return Some(Refusal::new(
                format!("{name} is down"),
                "`wiglaf nodes` shows which nodes are up",
            ));
        }
        NodeState::Suspect => {
            return Some(Refusal::new(
                format!("{name} has fallen silent"),
                "it is used again when it answers; `wiglaf nodes` shows the others",
            ));
        }
        state => {
            // Root may work on a node that is not for users, to find out what is wrong with it.
            if asker.uid != 0 || node.wanted == Wanted::Drain {
                return Some(Refusal::new(
                    format!("{name} is in state {}", state.name()),
                    format!(
                        "an administrator puts it back with `wiglaf node set {name} --state up`"
                    ),
                ));
            }
        }
    }
    if node.may_execute(asker.uid, asker.gid, asker.groups) {
        return None;
    }
    Some(Refusal::new(
        format!(
            "you may not run anything on {name} (mode {:03o})",
            node.mode
        ),
        format!("an administrator can change that with `wiglaf node set {name} --mode 111`"),
    ))
}

fn nothing_usable(candidates: &[&Node], asker: Asker<'_>) -> Refusal {
    match candidates {
        [] => Refusal::new(
            "the cluster has no such node",
            "`wiglaf nodes` shows what there is; `wiglaf up -n 4` makes virtual nodes",
        ),
        [only] => unusable(only, asker)
            .unwrap_or_else(|| Refusal::new(format!("{} can't be used", only.name), "try again")),
        many => {
            let connected = many
                .iter()
                .filter(|node| node.presence == Presence::Connected)
                .count();
            Refusal::new(
                format!(
                    "none of {} nodes can be used ({connected} are connected)",
                    many.len()
                ),
                "`wiglaf nodes` shows their states and permissions",
            )
        }
    }
}

/// The nodes that a set names, in its order.
///
/// # Errors
/// It is no node set, or names a node that the cluster does not have.
pub fn resolve(nodes: &NodeTable, text: &str) -> Result<Vec<NodeId>, Refusal> {
    let all = || nodes.iter().map(|node| node.name.clone()).collect();
    let group = |name: &str| match name {
        "all" => Some(all()),
        "up" => Some(
            nodes
                .iter()
                .filter(|node| node.state() == NodeState::Up)
                .map(|node| node.name.clone())
                .collect(),
        ),
        name => {
            let inside = nodes.iter().filter(|node| node.groups.contains(name));
            let names: Vec<_> = inside.map(|node| node.name.clone()).collect();
            (!names.is_empty()).then_some(names)
        }
    };
    let set = NodeSet::parse(text, &group)
        .map_err(|error| Refusal::new(error.to_string(), "for example: n1,n3 or n[1-4]!n2"))?;
    let unknown: Vec<_> = set
        .iter()
        .filter(|name| nodes.by_name(name).is_none())
        .map(String::from)
        .collect();
    if let [first, ..] = unknown.as_slice() {
        return Err(Refusal::new(
            format!("there is no node {first}"),
            "`wiglaf nodes` shows the cluster's nodes",
        ));
    }
    let ids: Vec<_> = set
        .iter()
        .filter_map(|name| nodes.by_name(name))
        .map(|n| n.id)
        .collect();
    if ids.is_empty() {
        return Err(Refusal::new(
            format!("the node set `{text}` names no node"),
            "`wiglaf nodes` shows the cluster's nodes",
        ));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wiglaf_wire::id::{JobId, TaskId};

    const USER: Asker<'_> = Asker {
        uid: 1000,
        gid: 1000,
        groups: &[],
    };

    fn table(count: u32) -> NodeTable {
        let mut table = NodeTable::default();
        for number in 1..=count {
            let node = table.enrol(&format!("n{number}")).unwrap();
            node.presence = Presence::Connected;
            node.slots = Some(2);
        }
        table
    }

    fn selection(nodes: Option<&str>) -> NodeSelection {
        NodeSelection {
            nodes: nodes.map(str::to_owned),
            ..NodeSelection::default()
        }
    }

    fn occupy(table: &mut NodeTable, id: u32, tasks: u32) {
        let node = table.get_mut(NodeId(id)).unwrap();
        node.tasks.extend((0..tasks).map(|index| TaskId {
            job: JobId(u64::from(id)),
            index,
        }));
    }

    #[test]
    fn without_a_wish_the_emptiest_node_is_taken() {
        let mut nodes = table(3);
        occupy(&mut nodes, 1, 1);
        assert_eq!(
            place(&nodes, USER, &selection(None)),
            Placement::Placed(vec![NodeId(2)])
        );
    }

    #[test]
    fn a_preferred_node_is_taken_while_it_has_a_free_slot() {
        let mut nodes = table(3);
        occupy(&mut nodes, 2, 1);
        let mut wish = selection(None);
        wish.prefer = ["n9", "n2", "n3"].map(str::to_owned).to_vec();
        let placed = |id| Placement::Placed(vec![NodeId(id)]);
        assert_eq!(place(&nodes, USER, &wish), placed(2));
        occupy(&mut nodes, 2, 2);
        assert_eq!(place(&nodes, USER, &wish), placed(3));
        wish.exclude = Some("n3".into());
        assert_eq!(place(&nodes, USER, &wish), placed(1));
        wish.exclude = None;
        wish.task_count = Some(2);
        let two = Placement::Placed(vec![NodeId(1), NodeId(3)]);
        assert_eq!(place(&nodes, USER, &wish), two);
        // Who names nodes gets those.
        wish.task_count = None;
        wish.nodes = Some("n1".into());
        assert_eq!(place(&nodes, USER, &wish), placed(1));
    }

    #[test]
    fn full_slots_make_a_job_wait_but_named_nodes_do_not() {
        let mut nodes = table(2);
        occupy(&mut nodes, 1, 2);
        occupy(&mut nodes, 2, 2);
        assert!(matches!(
            place(&nodes, USER, &selection(None)),
            Placement::Wait(_)
        ));
        assert_eq!(
            place(&nodes, USER, &selection(Some("n1"))),
            Placement::Placed(vec![NodeId(1)])
        );
    }

    #[test]
    fn more_tasks_than_slots_are_refused_rather_than_waited_for() {
        let mut wish = selection(None);
        wish.task_count = Some(5);
        assert!(matches!(
            place(&table(2), USER, &wish),
            Placement::Refused(_)
        ));
        wish.task_count = Some(4);
        let ids = [1, 2, 1, 2].map(NodeId).to_vec();
        assert_eq!(place(&table(2), USER, &wish), Placement::Placed(ids));
    }

    #[test]
    fn tasks_go_round_the_named_nodes() {
        let mut wish = selection(Some("n[1-3]"));
        wish.exclude = Some("n2".into());
        wish.task_count = Some(3);
        let ids = [1, 3, 1].map(NodeId).to_vec();
        assert_eq!(place(&table(3), USER, &wish), Placement::Placed(ids));
    }

    #[test]
    fn a_named_node_that_is_down_is_an_error_and_with_all_it_is_left_out() {
        let mut nodes = table(2);
        nodes.get_mut(NodeId(1)).unwrap().presence = Presence::Absent;
        let mut wish = selection(Some("n[1-2]"));
        let Placement::Refused(refusal) = place(&nodes, USER, &wish) else {
            panic!("placed")
        };
        assert_eq!(
            (refusal.code, refusal.message.as_str()),
            (125, "n1 is down")
        );
        wish.all = true;
        assert_eq!(
            place(&nodes, USER, &wish),
            Placement::Placed(vec![NodeId(2)])
        );
    }

    #[test]
    fn unknown_nodes_are_named() {
        let wish = selection(Some("n1,n9"));
        let Placement::Refused(refusal) = place(&table(2), USER, &wish) else {
            panic!("placed")
        };
        assert_eq!(refusal.message, "there is no node n9");
    }

    #[test]
    fn memory_is_found_waited_for_or_done_without() {
        let mut nodes = table(2);
        for (id, available, total) in [(1, 100, 1000), (2, 500, 800)] {
            let node = nodes.get_mut(NodeId(id)).unwrap();
            node.available_kib = available;
            node.machine.memory_kib = total;
        }
        occupy(&mut nodes, 2, 1);
        let mut wish = selection(None);
        let mut with = |nodes: &NodeTable, kib| {
            wish.memory_kib = Some(kib);
            place(nodes, USER, &wish)
        };
        assert_eq!(with(&nodes, 50), Placement::Placed(vec![NodeId(1)]));
        assert_eq!(with(&nodes, 400), Placement::Placed(vec![NodeId(2)]));
        assert!(matches!(with(&nodes, 600), Placement::Wait(_)));
        assert_eq!(with(&nodes, 5000), Placement::Placed(vec![NodeId(2)]));
    }

    #[test]
    fn an_exclusive_job_wants_an_empty_node_and_keeps_others_off_it() {
        let mut nodes = table(1);
        let mut wish = selection(None);
        wish.exclusive = true;
        occupy(&mut nodes, 1, 1);
        assert!(matches!(place(&nodes, USER, &wish), Placement::Wait(_)));
        let mut nodes = table(1);
        nodes.get_mut(NodeId(1)).unwrap().exclusive = Some(JobId(1));
        assert!(matches!(
            place(&nodes, USER, &selection(Some("n1"))),
            Placement::Wait(_)
        ));
    }
}
