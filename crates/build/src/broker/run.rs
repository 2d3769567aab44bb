//! What each event changes.

use std::time::Duration;

use wiglaf_wire::status::{Status, Usage};

use super::state::{Attempt, Line, Rank, Room, State, waits};
use super::{Broker, EVEN_PACE, Effect, MAX_ATTEMPTS, MAX_REFUSALS, Node, REFUSED_WAIT};
use crate::call::Call;
use crate::learned::{Fit, Taken};
use crate::policy::{Wish, judge};
use crate::record::{Place, Row, to_us};
use crate::{AttemptId, ShimId};

/// Lines within lines that are told of one another.
const MAX_INSIDE: usize = 64;
/// A pace moves by this part of each difference.
const PACE_PART: u64 = 4;
/// SIGHUP, SIGINT, SIGQUIT, SIGTERM: who gets one is not wanted any more.
const ENDS: &[u8] = &[1, 2, 3, 15];
/// Paces beyond say that the expectation was wrong.
const PACE_RANGE: (u64, u64) = (100, 10_000);

impl Broker {
    pub(super) fn take_nodes(&mut self, now: Duration, nodes: Vec<Node>) {
        if nodes == self.nodes {
            return;
        }
        self.warmth.keep(&nodes);
        if nodes.is_empty() {
            if !self.nodes.is_empty() {
                self.nodes_gone = Some(now);
            }
        } else {
            self.nodes_gone = None;
            self.refusals = 0;
            self.refused_until = None;
            self.is_full = false;
        }
        self.nodes = nodes;
    }

    pub(super) fn called(
        &mut self,
        now: Duration,
        shim: ShimId,
        call: &Call,
        effects: &mut Vec<Effect>,
    ) {
        if self.lines.contains_key(&shim) {
            return;
        }
        let judgement = judge(call, &self.settings, &self.learned);
        let number = self.next_number;
        self.next_number += 1;
        let around = call.inside.filter(|around| self.lines.contains_key(around));
        let is_part = around.is_some_and(|around| self.lines[&around].keeps);
        let mut row = Row::new(number, &judgement, now);
        row.counts = !waits(&judgement.reason);
        let mut line = Line {
            row,
            state: State::Here(Room::Free),
            is_held: false,
            failed_on: Vec::new(),
            signal: None,
            inside: around,
            keeps: judgement.keeps || is_part,
            is_recorded: !is_part,
            gathers: false,
            judgement,
        };
        if is_part || line.judgement.wish == Wish::Here {
            line.row.begin(now, Place::Here);
            effects.push(Effect::RunHere { shim });
            // Its time is in that of the line around it.
            line.row.counts &= !around.is_some_and(|around| self.lines[&around].row.counts);
            self.lines.insert(shim, line);
            return;
        }
        self.tell_around(around);
        line.state = State::Queued;
        self.queue.insert((Rank::new(&line), shim));
        self.lines.insert(shim, line);
    }

    /// The lines that one for a node is a part of: most of their time is their parts' time.
    fn tell_around(&mut self, around: Option<ShimId>) {
        let mut next = around;
        for _ in 0..MAX_INSIDE {
            let Some(line) = next.and_then(|shim| self.lines.get_mut(&shim)) else {
                return;
            };
            line.row.counts = false;
            line.gathers = true;
            next = line.inside;
        }
    }

    pub(super) fn signalled(
        &mut self,
        now: Duration,
        shim: ShimId,
        signal: u8,
        by_terminal: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(line) = self.lines.get_mut(&shim) else {
            return;
        };
        match line.state {
            State::OnNode(attempt, _) => {
                if ENDS.contains(&signal) {
                    line.signal = Some(signal);
                }
                if !by_terminal {
                    effects.push(Effect::Signal { attempt, signal });
                }
            }
            // Its shell has not begun, so that nothing could have caught it.
            State::Queued | State::Returned | State::Asked(_) => {
                self.withdraw(shim, effects);
                self.answer(now, shim, Status::Signaled(signal), effects);
            }
            State::Here(_) => {}
        }
    }

