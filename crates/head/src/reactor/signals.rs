//! Signals on their way to a task (P5): whom they are for, and where they wait.

use wiglaf_wire::agent::{SignalScope, ToAgent};
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::id::TaskId;

use super::{Effect, Reactor};
use crate::jobs::{MAX_PENDING_SIGNALS, Phase};

/// Signals that a ghost which leads its group passes to the whole remote group (P5), by their
/// numbers on all architectures that we build for: HUP, INT, QUIT, TERM, STOP, TSTP.
const GROUP_SIGNALS: [u8; 6] = [1, 2, 3, 15, 19, 20];
pub(super) const SIGCONT: u8 = 18;
const SIGWINCH: u8 = 28;

impl Reactor {
    pub(super) fn ghost_signalled(
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
        if self.is_connected(node) && !is_seizing {
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
}
