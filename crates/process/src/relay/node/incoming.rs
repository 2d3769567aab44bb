//! What comes by a deputy's link: bytes for programs, what became of theirs, and the view's.

use wiglaf_link::{Poll, Ready};
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::stream::{Relay, Stream};
use wiglaf_wire::view::Short;

use super::dial::{Link, State};
use super::{NodeRelay, RelayEvent, stdio};

impl NodeRelay {
    pub(super) fn link_ready(
        &mut self,
        poll: &Poll,
        deputy: DeputyId,
        ready: Ready,
        events: &mut Vec<RelayEvent>,
    ) {
        let Some(link) = self.links.get_mut(&deputy) else {
            return;
        };
        match &mut link.state {
            State::Down => return,
            State::Connecting(_) => return self.connected(poll, deputy),
            State::Up(carrier) => {
                carrier.settle(poll);
                if ready.readable {
                    carrier.receive();
                }
            }
        }
        let touched = self.take_frames(poll, deputy, events);
        self.unstall(poll, deputy);
        self.settle(poll, deputy);
        self.send_questions(poll, deputy);
        for task in touched {
            self.check_drained(task, events);
        }
    }

    /// Handles all frames that have arrived; returns the tasks that may be drained now.
    fn take_frames(
        &mut self,
        poll: &Poll,
        deputy: DeputyId,
        events: &mut Vec<RelayEvent>,
    ) -> Vec<TaskId> {
        let mut touched = Vec::new();
        let mut reports: Vec<(TaskId, Stream)> = Vec::new();
        let mut heard = false;
        let Some(link) = self.links.get_mut(&deputy) else {
            return touched;
        };
        let State::Up(carrier) = &mut link.state else {
            return touched;
        };
        while let Some(message) = carrier.next_message(&mut reports, |header, bytes| {
            let entry = self.tasks.get_mut(&header.task);
            match entry.filter(|entry| entry.deputy == deputy) {
                Some(entry) => entry.streams.data(poll, header, bytes).map(|()| true),
                None => Ok(false),
            }
        }) {
            heard = true;
            let message = match message {
                Relay::Answer(answer) => {
                    link.questions.answered(answer.id);
                    events.push(RelayEvent::Answered(deputy, answer));
                    continue;
                }
                Relay::Changed(changes) => {
                    events.push(RelayEvent::Changed(deputy, changes));
                    continue;
                }
                Relay::Given(gifts) => {
                    events.push(RelayEvent::Given(deputy, gifts));
                    continue;
                }
                Relay::Short(told, cuts) => {
                    if let Short::Answer(answer) = &told {
                        link.questions.answered(answer.id);
                    }
                    events.push(RelayEvent::Short(deputy, told, cuts));
                    continue;
                }
                message => message,
            };
            let Some(task) = task_of(&message) else {
                continue;
            };
            let entry = self
                .tasks
                .get_mut(&task)
                .filter(|entry| entry.deputy == deputy);
            let Some(entry) = entry else { continue };
            let result = match message {
                Relay::Passed { stream, offset, .. } => {
                    entry
                        .streams
                        .passed(poll, (stream, offset), carrier, &mut self.buffers)
                }
                Relay::End { stream, offset, .. } => {
                    entry.streams.ended(poll, (stream, offset), carrier)
                }
                Relay::Broken { stream, .. } => {
                    entry.broken(poll, stream);
                    Ok(())
                }
                Relay::Resize { window, .. } => {
                    if let Some(terminal) = &entry.terminal {
                        // The size of a terminal whose programs are gone does not matter.
                        let _ = stdio::set_size(terminal, window);
                    }
                    Ok(())
                }
                Relay::Refused { .. } => {
                    link.tasks.remove(&task);
                    let reason = "its deputy does not know it on this node";
                    entry.lose(poll, reason, events);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = result {
                carrier.fail(error);
            }
            touched.push(task);
        }
        for (task, stream) in reports {
            if let Some(entry) = self.tasks.get_mut(&task) {
                entry.streams.report(stream, carrier);
            }
        }
        if heard {
            link.heard();
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Gives streams that waited for room on the link their turn.
    fn unstall(&mut self, poll: &Poll, deputy: DeputyId) {
        let Some(carrier) = self.links.get_mut(&deputy).and_then(Link::carrier) else {
            return;
        };
        while !carrier.is_congested()
            && let Some((task, stream)) = carrier.stalled.pop_front()
        {
            if let Some(entry) = self.tasks.get_mut(&task) {
                entry
                    .streams
                    .unstall(poll, stream, carrier, &mut self.buffers);
            }
        }
    }

    /// Sends what is queued, and looks whether the link still stands.
    pub(super) fn settle(&mut self, poll: &Poll, deputy: DeputyId) {
        let Some(carrier) = self.links.get_mut(&deputy).and_then(Link::carrier) else {
            return;
        };
        carrier.settle(poll);
        if let Some(error) = carrier.failure() {
            let reason = error.to_string();
            self.link_broken(poll, deputy, reason);
        }
    }
}

fn task_of(message: &Relay) -> Option<TaskId> {
    match message {
        Relay::Attach { task }
        | Relay::Refused { task }
        | Relay::End { task, .. }
        | Relay::Passed { task, .. }
        | Relay::Broken { task, .. }
        | Relay::Resize { task, .. } => Some(*task),
        Relay::Ask(_)
        | Relay::Answer(_)
        | Relay::Changed(_)
        | Relay::Given(_)
        | Relay::Short(..) => None,
    }
}
