//! What the keeper says: of ghosts, of deputies, and, to a head that comes back, of all that it
//! has kept. What follows for a task is in [`super::tasks`], for a deputy's in
//! [`super::deputies`].

use wiglaf_wire::agent::{SignalScope, ToAgent};
use wiglaf_wire::client::Reply;
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostReport, ToKeeper};
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, Status};

use super::signals::SIGCONT;
use super::{Effect, RESUME_WAIT_MS, Reactor};
use crate::jobs::TaskRecord;
use crate::node_table::Presence;

impl Reactor {
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
}

fn refused(reason: &str) -> Reply {
    Reply::Refused {
        code: EXIT_CLUSTER_FAILED,
        message: reason.to_owned(),
        hint: None,
    }
}
