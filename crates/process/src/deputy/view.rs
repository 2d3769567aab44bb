//! The head's end of the view, as far as the deputy carries it: whose questions are answered, how
//! many at a time, and what is told unasked.
//!
//! What a question means is not known here: [`Files`] knows.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::io::Errno;
use wiglaf_wire::id::TaskId;
use wiglaf_wire::stream::Relay;
use wiglaf_wire::view::{Answer, Ask, Change, Gift, MAX_CHANGES, Question, Short};

use super::Deputy;
use super::links::{Link, LinkId};

/// A link with so many questions that wait is not read until it has fewer (S1). One read brings
/// some more.
const MAX_QUESTIONS: usize = 4096;
/// The same for the bytes that they bring.
const MAX_QUESTION_BYTES: usize = 8 << 20;
/// Answers to one link before the others, and the streams, get their turn.
const ANSWERS_PER_TURN: usize = 64;
/// The same for the bytes of files in them, and in the questions.
const BYTES_PER_TURN: usize = 1 << 20;

/// The head's files, as one deputy serves them to all its links.
pub trait Files: Debug {
    /// Does what a link asks, with the rights of this process, and says what the links have to be
    /// told: mostly one answer, after the changes that go before it.
    fn question(&mut self, link: LinkId, question: Question, out: &mut Vec<(LinkId, Told)>);

    /// Called after some questions, before the loop waits: does what can be done then at less
    /// expense than later.
    fn settle(&mut self, _out: &mut Vec<(LinkId, Told)>) {}

    /// Says what else has changed.
    fn changes(&mut self, out: &mut Vec<(LinkId, Told)>);

    /// Readable when [`Files::changes`] has something to say. Always the same descriptor.
    fn watch_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Does what is due.
    fn tick(&mut self, now: Instant, out: &mut Vec<(LinkId, Told)>);

    /// When [`Files::tick`] is due.
    fn deadline(&self) -> Option<Instant>;

    /// Whether [`Files::give`] has something for a link.
    fn has_gifts(&self, _link: LinkId) -> bool {
        false
    }

    /// Says what a link will probably ask for, a little at a time.
    fn give(&mut self, _link: LinkId, _out: &mut Vec<(LinkId, Told)>) {}

    /// The cluster has failed a task: what it has made anew is removed, if [`Ask::For`] told of it.
    fn undo(&mut self, _task: TaskId, _out: &mut Vec<(LinkId, Told)>) {}

    /// A task has ended by itself: what it has made stays.
    fn keep(&mut self, _task: TaskId) {}

    /// Nothing runs there any more that would need gifts.
    fn stop_giving(&mut self, _link: LinkId) {}

    /// A link is gone, with all that it had. It may have asked nothing.
    fn close(&mut self, link: LinkId);

    /// This process has written to a regular file that was passed to it: a task's output. `file`
    /// is open with `O_PATH`. [`Files::changes`] is called soon.
    fn wrote(&mut self, file: BorrowedFd<'_>);
}

/// What a link is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The answer to its question.
    Answer(Answer),
    /// What it knows is not so any more.
    Changes(Vec<Change>),
    /// What it has not asked for yet.
    Gifts(Vec<Gift>),
}

/// A deputy that serves no files: every question is answered with this.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles(pub Errno);

impl Files for NoFiles {
    fn question(&mut self, link: LinkId, question: Question, out: &mut Vec<(LinkId, Told)>) {
        if question.what.has_answer() {
            out.push((link, Told::Answer(refusal(question.id, self.0))));
        }
    }

    fn changes(&mut self, _: &mut Vec<(LinkId, Told)>) {}

    fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn tick(&mut self, _: Instant, _: &mut Vec<(LinkId, Told)>) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn close(&mut self, _: LinkId) {}

    fn wrote(&mut self, _: BorrowedFd<'_>) {}
}

/// The questions of one link that wait.
#[derive(Debug, Default)]
pub(super) struct Questions {
    waiting: VecDeque<Question>,
    /// What they bring.
    bytes: usize,
}

impl Questions {
    pub(super) fn take(&mut self, question: Question) {
        self.bytes += brought(&question);
        self.waiting.push_back(question);
    }

    /// Whether the link should wait with more.
    pub(super) fn are_many(&self) -> bool {
        self.waiting.len() >= MAX_QUESTIONS || self.bytes >= MAX_QUESTION_BYTES
    }