    pub(super) fn shim_gone(&mut self, now: Duration, shim: ShimId, effects: &mut Vec<Effect>) {
        let is_here = |line: &Line| matches!(line.state, State::Here(_));
        if self.lines.get(&shim).is_none_or(is_here) {
            return;
        }
        self.withdraw(shim, effects);
        if let Some(mut line) = self.lines.remove(&shim) {
            line.row.end(now, "its shim was killed");
            self.record.add(line.row);
        }
    }

    /// Out of the queues; an attempt is given up.
    fn withdraw(&mut self, shim: ShimId, effects: &mut Vec<Effect>) {
        let Some(line) = self.lines.get(&shim) else {
            return;
        };
        self.queue.remove(&(Rank::new(line), shim));
        self.returned.retain(|other| *other != shim);
        if let Some(attempt) = line.attempt() {
            if let Some(attempt) = self.attempts.get_mut(&attempt) {
                attempt.shim = None;
            }
            if self.unplaced == Some(attempt) {
                self.unplaced = None;
            }
            effects.push(Effect::Cancel { attempt });
        }
    }

    fn answer(&mut self, now: Duration, shim: ShimId, status: Status, effects: &mut Vec<Effect>) {
        if let Some(mut line) = self.lines.remove(&shim) {
            line.row.end(now, &words_of(&status));
            self.record.add(line.row);
        }
        effects.push(Effect::Answer { shim, status });
    }

    pub(super) fn local_ended(&mut self, now: Duration, shim: ShimId) {
        let is_here = |line: &Line| matches!(line.state, State::Here(_));
        if !self.lines.get(&shim).is_some_and(is_here) {
            return;
        }
        let Some(mut line) = self.lines.remove(&shim) else {
            return;
        };
        match line.state {
            State::Here(Room::Processor) => self.room_taken -= 1,
            State::Here(Room::Slot) => self.slots_taken -= 1,
            _ => {}
        }
        if !line.is_recorded {
            return;
        }
        line.row.end(now, "");
        let wall_us = line.row.wall_us();
        if line.state == State::Here(Room::Slot) {
            self.own_pace = paced(self.own_pace, &line, wall_us);
        }
        let taken = Taken {
            wall_us,
            gathers: line.gathers,
            ..Taken::default()
        };
        self.learned.learn(&line.judgement.keys, taken);
        self.warmth.made(line.judgement.makes.as_ref(), None);
        self.record.add(line.row);
    }

