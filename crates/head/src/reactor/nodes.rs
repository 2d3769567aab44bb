//! Membership and fencing (P4): when a node that has fallen silent is dead.

use wiglaf_wire::agent::{FromAgent, TaskReport, ToAgent};
use wiglaf_wire::client::{NodeState, Reply};
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::id::{Incarnation, NodeId};
use wiglaf_wire::keeper::ToKeeper;
use wiglaf_wire::status::{Status, Usage};

use super::lists::Part;
use super::{Effect, RETURN_WAIT_MS, Reactor};
use crate::jobs::Phase;
use crate::node_table::{Node, Presence, pid_block};

impl Reactor {
    pub(super) fn node_hello(
        &mut self,
        now_ms: u64,
        id: NodeId,
        hello: FromAgent,
        effects: &mut Vec<Effect>,
    ) {
        let FromAgent::Hello {
            version,
            incarnation,
            machine,
            tasks,
        } = hello
        else {
            effects.push(Effect::DropNode(id));
            return;
        };
        let refuse = |reason: String, effects: &mut Vec<Effect>| {
            effects.push(Effect::ToNode(id, ToAgent::Refused { reason }));
            effects.push(Effect::DropNode(id));
        };
        if version != wiglaf_wire::PROTOCOL_VERSION {
            let ours = wiglaf_wire::PROTOCOL_VERSION;
            let reason = format!(
                "this agent speaks protocol {version} and the head {ours}: \
                 start the agent from the head's own wiglaf binary"
            );
            return refuse(reason, effects);
        }
        let Some(node) = self.nodes.get(id) else {
            let reason = "the head does not know this node any more: join with a new token \
                          (`wiglaf node token` on the head)";
            return refuse(reason.into(), effects);
        };
        if !self.has_inventory {
            effects.push(Effect::DropNode(id));
            return;
        }
        // The agent is the init of its tasks: another life of it proves the earlier ones dead.
        if node
            .incarnation
            .is_some_and(|earlier| earlier != incarnation)
        {
            self.declare_dead(id, "was started again", effects);
        }
        self.admit(now_ms, id, incarnation, effects);
        if let Some(node) = self.nodes.get_mut(id) {
            node.machine = machine;
            effects.push(Effect::StoreNode(Box::new(node.clone())));
        }
        self.reconcile(id, &tasks, effects);
        self.tell_node_waiters(effects);
    }

    fn admit(
        &mut self,
        now_ms: u64,
        id: NodeId,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        let lease_ms = self.policy.lease_ms;
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        node.presence = Presence::Connected;
        node.may_live = true;
        node.incarnation = Some(incarnation);
        node.answered_ms = now_ms;
        node.heard_ms = now_ms;
        let (first_pid, end_pid) = pid_block(id);
        let name = node.name.clone();
        let welcome = ToAgent::Welcome {
            node: id,
            name,
            first_pid,
            end_pid,
            lease_ms,
        };
        effects.push(Effect::ToNode(id, welcome));
    }

