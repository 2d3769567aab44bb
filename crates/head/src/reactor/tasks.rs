//! The life of a task: seize, launch, run, tell, finish (P1, P2).

use wiglaf_wire::agent::ToAgent;
use wiglaf_wire::client::{JobTask, Reply};
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::id::{NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{GhostEnd, ToKeeper};
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, EXIT_TIMED_OUT, Status, Usage, own_failure};

use super::{Effect, KEPT_JOBS, Reactor};
use crate::jobs::{Job, Phase, Task, ghost_end};
use crate::node_table::Presence;

impl Reactor {
    pub(super) fn task(&self, id: TaskId) -> Option<(&Job, &Task)> {
        let job = self.jobs.get(&id.job)?;
        Some((job, job.tasks.get(&id.index)?))
    }

    pub(super) fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.jobs.get_mut(&id.job)?.tasks.get_mut(&id.index)
    }

    pub(super) fn is_connected(&self, node: NodeId) -> bool {
        let node = self.nodes.get(node);
        node.is_some_and(|node| node.presence == Presence::Connected)
    }

    pub(super) fn task_by_pid(&self, pid: Pid) -> Option<TaskId> {
        self.jobs
            .values()
            .flat_map(|job| job.tasks.values())
            .find(|task| task.pid == pid)
            .map(|task| task.id)
    }

    pub(super) fn seized(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.task_mut(id) else {
            return;
        };
        if task.phase == Phase::Seizing {
            self.go_on(id, effects);
        }
    }

    /// A task's ghost is there, and the daemon has its descriptors: launches it, unless that was
    /// done or is not wanted any more, and lets the command go.
    pub(super) fn go_on(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some((job, task)) = self.task(id) else {
            return;
        };
        let (client, phase, name) = (job.client, task.phase.clone(), self.nodes.name(task.node));
        let is_down = self
            .nodes
            .get(task.node)
            .is_none_or(|n| n.presence == Presence::Absent);
        let is_new = phase == Phase::Seizing;
        let is_doomed = task.verdict.is_some() || job.timed_out || is_down;
        let has_deputy = self.ready_deputies.contains(&task.deputy);
        let Some(task) = self.task_mut(id) else {
            return;
        };
        // A command that is let go has its streams in the deputy's hands: it can't bring them
        // again, should the head die now.
        let needs_deputy = !(task.deputy_gone || is_new && is_doomed);
        task.awaits_deputy = needs_deputy && !has_deputy;
        if task.awaits_deputy {
            return;
        }
        if is_new && is_doomed {
            task.phase = Phase::Launching;
            task.deputy_gone = true;
            let reason = format!("{name} went down before the command was launched; run it again");
            self.task_ended(
                id,
                Status::cluster_failed(reason),
                Usage::default(),
                effects,
            );
        } else if !is_doomed && (is_new || phase == Phase::Launching) {
            task.phase = Phase::Launching;
            task.uncertain = false;
            self.launch(id, effects);
        }
        // Whoever has named the last ghost is done with us; the job lives on without a client.
        if let Some(client) = client {
            effects.push(Effect::Reply(client, Reply::Go { task: id }));
        }
    }

    /// Tells the deputy and the node; both ignore what they know already.
    pub(super) fn launch(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some((job, task)) = self.task(id) else {
            return;
        };
        let spec = job.spec_for(task, &self.nodes.name(task.node));
        let attach = ToDeputy::Attach {
            task: id,
            node: task.node,
            stdio: spec.stdio,
        };
        effects.push(Effect::ToDeputy(task.deputy, attach));
        let is_connected = self.is_connected(task.node);
        if is_connected {
            let launch = ToAgent::Launch {
                task: id,
                pid: task.pid,
                credential: job.credential.clone(),
                deputy: task.deputy,
                spec: Box::new(spec),
            };
            let node = task.node;
            let incarnation = self.nodes.get(node).and_then(|node| node.incarnation);
            effects.push(Effect::ToNode(node, launch));
            let Some(task) = self.task_mut(id) else {
                return;
            };
            task.incarnation = incarnation;
            for (signal, scope) in std::mem::take(&mut task.pending_signals) {
                effects.push(Effect::ToNode(
                    node,
                    ToAgent::Signal {
                        task: id,
                        signal,
                        scope,
                    },
                ));
            }
        }
    }

    pub(super) fn ghost_died(&mut self, id: TaskId, end: GhostEnd, effects: &mut Vec<Effect>) {
        let Some(task) = self.task_mut(id) else {
            return;
        };
        task.ghost_died = Some(end);
        let node = task.node;
        match task.phase {
            Phase::Placed | Phase::Seizing => {
                // Nothing was launched: the zombie can go.
                task.phase = Phase::Finishing(status_of(end));
                self.tell_follower(id, effects);
                effects.push(Effect::ToKeeper(ToKeeper::Finish {
                    task: id,
                    end,
                    text: None,
                }));
            }
            Phase::Launching | Phase::Running => {
                effects.push(Effect::ToNode(node, ToAgent::Kill { task: id }));
            }
            Phase::Telling(_) => self.finish(id, effects),
            Phase::Finishing(_) => {
                effects.push(Effect::ToKeeper(ToKeeper::Finish {
                    task: id,
                    end,
                    text: None,
                }));
            }
        }
    }

    /// The node has confirmed the end, or the fence has: the task is over. Tells the user why, if
    /// the cluster is to blame, and ends the ghost.
    pub(super) fn task_ended(
        &mut self,
        id: TaskId,
        status: Status,
        usage: Usage,
        effects: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id.job) else {
            return;
        };
        let timed_out = job.timed_out;
        let is_followed = job.follow && job.client.is_some();
        let Some(task) = job.tasks.get_mut(&id.index) else {
            return;
        };
        if matches!(task.phase, Phase::Telling(_) | Phase::Finishing(_)) {
            return;
        }
        let status = if let Some(end) = task.ghost_died {
            status_of(end)
        } else if let Some(verdict) = task.verdict.take() {
            verdict
        } else if timed_out {
            let reason = "the task was ended because its --timeout was over".into();
            Status::Failed {
                code: EXIT_TIMED_OUT,
                reason,
            }
        } else {
            status
        };
        task.usage = usage;
        // Before anybody hears of the end, and may try again.
        if let Status::Failed { code, .. } = status
            && code == EXIT_CLUSTER_FAILED
        {
            let undo = ToDeputy::Undo { task: id };
            effects.push(Effect::ToDeputy(task.deputy, undo));
        }
        if let Status::Failed { reason, .. } = &status
            && task.ghost_died.is_none()
            && !task.deputy_gone
            && !is_followed
        {
            let say = ToDeputy::Say {
                task: id,
                text: reason.clone(),
            };
            effects.push(Effect::ToDeputy(task.deputy, say));
            task.phase = Phase::Telling(status);
            return;
        }
        task.phase = Phase::Telling(status);
        self.finish(id, effects);
    }

    /// Ends the ghost.
    pub(super) fn finish(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let job = self.jobs.get(&id.job);
        let follow = job.is_some_and(|job| job.follow);
        let is_followed = follow && job.is_some_and(|job| job.client.is_some());
        let Some(task) = self.task_mut(id) else {
            return;
        };
        let Phase::Telling(status) = task.phase.clone() else {
            return;
        };
        let text = match &status {
            Status::Failed { reason, .. } if task.deputy_gone && !is_followed => {
                Some(reason.clone())
            }
            Status::Exited(EXIT_CLUSTER_FAILED) if follow => Some(own_failure(task.pid)),
            _ => None,
        };
        let end = task.ghost_died.unwrap_or_else(|| ghost_end(&status));
        let deputy = task.deputy;
        task.phase = Phase::Finishing(status);
        self.tell_follower(id, effects);
        effects.push(Effect::ToDeputy(deputy, ToDeputy::Detach { task: id }));
        effects.push(Effect::ToKeeper(ToKeeper::Finish {
            task: id,
            end,
            text,
        }));
    }

    /// Tells a client that follows how a task has ended.
    fn tell_follower(&self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some((job, task)) = self.task(id) else {
            return;
        };
        let Phase::Finishing(status) = &task.phase else {
            return;
        };
        if let Some(client) = job.client.filter(|_| job.follow) {
            let ended = Reply::Ended {
                task: id,
                status: status.clone(),
                usage: task.usage,
            };
            effects.push(Effect::Reply(client, ended));
        }
    }

    /// The cluster has failed this task: its node kills it, and when that is confirmed the user is
    /// told why.
    pub(super) fn condemn(
        &mut self,
        id: TaskId,
        node: NodeId,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(task) = self.task_mut(id) {
            task.verdict = Some(Status::cluster_failed(reason));
        }
        effects.push(Effect::ToNode(node, ToAgent::Kill { task: id }));
    }

    pub(super) fn ghost_gone(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some((_, task)) = self.task(id) else {
            return;
        };
        let (node, deputy) = (task.node, task.deputy);
        let status = match &task.phase {
            Phase::Finishing(status) => status.clone(),
            // The keeper says so only after `Finish`; should it ever not, the task must not live.
            _ => {
                effects.push(Effect::ToNode(node, ToAgent::Kill { task: id }));
                effects.push(Effect::ToDeputy(deputy, ToDeputy::Detach { task: id }));
                Status::cluster_failed("its ghost is gone")
            }
        };
        effects.push(Effect::ToNode(node, ToAgent::Acknowledge { task: id }));
        self.remove(id, status, effects);
    }

    /// Takes a task that is over out of the tables.
    pub(super) fn remove(&mut self, id: TaskId, status: Status, effects: &mut Vec<Effect>) {
        effects.push(Effect::Forget(id));
        let Some(job) = self.jobs.get_mut(&id.job) else {
            return;
        };
        let Some(task) = job.tasks.remove(&id.index) else {
            return;
        };
        let node_name = self.nodes.name(task.node);
        if let Some(node) = self.nodes.get_mut(task.node) {
            node.tasks.remove(&id);
            if node.exclusive == Some(id.job) && !node.tasks.iter().any(|t| t.job == id.job) {
                node.exclusive = None;
            }
        }
        let ended = JobTask {
            index: id.index,
            node: node_name,
            pid: task.pid,
            ended: Some((status, task.usage)),
        };
        job.ended.insert(id.index, ended);
        if job.tasks.is_empty() {
            self.job_ended(id.job, effects);
        }
    }

    fn job_ended(&mut self, id: wiglaf_wire::id::JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        let info = job.info(|node| self.nodes.name(node));
        self.job_waiters.retain(|(client, waited)| {
            if *waited == id {
                effects.push(Effect::Reply(*client, Reply::JobEnded(info.clone())));
            }
            *waited != id
        });
        if job.detached {
            effects.push(Effect::StoreJob(info.clone()));
        }
        // Who followed has been told; a build has thousands, which nobody asks for again.
        if job.follow {
            return;
        }
        self.kept.push_back(info);
        if self.kept.len() > KEPT_JOBS {
            self.kept.pop_front();
        }
    }

    /// Tasks whose time is over, and launches that nobody has come back for.
    pub(super) fn check_deadlines(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let late: Vec<_> = self
            .jobs
            .values()
            .filter(|job| !job.timed_out && job.deadline_ms.is_some_and(|at| at <= now_ms))
            .map(|job| job.id)
            .collect();
        for id in late {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            job.timed_out = true;
            for task in job.tasks.values() {
                effects.push(Effect::ToNode(task.node, ToAgent::Kill { task: task.id }));
            }
        }
        if self.resume_until_ms != 0 && self.resume_until_ms <= now_ms {
            self.resume_until_ms = 0;
            let lost: Vec<_> = self
                .jobs
                .values()
                .flat_map(|job| job.tasks.values())
                .filter(|task| task.uncertain && task.phase == Phase::Launching)
                // One that is silent may run it; its hello or its fence will tell.
                .filter(|task| self.is_connected(task.node))
                .map(|task| task.id)
                .collect();
            for id in lost {
                // Had the launch reached its node, the node's hello would have told of it.
                let reason = "the head was restarted while this was launched; run it again";
                if let Some(task) = self.task_mut(id) {
                    task.uncertain = false;
                    task.deputy_gone = true;
                }
                let status = Status::cluster_failed(reason);
                self.task_ended(id, status, Usage::default(), effects);
            }
        }
        self.check_lists(now_ms, effects);
    }
}

fn status_of(end: GhostEnd) -> Status {
    match end {
        GhostEnd::Exit(code) => Status::Exited(code),
        GhostEnd::Signal(signal) => Status::Signaled(signal),
    }
}
