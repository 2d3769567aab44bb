//! What really happened to each task, and what its user was told of it.

use wiglaf_head::jobs::{TaskRecord, ghost_end};
use wiglaf_head::node_table::Presence;
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::GhostEnd;
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, Status};

use crate::world::World;

/// One task, as an onlooker who sees everything knows it.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) node: NodeId,
    pub(crate) pid: Pid,
    pub(crate) deputy: DeputyId,
    pub(crate) leave: bool,
    /// How often a main process of it was started.
    pub(crate) starts: u32,
    /// How its main process ended, when nobody made it end.
    pub(crate) own_end: Option<Status>,
    /// Somebody has signalled it, or has given it a time-out.
    pub(crate) interfered: bool,
    /// Why the cluster may fail it.
    pub(crate) excuse: Option<&'static str>,
    /// Its ghost died with its keeper, so nothing more is promised of when.
    pub(crate) keeper_died: bool,
    /// The head has called it over.
    pub(crate) over: bool,
    /// What its ghost's parent saw.
    pub(crate) told: Option<GhostEnd>,
}

impl World {
    /// A ghost is seized: from here on there is a promise to keep.
    pub(crate) fn becomes_true(&mut self, task: TaskId, pid: Pid, record: &[u8]) {
        let Some(record) = TaskRecord::from_bytes(record) else {
            return self.violated("P4", format!("the record of {task} can't be read"));
        };
        self.summary.tasks += 1;
        let node = self
            .head
            .as_ref()
            .and_then(|head| head.reactor.nodes().get(record.node));
        // The head may not have heard yet that the life that it knows is over.
        let life = self
            .nodes
            .get(&record.node)
            .and_then(|machine| machine.life.as_ref());
        let is_down = node.is_some_and(|node| node.presence == Presence::Absent)
            || life.map(|life| life.incarnation) != record.incarnation;
        let truth = Truth {
            node: record.node,
            pid,
            deputy: record.deputy,
            leave: record.spec.leave,
            starts: 0,
            own_end: None,
            interfered: record.deadline_ms.is_some(),
            excuse: if is_down {
                Some("its node went down before it was seized")
            } else if !self.keeper.deputies.contains_key(&record.deputy) {
                Some("its deputy died before it was seized")
            } else {
                None
            },
            keeper_died: false,
            over: false,
            told: None,
        };
        self.truths.insert(task, truth);
    }

    pub(crate) fn excuse(&mut self, why: &'static str, whose: impl Fn(&Truth) -> bool) {
        for truth in self
            .truths
            .values_mut()
            .filter(|truth| truth.told.is_none() && whose(truth))
        {
            truth.excuse.get_or_insert(why);
        }
    }

    /// The head calls a task over, by telling its user or by ending its ghost.
    pub(crate) fn called_over(&mut self, task: TaskId) {
        self.must_be_dead(task, "P4", "called over");
    }

    fn must_be_dead(&mut self, task: TaskId, invariant: &'static str, what: &str) {
        let Some(truth) = self.truths.get_mut(&task) else {
            return;
        };
        truth.over = true;
        if truth.keeper_died {
            return;
        }
        let (leave, node) = (truth.leave, truth.node);
        let Some(process) = self.process(node, task) else {
            return;
        };
        if process.is_main_alive() {
            self.violated(
                invariant,
                format!("task {task} is {what} and lives on node {node}"),
            );
        } else if process.leftovers > 0 && !leave {
            let text = format!("task {task} is {what} and has left processes on node {node}");
            self.violated(invariant, text);
        }
    }