    fn pop(&mut self) -> Option<Question> {
        let question = self.waiting.pop_front()?;
        self.bytes -= brought(&question);
        Some(question)
    }
}

/// Bytes that come with a question.
fn brought(question: &Question) -> usize {
    match &question.what {
        Ask::Write { data, .. } => data.len(),
        Ask::SetXattr { value, .. } => value.len(),
        Ask::Keeps(filter) => filter.bytes(),
        Ask::Lost(pieces) => size_of_val(pieces.as_slice()),
        _ => 0,
    }
}

/// Bytes that go with an answer.
fn carried(told: &Told) -> usize {
    match told {
        Told::Answer(answer) => answer.content_bytes(),
        _ => 0,
    }
}

fn refusal(id: u64, errno: Errno) -> Answer {
    Answer {
        id,
        result: Err(errno.raw_os_error()),
    }
}

impl Deputy {
    /// Whether there are questions to be answered without waiting for anything.
    pub(super) fn has_questions(&self) -> bool {
        self.links
            .iter()
            .any(|(&id, link)| self.can_answer(id, link))
    }

    /// Answers some of each link's questions.
    pub(super) fn answer_questions(&mut self) {
        let ready: Vec<_> = self
            .links
            .iter()
            .filter(|(id, link)| self.can_answer(**id, link))
            .map(|(id, _)| *id)
            .collect();
        let mut touched = BTreeSet::new();
        for id in ready {
            self.answer_some(id, &mut touched);
        }
        self.settle_all(&touched);
        if !touched.is_empty() {
            // After the answers, which somebody waits for.
            let mut out = Vec::new();
            self.files.settle(&mut out);
            self.tell(out);
        }
    }

    fn answer_some(&mut self, id: LinkId, touched: &mut BTreeSet<LinkId>) {
        if !self.is_entitled(id) {
            // What the head said before the question was asked may not have been read yet.
            self.hear_head();
        }
        let entitled = self.is_entitled(id);
        let mut out = Vec::new();
        let mut bytes = 0;
        for _ in 0..ANSWERS_PER_TURN {
            let Some(link) = self.links.get_mut(&id) else {
                return;
            };
            if bytes >= BYTES_PER_TURN || !link.may_be_answered(entitled) {
                return;
            }
            let Some(question) = link.questions.pop() else {
                return;
            };
            touched.insert(id);
            bytes += brought(&question);
            let question = match question.what {
                Ask::Keeps(filter) => {
                    link.kept.learn(filter);
                    continue;
                }
                Ask::Lost(pieces) => {
                    link.kept.unlearn(pieces);
                    continue;
                }
                what => Question { what, ..question },
            };
            let read = match question.what {
                Ask::Read { offset, length, .. } => Some(((id, question.id), (offset, length))),
                _ => None,
            };
            if let Ask::For { task } = question.what
                && self
                    .tasks
                    .get(&task)
                    .is_none_or(|task| task.link != Some(id))
            {
                // It is not the node's to speak of (S3).
                continue;
            }
            if entitled || !question.what.has_answer() || self.is_part_of_check(id, &question.what)
            {
                self.files.question(id, question, &mut out);
            } else {
                let refusal = refusal(question.id, Errno::ACCESS);
                out.push((id, Told::Answer(refusal)));
            }
            bytes += out.iter().map(|(_, told)| carried(told)).sum::<usize>();
            self.deliver(&mut out, read, touched);
        }
    }

    /// Whether there is something to give without waiting for anything.
    pub(super) fn has_gifts(&self) -> bool {
        let mut links = self.links.iter();
        links.any(|(&id, link)| self.can_give(id, link))
    }

    /// Gives a little to each link that asks for nothing just now.
    pub(super) fn give(&mut self) {
        let mut ready = Vec::new();
        for (&id, link) in &self.links {
            if self.can_give(id, link) {
                ready.push(id);
            }
        }
        let mut out = Vec::new();
        for id in ready {
            if self.is_entitled(id) {
                self.files.give(id, &mut out);
            } else {
                self.files.stop_giving(id);
            }
        }
        if !out.is_empty() {
            self.tell(out);
        }
    }

    /// Tells what has changed by other hands.
    pub(super) fn tell_changes(&mut self) {
        let mut out = Vec::new();
        self.files.changes(&mut out);
        self.tell(out);
    }

