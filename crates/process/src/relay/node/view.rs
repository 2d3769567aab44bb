//! Questions of the node's view, on the links that the streams go by.

use std::collections::{HashSet, VecDeque};

use wiglaf_link::Poll;
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::stream::Relay;
use wiglaf_wire::view::{Ask, Question};

use super::NodeRelay;
use super::dial::{Link, State};
use crate::relay::carrier::Carrier;

/// Questions of one deputy that are not answered yet; more wait here.
const MAX_ASKED: u64 = 1024;

/// The questions to one deputy.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// Not sent yet, oldest first.
    unsent: VecDeque<Question>,
    /// Sent and not answered, without those that wait for a lock: what they wait for may be among
    /// the unsent.
    asked: u64,
    waiting_for_locks: HashSet<u64>,
}

impl Questions {
    pub(super) fn answered(&mut self, id: u64) {
        if !self.waiting_for_locks.remove(&id) {
            self.asked = self.asked.saturating_sub(1);
        }
    }

    /// Sends what may be sent.
    fn send(&mut self, carrier: &mut Carrier) {
        while self.asked < MAX_ASKED
            && !carrier.is_congested()
            && let Some(question) = self.unsent.pop_front()
        {
            match question.what {
                Ask::Lock { wait: true, .. } => {
                    self.waiting_for_locks.insert(question.id);
                }
                _ => self.asked += u64::from(question.what.has_answer()),
            }
            carrier.say(&Relay::Ask(question));
        }
    }
}

impl NodeRelay {
    /// Tasks need their deputy even when all their streams are null: their files come from it.
    pub fn set_serves_view(&mut self) {
        self.serves_view = true;
    }

    /// Asks a deputy. [`RelayEvent::Answered`](super::RelayEvent::Answered) follows, or the
    /// deputy is one of [`NodeRelay::take_unlinked`]. `false`: no task here is the deputy's, and
    /// there is no link to it.
    pub fn ask(&mut self, poll: &Poll, deputy: DeputyId, question: Question) -> bool {
        let will_be_sent = self.prepare_question(deputy, question);
        self.send_questions(poll, deputy);
        will_be_sent
    }

    /// As [`NodeRelay::ask`], but the question leaves with the next ones, or with
    /// [`NodeRelay::send_questions`]: those that come together share one record.
    pub fn prepare_question(&mut self, deputy: DeputyId, question: Question) -> bool {
        let Some(link) = self.links.get_mut(&deputy) else {
            return false;
        };
        if link.tasks.is_empty() && !matches!(link.state, State::Up(_)) {
            return false;
        }
        if self.unlinked.contains(&deputy) {
            return false;
        }
        link.questions.unsent.push_back(question);
        true
    }

    /// Lets the link to a deputy go that has no tasks here, as if it had been idle for long.
    pub fn let_go(&mut self, poll: &Poll, deputy: DeputyId) {
        match self.links.get(&deputy) {
            Some(link) if !link.tasks.is_empty() => {}
            Some(_) => self.link_broken(poll, deputy, String::new()),
            // It was given up before.
            None if !self.unlinked.contains(&deputy) => self.unlinked.push(deputy),
            None => {}
        }
    }

    /// The deputies whose links have gone since the last call, and with them the questions that
    /// they had not answered, and the meaning of their numbers.
    pub fn take_unlinked(&mut self) -> Vec<DeputyId> {
        std::mem::take(&mut self.unlinked)
    }

    /// Sends what waits: for the deputy's first word, since a link that nobody answers is dialled
    /// again, and for room.
    pub fn send_questions(&mut self, poll: &Poll, deputy: DeputyId) {
        let Some(link) = self.links.get_mut(&deputy) else {
            return;
        };
        if let State::Up(carrier) = &mut link.state
            && link.is_heard
            && !link.questions.unsent.is_empty()
        {
            link.questions.send(carrier);
            self.settle(poll, deputy);
        }
    }
}

impl Link {
    /// The link is gone; returns whether whoever asked must know. If the deputy had said nothing
    /// on it, the questions go to the next one.
    pub(super) fn lose_questions(&mut self) -> bool {
        let is_over = self.is_heard || self.tasks.is_empty();
        if is_over {
            self.questions = Questions::default();
        }
        self.is_heard = false;
        is_over
    }
}