    pub(super) fn placed(&mut self, now: Duration, id: AttemptId, node: String) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        if attempt.node.is_some() {
            return;
        }
        attempt.node = Some(node.clone());
        attempt.began = now;
        if self.unplaced == Some(id) {
            self.unplaced = None;
        }
        self.refusals = 0;
        self.is_full = false;
        if let Some(line) = attempt.shim.and_then(|shim| self.lines.get_mut(&shim)) {
            line.row.begin(now, Place::Node(node.clone()));
            self.warmth.began(&line.judgement.program, &node);
            line.state = State::OnNode(id, node);
        }
    }

    pub(super) fn refused(
        &mut self,
        now: Duration,
        id: AttemptId,
        message: &str,
        effects: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.forget(id) else {
            return;
        };
        self.refusals += 1;
        if self.refusals >= MAX_REFUSALS {
            self.refused_until = Some(now + REFUSED_WAIT);
        }
        if let Some(shim) = attempt.shim {
            self.fail(now, shim, message, false, effects);
        }
    }

    pub(super) fn ended(
        &mut self,
        now: Duration,
        id: AttemptId,
        status: Status,
        usage: Option<Usage>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.forget(id) else {
            return;
        };
        self.is_full = false;
        let Some(shim) = attempt.shim else {
            return;
        };
        if let Status::Failed { reason, .. } = &status {
            let Some(line) = self.lines.get_mut(&shim) else {
                return;
            };
            line.failed_on.extend(attempt.node);
            return self.fail(now, shim, reason, true, effects);
        }
        if let Some(line) = self.lines.get_mut(&shim)
            && let Some(usage) = usage
        {
            line.row.cpu_us = Some(usage.user_us.saturating_add(usage.system_us));
            line.row.rss_kib = Some(usage.max_rss_kib);
        }
        if status == Status::Exited(0)
            && let Some(line) = self.lines.get(&shim)
        {
            let wall_us = to_us(now.saturating_sub(attempt.began)).max(1);
            self.warmth
                .made(line.judgement.makes.as_ref(), attempt.node.as_deref());
            if let Some(node) = attempt.node {
                let pace = self.paces.entry(node).or_insert(EVEN_PACE);
                *pace = paced(*pace, line, wall_us);
            }
            let taken = Taken {
                wall_us,
                cpu_us: line.row.cpu_us,
                rss_kib: line.row.rss_kib,
                gathers: false,
            };
            self.learned.learn(&line.judgement.keys, taken);
        }
        self.answer(now, shim, status, effects);
    }

    fn forget(&mut self, id: AttemptId) -> Option<Attempt> {
        if self.unplaced == Some(id) {
            self.unplaced = None;
        }
        self.attempts.remove(&id)
    }

    /// The cluster has failed a line: another node, or here.
    fn fail(
        &mut self,
        now: Duration,
        shim: ShimId,
        reason: &str,
        may_try_again: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(line) = self.lines.get_mut(&shim) else {
            return;
        };
        line.row.failures.push(reason.to_owned());
        if let Some(signal) = line.signal {
            return self.answer(now, shim, Status::Signaled(signal), effects);
        }
        if may_try_again && line.row.attempts < MAX_ATTEMPTS {
            line.state = State::Queued;
            self.queue.insert((Rank::new(line), shim));
        } else {
            self.give_back(shim, reason);
        }
    }

    /// Meant for a node, it has to run here.
    pub(super) fn give_back(&mut self, shim: ShimId, reason: &str) {
        if let Some(line) = self.lines.get_mut(&shim) {
            line.row.fell_back = Some(reason.to_owned());
            line.state = State::Returned;
            self.returned.push_back(shim);
            self.record.fell_back(reason);
        }
    }

    pub(super) fn run_here(
        &mut self,
        now: Duration,
        shim: ShimId,
        room: Room,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(line) = self.lines.get_mut(&shim) {
            line.row.begin(now, Place::Here);
            line.row.in_head_slot = room == Room::Slot;
            line.state = State::Here(room);
            line.keeps = true;
            effects.push(Effect::RunHere { shim });
        }
        match room {
            Room::Processor => self.room_taken += 1,
            Room::Slot => self.slots_taken += 1,
            Room::Free => {}
        }
    }

    pub(super) fn launch(&mut self, now: Duration, shim: ShimId, effects: &mut Vec<Effect>) {
        let Some(line) = self.lines.get_mut(&shim) else {
            return;
        };
        let attempt = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        line.row.attempts += 1;
        line.state = State::Asked(attempt);
        if !line.is_held {
            line.is_held = true;
            effects.push(Effect::Hold { shim });
        }
        let estimate = line.judgement.estimate;
        self.attempts.insert(
            attempt,
            Attempt {
                shim: Some(shim),
                node: None,
                began: now,
                expected_us: estimate.map(|found| found.wall_us),
            },
        );
        self.unplaced = Some(attempt);
        effects.push(Effect::Launch {
            attempt,
            shim,
            exclude: line.failed_on.clone(),
            prefer: self.warmth.preferred(&line.judgement, &self.nodes),
            memory_kib: estimate.and_then(|found| found.rss_kib),
            private_tmp: line.row.shares_tmp.is_none(),
        });
    }
}

/// A pace after a line that took so long.
fn paced(pace: u64, line: &Line, wall_us: u64) -> u64 {
    let Some(estimate) = line.judgement.estimate else {
        return pace;
    };
    if estimate.fit != Fit::Line || estimate.wall_us == 0 {
        return pace;
    }
    let seen = wall_us.saturating_mul(EVEN_PACE) / estimate.wall_us;
    let seen = seen.clamp(PACE_RANGE.0, PACE_RANGE.1);
    (pace * (PACE_PART - 1) + seen) / PACE_PART
}

fn words_of(status: &Status) -> String {
    match status {
        Status::Exited(0) => String::new(),
        Status::Exited(code) => format!("exit {code}"),
        Status::Signaled(signal) => format!("signal {signal}"),
        Status::Failed { reason, .. } => reason.clone(),
    }
}