    /// Makes both tables agree after a (re)join: what the agent has and the head does not want is
    /// killed or acknowledged, what the head wants and the agent never got is launched.
    fn reconcile(&mut self, id: NodeId, reports: &[TaskReport], effects: &mut Vec<Effect>) {
        for report in reports {
            let known = self
                .task(report.task)
                .map(|(_, task)| (task.node, task.phase.clone()));
            let wanted = matches!(&known, Some((node, phase))
                if *node == id && !matches!(phase, Phase::Placed | Phase::Seizing));
            match &report.ended {
                Some((status, usage)) if wanted => {
                    self.task_ended(report.task, status.clone(), *usage, effects);
                }
                Some(_) => effects.push(Effect::ToNode(
                    id,
                    ToAgent::Acknowledge { task: report.task },
                )),
                None if !wanted => {
                    effects.push(Effect::ToNode(id, ToAgent::Kill { task: report.task }));
                }
                None => {
                    if let Some(task) = self.task_mut(report.task)
                        && task.phase == Phase::Launching
                    {
                        task.phase = Phase::Running;
                        task.uncertain = false;
                    }
                }
            }
        }
        let incarnation = self.nodes.get(id).and_then(|node| node.incarnation);
        let ours: Vec<_> = self
            .nodes
            .get(id)
            .map(|node| node.tasks.iter().copied().collect())
            .unwrap_or_default();
        for task_id in ours {
            let Some((job, task)) = self.task(task_id) else {
                continue;
            };
            let is_killed = task.ghost_died.is_some() || task.verdict.is_some() || job.timed_out;
            let reported = reports.iter().find(|report| report.task == task_id);
            if task.phase.is_over_on_node() {
                continue;
            }
            if let Some(report) = reported {
                // What happened to it while nobody heard of the node.
                let state = match report.stopped {
                    Some(signal) => ToKeeper::Stop {
                        task: task_id,
                        signal,
                    },
                    None => ToKeeper::Continue { task: task_id },
                };
                effects.push(Effect::ToKeeper(state));
                if is_killed {
                    effects.push(Effect::ToNode(id, ToAgent::Kill { task: task_id }));
                }
                let signals = self
                    .task_mut(task_id)
                    .map(|task| std::mem::take(&mut task.pending_signals))
                    .unwrap_or_default();
                for (signal, scope) in signals {
                    let message = ToAgent::Signal {
                        task: task_id,
                        signal,
                        scope,
                    };
                    effects.push(Effect::ToNode(id, message));
                }
            } else if task.incarnation != incarnation {
                // The head was restarted meanwhile; whether the life before had started it is
                // not known to anybody any more.
                let name = self.nodes.name(id);
                let reason =
                    format!("{name} was started again while the command ran there; run it again");
                let status = Status::cluster_failed(reason);
                self.task_ended(task_id, status, Usage::default(), effects);
            } else if task.phase == Phase::Running
                || is_killed
                || (task.uncertain && self.resume_until_ms == 0)
            {
                // The same life of the agent ran it and has forgotten it: it forgets only what
                // was acknowledged or what its lease ended.
                let name = self.nodes.name(id);
                let reason = format!("{name} has lost this task; run the command again");
                self.task_ended(
                    task_id,
                    Status::cluster_failed(reason),
                    Usage::default(),
                    effects,
                );
            } else if !task.uncertain {
                self.launch(task_id, effects);
            }
        }
    }