    /// Removes what a task has made.
    pub(super) fn undo(&mut self, task: TaskId) {
        if self.tasks.contains_key(&task) {
            let mut out = Vec::new();
            self.files.undo(task, &mut out);
            self.tell(out);
        }
    }

    /// Lets the files do what is due.
    pub(super) fn tick_files(&mut self) {
        let now = Instant::now();
        if self.files.deadline().is_some_and(|at| at <= now) {
            let mut out = Vec::new();
            self.files.tick(now, &mut out);
            self.tell(out);
        }
    }

    fn tell(&mut self, mut out: Vec<(LinkId, Told)>) {
        let mut touched = BTreeSet::new();
        self.deliver(&mut out, None, &mut touched);
        self.settle_all(&touched);
    }

    /// Queues it. A link that is gone needs none of it. Changes are told to links without a task
    /// too: they say nothing of files that such a link has not been told of, and keep right what
    /// its node has in store for the next task. `read` is the question for a part of a file whose
    /// answer may be among it, and that part.
    fn deliver(
        &mut self,
        out: &mut Vec<(LinkId, Told)>,
        read: Option<((LinkId, u64), (u64, u32))>,
        touched: &mut BTreeSet<LinkId>,
    ) {
        for (id, told) in out.drain(..) {
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            touched.insert(id);
            match told {
                Told::Answer(answer) => {
                    let read = read.filter(|(question, _)| *question == (id, answer.id));
                    let read = read.map(|(_, part)| part);
                    let message = link.kept.message(Short::Answer(answer), read);
                    link.carrier.say(&message);
                }
                Told::Gifts(gifts) => {
                    let message = link.kept.message(Short::Given(gifts), None);
                    link.carrier.say(&message);
                }
                Told::Changes(changes) if changes.len() <= MAX_CHANGES => {
                    link.carrier.say(&Relay::Changed(changes));
                }
                Told::Changes(changes) => {
                    for part in changes.chunks(MAX_CHANGES) {
                        link.carrier.say(&Relay::Changed(part.to_vec()));
                    }
                }
            }
        }
    }

    fn settle_all(&mut self, touched: &BTreeSet<LinkId>) {
        for &id in touched {
            self.settle(id);
        }
    }

    fn can_answer(&self, id: LinkId, link: &Link) -> bool {
        !link.questions.waiting.is_empty() && link.may_be_answered(self.is_entitled(id))
    }

    /// Questions go first. Whether a link may be given anything, the head may have yet to say.
    fn can_give(&self, id: LinkId, link: &Link) -> bool {
        link.questions.waiting.is_empty()
            && !link.carrier.is_congested()
            && self.files.has_gifts(id)
            && (!link.is_undecided() || self.is_entitled(id))
    }

    /// A node sees a user's files only while it runs something of that user's (S3).
    fn is_entitled(&self, id: LinkId) -> bool {
        self.tasks.values().any(|task| task.link == Some(id))
    }
}

impl Deputy {
    /// While the user has a node's view checked, it may look at files without running anything.
    fn is_part_of_check(&self, id: LinkId, what: &Ask) -> bool {
        let looks = matches!(what, Ask::Attributes { .. } | Ask::Lookup { .. });
        let node = self.links.get(&id).and_then(|link| link.node);
        let until = node.and_then(|node| self.checks.get(&node));
        looks && until.is_some_and(|until| Instant::now() < *until)
    }
}

impl Link {
    /// Whether its first question need not wait: for room, or for the head to say whether the
    /// link may ask. Nothing is asked by giving back.
    fn may_be_answered(&self, entitled: bool) -> bool {
        let Some(next) = self.questions.waiting.front() else {
            return false;
        };
        !self.carrier.is_congested()
            && (entitled || !next.what.has_answer() || !self.is_undecided())
    }
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::view::Filter;

    use super::*;

    #[test]
    fn s1_a_filter_counts_with_all_its_bytes() {
        let mut questions = Questions::default();
        let filter = Filter::with_room(usize::MAX);
        for id in 0..16 {
            assert!(!questions.are_many());
            questions.take(Question {
                id,
                uid: 0,
                gid: 0,
                what: Ask::Keeps(filter.clone()),
            });
        }
        assert!(questions.are_many());
        while questions.pop().is_some() {}
        assert!(!questions.are_many());
    }
}