    /// The ghost's parent sees an end.
    pub(crate) fn told(&mut self, task: TaskId, end: GhostEnd) {
        let strict = self.setup.profile.is_gentle();
        let Some(truth) = self.truths.get_mut(&task) else {
            return;
        };
        if let Some(before) = truth.told.replace(end) {
            self.violated(
                "P2",
                format!("task {task} was told to end by {before:?} and {end:?}"),
            );
            return;
        }
        self.must_be_dead(task, "P1", "reaped on the head");
        let Some(truth) = self.truths.get(&task).cloned() else {
            return;
        };
        if truth
            .own_end
            .as_ref()
            .is_some_and(|own| ghost_end(own) == end)
        {
            self.summary.own_ends += 1;
            return;
        }
        if matches!(end, GhostEnd::Exit(EXIT_CLUSTER_FAILED)) {
            self.summary.failed += 1;
        }
        if truth.interfered {
            return;
        }
        if let Some(why) = truth.excuse {
            if strict {
                let text = format!("task {task} was failed ({why}) where nothing bad had happened");
                self.violated("P4", text);
            }
            return;
        }
        match &truth.own_end {
            Some(own) => {
                let text = format!("task {task} ended by {own:?} and was told as {end:?}");
                self.violated("P2", text);
            }
            None => {
                let text = format!("task {task} was told as {end:?} and never ended by itself");
                self.violated("P2", text);
            }
        }
    }

    /// What has to be true between any two events.
    pub(crate) fn check_step(&mut self) {
        let mut wrong = Vec::new();
        for (node, machine) in &self.nodes {
            let Some(life) = &machine.life else { continue };
            let is_fenced = machine
                .answered_ms
                .is_some_and(|at| self.now_ms > at + self.setup.lease_ms + self.setup.margin_ms);
            for (task, process) in &life.processes {
                if is_fenced && (process.is_main_alive() || process.leftovers > 0) {
                    wrong.push(("P4", format!("{task} lives on node {node} after its fence")));
                }
                if process.is_main_alive()
                    && !self.keeper.ghosts.contains_key(task)
                    && !self.truths.get(task).is_some_and(|truth| truth.keeper_died)
                {
                    wrong.push((
                        "P1",
                        format!("{task} lives on node {node} without its ghost"),
                    ));
                }
            }
        }
        if let Some((invariant, message)) = wrong.into_iter().next() {
            self.violated(invariant, message);
        }
    }

    /// What has to be true when everything has been well for long.
    pub(crate) fn check_rest(&mut self) {
        let mut leaks = Vec::new();
        if let Some(head) = &self.head {
            leaks.extend(
                head.reactor
                    .jobs()
                    .map(|job| format!("the head has job {job:?}")),
            );
            for node in head.reactor.nodes().iter() {
                leaks.extend(
                    node.tasks
                        .iter()
                        .map(|t| format!("{} has task {t}", node.name)),
                );
            }
            leaks.extend(
                head.parcels
                    .keys()
                    .map(|task| format!("the head has {task}'s parcel")),
            );
        }
        leaks.extend(
            self.keeper
                .ghosts
                .iter()
                .map(|(task, ghost)| format!("the keeper has the ghost of {task}: {ghost:?}")),
        );
        for deputy in self.keeper.deputies.values() {
            leaks.extend(
                deputy
                    .attached
                    .iter()
                    .map(|t| format!("a deputy has task {t:?}")),
            );
        }
        for (node, machine) in &self.nodes {
            let Some(life) = &machine.life else { continue };
            for (task, process) in &life.processes {
                let leave = self.truths.get(task).is_some_and(|truth| truth.leave);
                if process.is_main_alive() || (process.leftovers > 0 && !leave) {
                    leaks.push(format!("node {node} runs {task}: {process:?}"));
                }
            }
            if life.core.has_live_tasks() {
                leaks.push(format!("node {node}'s agent has live tasks"));
            }
            let told = machine.last_hello.iter();
            leaks.extend(told.map(|task| format!("node {node} still tells of {task}")));
        }
        for (number, command) in self.commands.iter().enumerate() {
            if !command.is_over() {
                leaks.push(format!("command {number} has not ended: {command:?}"));
            }
        }
        for (task, truth) in &self.truths {
            if truth.told.is_none() {
                leaks.push(format!("nobody was told of the end of {task}: {truth:?}"));
            }
        }
        if let Some(first) = leaks.into_iter().next() {
            self.violated("P1", format!("at rest: {first}"));
        }
    }
}