    pub(super) fn hear_node(
        &mut self,
        now_ms: u64,
        id: NodeId,
        message: FromAgent,
        effects: &mut Vec<Effect>,
    ) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if node.presence != Presence::Connected {
            return;
        }
        node.heard_ms = now_ms;
        match message {
            FromAgent::Renew {
                sequence,
                load_centi,
                available_kib,
            } => {
                node.load_centi = load_centi;
                node.available_kib = available_kib;
                node.answered_ms = now_ms;
                effects.push(Effect::ToNode(id, ToAgent::Renewed { sequence }));
            }
            FromAgent::Started { task } => {
                if let Some(task) = self.task_mut(task)
                    && task.node == id
                    && task.phase == Phase::Launching
                {
                    task.phase = Phase::Running;
                    task.uncertain = false;
                }
            }
            FromAgent::Stopped { task, signal } => {
                if self.task(task).is_some_and(|(_, task)| task.node == id) {
                    let stop = ToKeeper::Stop { task, signal };
                    effects.push(Effect::ToKeeper(stop));
                }
            }
            FromAgent::Continued { task } => {
                if self.task(task).is_some_and(|(_, task)| task.node == id) {
                    let go_on = ToKeeper::Continue { task };
                    effects.push(Effect::ToKeeper(go_on));
                }
            }
            FromAgent::Ended {
                task,
                status,
                usage,
                ..
            } => match self.task(task).map(|(_, task)| task.node) {
                Some(node) if node == id => self.task_ended(task, status, usage, effects),
                _ => effects.push(Effect::ToNode(id, ToAgent::Acknowledge { task })),
            },
            FromAgent::Processes {
                request,
                list,
                last,
            } => {
                self.listed(id, request, Part::Processes(list), last, effects);
            }
            FromAgent::Views {
                request,
                list,
                last,
            } => {
                self.listed(id, request, Part::Views(list), last, effects);
            }
            FromAgent::ViewsChecked {
                request,
                list,
                last,
            } => {
                self.listed(id, request, Part::Checks(list), last, effects);
            }
            FromAgent::Disk { request, answer } => {
                self.listed(id, request, Part::Disks(answer), true, effects);
            }
            FromAgent::Signalled { request, errno } => {
                self.process_signalled(request, errno, effects);
            }
            FromAgent::Leaving => {
                effects.push(Effect::DropNode(id));
                self.declare_dead(id, "left the cluster", effects);
                self.answer_for_silent(now_ms, id, effects);
            }
            // A second greeting is a broken peer.
            FromAgent::Join { .. } | FromAgent::JoinBooted { .. } | FromAgent::Hello { .. } => {
                effects.push(Effect::DropNode(id));
            }
        }
    }

    /// A restarted head counts every node that was a member as just renewed (P4).
    pub(super) fn take_over(&mut self, now_ms: u64) {
        self.return_until_ms = now_ms + RETURN_WAIT_MS;
        for node in self.nodes.iter_mut() {
            if node.presence == Presence::Absent && node.may_live {
                node.presence = Presence::Silent;
                node.answered_ms = now_ms;
            }
        }
    }

    pub(super) fn node_lost(&mut self, now_ms: u64, id: NodeId, effects: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if node.presence == Presence::Connected {
            node.presence = Presence::Silent;
        }
        self.answer_for_silent(now_ms, id, effects);
    }

    pub(super) fn node_proven_dead(&mut self, now_ms: u64, id: NodeId, effects: &mut Vec<Effect>) {
        effects.push(Effect::DropNode(id));
        self.declare_dead(id, "died", effects);
        self.answer_for_silent(now_ms, id, effects);
    }

    /// Nothing that this life of the node's agent ran lives any more.
    fn declare_dead(&mut self, id: NodeId, how: &str, effects: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        node.presence = Presence::Absent;
        node.incarnation = None;
        if std::mem::take(&mut node.may_live) {
            effects.push(Effect::StoreNode(Box::new(node.clone())));
        }
        let name = node.name.clone();
        let tasks: Vec<_> = node.tasks.iter().copied().collect();
        // First, so that nothing that the node still asked for comes after an undoing.
        for &deputy in &self.ready_deputies {
            let fenced = ToDeputy::Fenced { node: id };
            effects.push(Effect::ToDeputy(deputy, fenced));
        }
        for task in tasks {
            let Some((_, found)) = self.task(task) else {
                continue;
            };
            // What was not launched is ended when its ghost is there to be told.
            if found.phase.is_over_on_node() {
                continue;
            }
            let reason = format!("{name} {how} while the command ran there; run it again");
            self.task_ended(
                task,
                Status::cluster_failed(reason),
                Usage::default(),
                effects,
            );
        }
    }

    /// When a node has to be looked at again.
    pub(super) fn node_deadline(&self, node: &Node) -> Option<u64> {
        match node.presence {
            Presence::Absent => None,
            // Two renewals lost: the agent sends one each quarter of the lease.
            Presence::Connected => Some(node.heard_ms + self.policy.lease_ms / 2),
            Presence::Silent => Some(node.fence_ms(self.policy.lease_ms, self.policy.margin_ms)),
        }
    }

    pub(super) fn check_fences(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let late: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| self.node_deadline(node).is_some_and(|at| at <= now_ms))
            .map(|node| (node.id, node.presence))
            .collect();
        for (id, presence) in late {
            if presence == Presence::Silent {
                self.declare_dead(id, "fell silent", effects);
            } else {
                effects.push(Effect::DropNode(id));
                self.node_lost(now_ms, id, effects);
            }
        }
    }

    pub(super) fn tell_node_waiters(&mut self, effects: &mut Vec<Effect>) {
        let up = self
            .nodes
            .iter()
            .filter(|node| node.state() == NodeState::Up)
            .count();
        let up = u32::try_from(up).unwrap_or(u32::MAX);
        let list: Vec<_> = self.nodes.iter().map(Node::info).collect();
        self.node_waiters.retain(|(client, count)| {
            if up >= *count {
                effects.push(Effect::Reply(*client, Reply::Nodes(list.clone())));
            }
            up < *count
        });
    }
}
