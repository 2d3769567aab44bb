//! What deputies say, and what becomes of the tasks of one that is gone.

use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, Status};

use super::{Effect, Reactor};
use crate::jobs::{Phase, Task};

impl Reactor {
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

    pub(super) fn deputy_gone(&mut self, deputy: DeputyId, how: &str, effects: &mut Vec<Effect>) {
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
}
