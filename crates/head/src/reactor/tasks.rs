//! The life of a task: seize, launch, run, tell, finish (P1, P2).

use wiglaf_wire::agent::{SignalScope, ToAgent};
use wiglaf_wire::client::{JobTask, Reply};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostReport, ToKeeper};
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, EXIT_TIMED_OUT, Status, Usage, own_failure};

use super::{Effect, KEPT_JOBS, RESUME_WAIT_MS, Reactor};
use crate::jobs::{Job, MAX_PENDING_SIGNALS, Phase, Task, TaskRecord, ghost_end};
use crate::node_table::Presence;

/// Signals that a ghost which leads its group passes to the whole remote group (P5), by their
/// numbers on all architectures that we build for: HUP, INT, QUIT, TERM, STOP, TSTP.
const GROUP_SIGNALS: [u8; 6] = [1, 2, 3, 15, 19, 20];
const SIGCONT: u8 = 18;
const SIGWINCH: u8 = 28;

impl Reactor {
    pub(super) fn task(&self, id: TaskId) -> Option<(&Job, &Task)> {
        let job = self.jobs.get(&id.job)?;
        Some((job, job.tasks.get(&id.index)?))
    }

    pub(super) fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.jobs.get_mut(&id.job)?.tasks.get_mut(&id.index)
    }

    pub(super) fn task_by_pid(&self, pid: Pid) -> Option<TaskId> {
        self.jobs
            .values()
            .flat_map(|job| job.tasks.values())
            .find(|task| task.pid == pid)
            .map(|task| task.id)
    }

    pub(super) fn hear_keeper(
        &mut self,
        now_ms: u64,
        message: FromKeeper,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            FromKeeper::Inventory {
                ghosts,
                deputies,
                last,
            } => {
                for (deputy, credential) in deputies {
                    self.next_deputy = self.next_deputy.max(deputy.0 + 1);
                    self.deputies.insert(credential, deputy);
                }
                self.has_inventory |= last;
                self.resume_until_ms = now_ms + RESUME_WAIT_MS;
                for ghost in ghosts {
                    self.restore(now_ms, &ghost, effects);
                }
            }
            FromKeeper::Seized { task } => self.seized(task, effects),
            FromKeeper::SeizeFailed { task, reason } => {
                if let Some((job, _)) = self.task(task)
                    && let Some(client) = job.client
                {
                    effects.push(Effect::Reply(client, refused(&reason)));
                }
                self.remove(task, Status::cluster_failed(reason), effects);
            }
            FromKeeper::Signal {
                task,
                signal,
                from_kernel,
                leads_group,
            } => {
                self.ghost_signalled(task, signal, from_kernel, leads_group, effects);
            }
            FromKeeper::Stopped { task, signal } => {
                self.signal_task(task, signal, SignalScope::Group, effects);
            }
            FromKeeper::Continued { task } => {
                self.signal_task(task, SIGCONT, SignalScope::Group, effects);
            }
            FromKeeper::Died { task, end } => self.ghost_died(task, end, effects),
            FromKeeper::Gone { task } => self.ghost_gone(task, effects),
            FromKeeper::Deputy { .. } => {}
            FromKeeper::DeputyGone { deputy, how } => self.deputy_gone(deputy, &how, effects),
        }
    }

    fn seized(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
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
        let is_connected = self
            .nodes
            .get(task.node)
            .is_some_and(|n| n.presence == Presence::Connected);
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

    fn ghost_signalled(
        &mut self,
        id: TaskId,
        signal: u8,
        from_kernel: bool,
        leads_group: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some((job, task)) = self.task(id) else {
            return;
        };
        if signal == SIGWINCH && job.spec.has_terminal() {
            effects.push(Effect::ToDeputy(
                task.deputy,
                ToDeputy::WindowChanged { task: id },
            ));
            return;
        }
        let to_group = from_kernel || (leads_group && GROUP_SIGNALS.contains(&signal));
        let scope = if to_group {
            SignalScope::Group
        } else {
            SignalScope::Process
        };
        self.signal_task(id, signal, scope, effects);
    }

    /// Signals a task, or keeps the signal until its node is heard of again.
    pub(super) fn signal_task(
        &mut self,
        id: TaskId,
        signal: u8,
        scope: SignalScope,
        effects: &mut Vec<Effect>,
    ) {
        let Some(task) = self.task_mut(id) else {
            return;
        };
        let (node, over) = (task.node, task.phase.is_over_on_node());
        let is_seizing = matches!(task.phase, Phase::Placed | Phase::Seizing);
        if over && !is_seizing {
            return;
        }
        let is_connected = self
            .nodes
            .get(node)
            .is_some_and(|node| node.presence == Presence::Connected);
        if is_connected && !is_seizing {
            effects.push(Effect::ToNode(
                node,
                ToAgent::Signal {
                    task: id,
                    signal,
                    scope,
                },
            ));
        } else if let Some(task) = self.task_mut(id)
            && task.pending_signals.len() < MAX_PENDING_SIGNALS
        {
            task.pending_signals.push((signal, scope));
        }
    }

    fn ghost_died(&mut self, id: TaskId, end: GhostEnd, effects: &mut Vec<Effect>) {
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
    fn finish(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
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

    pub(super) fn hear_deputy(
        &mut self,
        deputy: DeputyId,
        message: FromDeputy,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            FromDeputy::Said { task } => self.finish(task, effects),
            FromDeputy::Ready { tasks } => {
                self.ready_deputies.insert(deputy);
                let waiting: Vec<_> = self
                    .tasks_of(deputy)
                    .filter(|t| t.awaits_deputy)
                    .map(|t| t.id)
                    .collect();
                waiting.into_iter().for_each(|id| self.go_on(id, effects));
                // What ended while the head was away, or is still untold.
                for id in tasks {
                    match self.task(id).map(|(_, task)| task.phase.clone()) {
                        None | Some(Phase::Finishing(_)) => {
                            let detach = ToDeputy::Detach { task: id };
                            effects.push(Effect::ToDeputy(deputy, detach));
                        }
                        Some(Phase::Telling(Status::Failed { code, reason })) => {
                            if code == EXIT_CLUSTER_FAILED {
                                let undo = ToDeputy::Undo { task: id };
                                effects.push(Effect::ToDeputy(deputy, undo));
                            }
                            let say = ToDeputy::Say {
                                task: id,
                                text: reason,
                            };
                            effects.push(Effect::ToDeputy(deputy, say));
                        }
                        // The deputy has its streams, so the launch can be made whole.
                        Some(phase) => {
                            if let Some(task) = self.task_mut(id)
                                && std::mem::take(&mut task.uncertain)
                                && phase == Phase::Launching
                            {
                                self.launch(id, effects);
                            }
                        }
                    }
                }
            }
        }
    }

    fn deputy_gone(&mut self, deputy: DeputyId, how: &str, effects: &mut Vec<Effect>) {
        self.deputies.retain(|_, id| *id != deputy);
        self.ready_deputies.remove(&deputy);
        let theirs: Vec<_> = self
            .tasks_of(deputy)
            .map(|task| (task.id, task.node, task.phase.clone()))
            .collect();
        let reason =
            format!("this task's deputy on the head is gone: {how}; run the command again");
        for (id, node, phase) in theirs {
            if let Some(task) = self.task_mut(id) {
                task.deputy_gone = true;
            }
            match phase {
                Phase::Telling(_) => self.finish(id, effects),
                Phase::Finishing(_) => {}
                phase => {
                    self.condemn(id, node, &reason, effects);
                    let awaits = self.task(id).is_some_and(|(_, task)| task.awaits_deputy);
                    if awaits && phase == Phase::Seizing {
                        self.go_on(id, effects);
                    }
                }
            }
        }
    }

    fn tasks_of(&self, deputy: DeputyId) -> impl Iterator<Item = &Task> {
        let all = self.jobs.values().flat_map(|job| job.tasks.values());
        all.filter(move |task| task.deputy == deputy)
    }

    /// The cluster has failed this task: its node kills it, and when that is confirmed the user is
    /// told why.
    fn condemn(&mut self, id: TaskId, node: NodeId, reason: &str, effects: &mut Vec<Effect>) {
        if let Some(task) = self.task_mut(id) {
            task.verdict = Some(Status::cluster_failed(reason));
        }
        effects.push(Effect::ToNode(node, ToAgent::Kill { task: id }));
    }

    pub(super) fn keeper_lost(&mut self, _now_ms: u64, effects: &mut Vec<Effect>) {
        // The ghosts have seen the same end of file and have ended with 125 by themselves.
        self.has_inventory = false;
        self.deputies.clear();
        self.ready_deputies.clear();
        // A command that still launches waits for a word; the others don't listen.
        for client in self.jobs.values().filter_map(|job| job.client) {
            let text = "the keeper has died while this was launched; run it again";
            effects.push(Effect::Reply(client, refused(text)));
        }
        let all: Vec<_> = self
            .jobs
            .values()
            .flat_map(|job| job.tasks.values())
            .map(|task| (task.id, task.node, task.phase.is_over_on_node()))
            .collect();
        for (id, node, over) in all {
            // Each is ignored by an agent that it does not fit.
            effects.push(Effect::ToNode(
                node,
                if over {
                    ToAgent::Acknowledge { task: id }
                } else {
                    ToAgent::Kill { task: id }
                },
            ));
            self.remove(id, Status::cluster_failed("the keeper has died"), effects);
        }
    }

    fn ghost_gone(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
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

    /// A ghost that the keeper kept while the head was away.
    fn restore(&mut self, now_ms: u64, ghost: &GhostReport, effects: &mut Vec<Effect>) {
        if self.task(ghost.task).is_some() {
            return;
        }
        let Some(record) = TaskRecord::from_bytes(&ghost.record) else {
            let text = "the head was replaced by another version; run the command again";
            let finish = ToKeeper::Finish {
                task: ghost.task,
                end: GhostEnd::Exit(EXIT_CLUSTER_FAILED),
                text: Some(text.into()),
            };
            effects.push(Effect::ToKeeper(finish));
            return;
        };
        let id = record.task;
        self.next_job = self.next_job.max(id.job.0 + 1);
        if let Some(node) = self.nodes.get_mut(record.node) {
            node.tasks.insert(id);
            if record.exclusive {
                node.exclusive = Some(id.job);
            }
            // A restarted head counts every node as just renewed (P4).
            if node.presence == Presence::Absent {
                node.presence = Presence::Silent;
                node.answered_ms = now_ms;
            }
        }
        let job = self.jobs.entry(id.job).or_insert_with(|| record.to_job());
        job.tasks.insert(id.index, record.to_task());
        if !self
            .deputies
            .values()
            .any(|deputy| *deputy == record.deputy)
        {
            // It died while no head was there to be told.
            if let Some(task) = self.task_mut(id) {
                task.deputy_gone = true;
            }
            let reason = "this task's deputy on the head has died; run the command again";
            self.condemn(id, record.node, reason, effects);
        }
        if let Some(end) = ghost.died {
            self.ghost_died(id, end, effects);
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
                .filter(|task| {
                    self.nodes
                        .get(task.node)
                        .is_some_and(|n| n.presence == Presence::Connected)
                })
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

fn refused(reason: &str) -> Reply {
    Reply::Refused {
        code: EXIT_CLUSTER_FAILED,
        message: reason.to_owned(),
        hint: None,
    }
}
