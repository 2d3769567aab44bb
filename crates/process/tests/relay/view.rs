//! The view on the links of the relay: questions, answers, and what is told unasked.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use wiglaf_process::deputy::{Files, LinkId, Told};
use wiglaf_process::relay::node::RelayEvent;
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::launch::StdioKind;
use wiglaf_wire::view::{Answer, Ask, Change, FileId, HandleId, MAX_CHANGES, Question, Reply};

use crate::relay_rig::{DEPUTY, NODE, Rig, collect, pipe, task};

const NOTHING: [StdioKind; 3] = [StdioKind::Null; 3];
const REFUSED: Result<Reply, i32> = Err(Errno::ACCESS.raw_os_error());

/// A rig that serves a view to one task, which ends soon.
fn rig_with_task() -> (Rig, Child) {
    let mut rig = Rig::serving(|| Box::new(Echoes::default()));
    rig.relay.set_serves_view();
    rig.attach(task(0), NOTHING, vec![]);
    let child = rig.start(task(0), NOTHING, &["true"]);
    (rig, child)
}

#[test]
fn s3_questions_are_answered_only_while_a_task_is_there() {
    let given_back = Arc::new(AtomicUsize::new(0));
    let counted = given_back.clone();
    let mut rig = Rig::serving(move || {
        Box::new(Echoes {
            given_back: counted,
            ..Echoes::default()
        })
    });
    assert!(!rig.relay.ask(&rig.poll, DEPUTY, read(1)), "nobody to ask");
    rig.relay.set_serves_view();
    rig.attach(task(0), NOTHING, vec![]);
    let child = rig.start(task(0), NOTHING, &["true"]);
    // Before the link stands: it waits for the deputy's first word.
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(1)));
    assert_eq!(answer(&mut rig, 1), Ok(Reply::Count(1)));
    assert!(rig.finish(task(0), child).success());

    rig.head
        .send(&ToDeputy::Detach { task: task(0) }, vec![])
        .unwrap();
    // Nothing tells when the deputy has heard it.
    let mut id = 2;
    loop {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, read(id)));
        if answer(&mut rig, id) == REFUSED {
            break;
        }
        id += 1;
    }
    // What was told is given back all the same.
    let forget = Ask::Forget {
        file: FileId::ROOT,
        count: 1,
    };
    let close = Ask::Close {
        handle: HandleId(1),
    };
    for what in [forget, close, Ask::Barrier] {
        id += 1;
        assert!(rig.relay.ask(&rig.poll, DEPUTY, question(id, what)));
    }
    assert_eq!(answer(&mut rig, id), REFUSED);
    assert_eq!(given_back.load(Ordering::Relaxed), 2);
    rig.relay.close(&rig.poll, task(0));
}

#[test]
fn s3_a_check_may_look_for_a_while_and_not_read() {
    const A_WHILE_MS: u64 = 300;
    let (mut rig, child) = rig_with_task();
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(0)));
    answer(&mut rig, 0).unwrap();
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    let file = FileId::ROOT;
    let mut id = 0;
    let mut look = |rig: &mut Rig| {
        id += 1;
        let what = Ask::Attributes { file };
        assert!(rig.relay.ask(&rig.poll, DEPUTY, question(id, what)));
        answer(rig, id)
    };
    // Nothing tells when the deputy has heard what the head says.
    while look(&mut rig) != REFUSED {}
    let allow = |node, for_ms| ToDeputy::AllowCheck { node, for_ms };
    let other = NodeId(NODE.0 + 1);
    for message in [allow(other, u64::MAX), allow(NODE, A_WHILE_MS)] {
        rig.head.send(&message, vec![]).unwrap();
    }
    while look(&mut rig) == REFUSED {}
    let more = [Ask::ReadLink { file }, Ask::Barrier];
    for (id, what) in (1 << 20..).zip(more) {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, question(id, what)));
        assert_eq!(answer(&mut rig, id), REFUSED);
    }
    while look(&mut rig) != REFUSED {}
}

#[test]
fn a_fenced_node_has_no_link() {
    let (mut rig, child) = rig_with_task();
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(1)));
    answer(&mut rig, 1).unwrap();
    assert_eq!(rig.relay.take_unlinked(), []);
    // The head keeps no copy of it.
    rig.accepted = None;
    let fenced = |node| ToDeputy::Fenced { node };
    let other = NodeId(NODE.0 + 1);
    rig.head.send(&fenced(other), vec![]).unwrap();
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(2)));
    answer(&mut rig, 2).unwrap();
    rig.head.send(&fenced(NODE), vec![]).unwrap();
    let mut unlinked = Vec::new();
    rig.until("the end of the link", |rig| {
        unlinked.extend(rig.relay.take_unlinked());
        !unlinked.is_empty()
    });
    assert_eq!(unlinked, [DEPUTY]);
    assert!(rig.finish(task(0), child).success());
}

#[test]
fn a_question_waits_for_the_head_to_name_the_task() {
    let (mut rig, first) = rig_with_task();
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(1)));
    answer(&mut rig, 1).unwrap();
    assert!(rig.finish(task(0), first).success());
    rig.detach(task(0));
    // The agent is ahead of the head: more than the deputy holds for it.
    let child = rig.start(task(1), NOTHING, &["true"]);
    for id in 2..=33 {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, write(id, 1 << 20)));
    }
    assert!(rig.relay.ask(&rig.poll, DEPUTY, question(34, Ask::Barrier)));
    let until = Instant::now() + Duration::from_millis(200);
    rig.until("a while", |_| Instant::now() > until);
    // Some were answered or refused with the old task; the last ones wait.
    assert_eq!(answers(&rig).iter().find(|answer| answer.id == 34), None);
    rig.attach(task(1), NOTHING, vec![]);
    assert_eq!(answer(&mut rig, 34), Ok(Reply::Count(34)));
    let ids: Vec<_> = answers(&rig).iter().map(|answer| answer.id).collect();
    assert!(ids.is_sorted() && ids.len() == 34, "{ids:?}");
    assert!(rig.finish(task(1), child).success());
    rig.detach(task(1));
}

#[test]
fn many_questions_are_answered_in_their_order_and_streams_go_on() {
    const QUESTIONS: u64 = 10_000;
    let mut rig = Rig::serving(|| Box::new(Echoes::default()));
    rig.relay.set_serves_view();
    let (from, output) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![output]);
    let child = rig.start(task(0), kinds, &["sh", "-c", "head -c 3000000 /dev/zero"]);
    let received = collect(from);
    for id in 0..QUESTIONS {
        // What has no answer is not waited for.
        let forget = Ask::Forget {
            file: FileId(id),
            count: 1,
        };
        assert!(rig.relay.ask(&rig.poll, DEPUTY, question(id, forget)));
        assert!(rig.relay.ask(&rig.poll, DEPUTY, read(id)));
    }
    assert!(rig.finish(task(0), child).success());
    rig.until("all answers", |rig| answers(rig).len() as u64 == QUESTIONS);
    let ids: Vec<_> = answers(&rig).iter().map(|answer| answer.id).collect();
    assert!(ids.is_sorted(), "out of order");
    rig.detach(task(0));
    assert_eq!(received.join().unwrap().len(), 3_000_000);
}

#[test]
fn locks_that_wait_keep_no_question_back() {
    const LOCKS: u64 = 3000;
    let (mut rig, child) = rig_with_task();
    for id in 0..LOCKS {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, lock(id)));
    }
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(LOCKS)));
    answer(&mut rig, LOCKS).unwrap();
    assert_eq!(answers(&rig).len(), 1);
    let unlock = Ask::Unlock {
        file: FileId::ROOT,
        owner: 0,
    };
    assert!(
        rig.relay
            .ask(&rig.poll, DEPUTY, question(LOCKS + 1, unlock))
    );
    // They are granted later, by the deputy's clock.
    rig.until("the locks", |rig| answers(rig).len() as u64 == LOCKS + 1);
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
}

#[test]
fn a_broken_link_is_told_and_its_questions_are_not_asked_again() {
    let (mut rig, child) = rig_with_task();
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(1)));
    answer(&mut rig, 1).unwrap();
    let link = rig.accepted.take().unwrap();
    rustix::net::shutdown(&link, rustix::net::Shutdown::Both).unwrap();
    let mut lost = Vec::new();
    rig.until("the loss", |rig| {
        lost = rig.relay.take_unlinked();
        !lost.is_empty()
    });
    assert_eq!(lost, [DEPUTY]);
    // The next one is another link to the files: it begins anew.
    assert!(rig.relay.ask(&rig.poll, DEPUTY, question(2, Ask::Barrier)));
    assert_eq!(answer(&mut rig, 2), Ok(Reply::Count(2)));
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
}

#[test]
fn changes_are_told_to_links_without_tasks_too() {
    let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let ours = bell.try_clone().unwrap();
    let mut rig = Rig::serving(move || {
        Box::new(Echoes {
            bell: Some(bell),
            ..Echoes::default()
        })
    });
    rig.relay.set_serves_view();
    rig.attach(task(0), NOTHING, vec![]);
    let child = rig.start(task(0), NOTHING, &["true"]);
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(1)));
    answer(&mut rig, 1).unwrap();
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    // Nothing tells when the deputy has heard it.
    for id in 2.. {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, read(id)));
        if answer(&mut rig, id) == REFUSED {
            break;
        }
    }
    rustix::io::write(&ours, &1u64.to_ne_bytes()).unwrap();
    rig.until("the changes", |rig| {
        changes(rig).len() == MAX_CHANGES * 5 / 2
    });
    let parts = rig.events.iter().filter_map(|event| match event {
        RelayEvent::Changed(DEPUTY, part) => Some(part.len()),
        _ => None,
    });
    assert_eq!(parts.max(), Some(MAX_CHANGES));
    assert!(rig.relay.take_unlinked().is_empty());
}

#[test]
fn output_to_a_file_is_a_change() {
    let mut rig = Rig::serving(|| Box::new(Echoes::default()));
    rig.relay.set_serves_view();
    let file = tempfile::NamedTempFile::new().unwrap();
    let inode = file.as_file().metadata().unwrap().ino();
    let output = File::options().append(true).open(file.path()).unwrap();
    let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
    let (input, to) = pipe();
    rig.attach(task(0), kinds, vec![input, output.into()]);
    let child = rig.start(task(0), kinds, &["sh", "-c", "cat; echo to the file"]);
    assert!(rig.relay.ask(&rig.poll, DEPUTY, read(1)));
    answer(&mut rig, 1).unwrap();
    assert_eq!(changes(&rig), []);
    drop(to);
    assert!(rig.finish(task(0), child).success());
    let wanted = Change::File {
        file: FileId(inode),
        content: true,
    };
    rig.until("the change", |rig| changes(rig).contains(&wanted));
    assert_eq!(std::fs::read(file.path()).unwrap(), b"to the file\n");
    rig.detach(task(0));
}

/// Answers each question by its number, except locks: those when it is time.
#[derive(Debug, Default)]
struct Echoes {
    links: BTreeSet<LinkId>,
    given_back: Arc<AtomicUsize>,
    locks: Vec<(LinkId, u64)>,
    due: Option<Instant>,
    bell: Option<OwnedFd>,
    written: Vec<u64>,
}

impl Echoes {
    fn say(&mut self, link: LinkId, id: u64, out: &mut Vec<(LinkId, Told)>) {
        let result = Ok(Reply::Count(id));
        out.push((link, Told::Answer(Answer { id, result })));
    }
}

impl Files for Echoes {
    fn question(&mut self, link: LinkId, question: Question, out: &mut Vec<(LinkId, Told)>) {
        self.links.insert(link);
        match question.what {
            Ask::Forget { .. } | Ask::Close { .. } => {
                self.given_back.fetch_add(1, Ordering::Relaxed);
            }
            Ask::Lock { .. } => self.locks.push((link, question.id)),
            Ask::Unlock { .. } => self.due = Some(Instant::now() + Duration::from_millis(20)),
            _ => self.say(link, question.id, out),
        }
    }

    fn changes(&mut self, out: &mut Vec<(LinkId, Told)>) {
        let mut changes: Vec<_> = std::mem::take(&mut self.written)
            .into_iter()
            .map(|inode| Change::File {
                file: FileId(inode),
                content: true,
            })
            .collect();
        if let Some(bell) = &self.bell
            && rustix::io::read(bell, &mut [0; 8]).is_ok()
        {
            changes.extend(vec![Change::Everything; MAX_CHANGES * 5 / 2]);
        }
        for link in &self.links {
            out.push((*link, Told::Changes(changes.clone())));
        }
    }

    fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<(LinkId, Told)>) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            for (link, id) in std::mem::take(&mut self.locks) {
                self.say(link, id, out);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn close(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    fn wrote(&mut self, file: BorrowedFd<'_>) {
        self.written.push(rustix::fs::fstat(file).unwrap().st_ino);
    }
}

fn question(id: u64, what: Ask) -> Question {
    Question {
        id,
        uid: 0,
        gid: 0,
        what,
    }
}

fn read(id: u64) -> Question {
    let file = FileId::ROOT;
    question(id, Ask::Attributes { file })
}

fn write(id: u64, bytes: usize) -> Question {
    question(
        id,
        Ask::Write {
            handle: HandleId(1),
            offset: 0,
            data: vec![7; bytes],
            drop_privileges: false,
        },
    )
}

fn lock(id: u64) -> Question {
    use wiglaf_wire::view::{Lock, LockKind, LockStyle};
    let lock = Lock {
        kind: LockKind::Write,
        start: 0,
        end: u64::MAX,
        pid: 0,
    };
    question(
        id,
        Ask::Lock {
            file: FileId::ROOT,
            handle: HandleId(1),
            owner: id,
            style: LockStyle::Record,
            lock,
            wait: true,
        },
    )
}

fn answers(rig: &Rig) -> Vec<Answer> {
    let answer = |event: &RelayEvent| match event {
        RelayEvent::Answered(DEPUTY, answer) => Some(answer.clone()),
        _ => None,
    };
    rig.events.iter().filter_map(answer).collect()
}

fn changes(rig: &Rig) -> Vec<Change> {
    let part = |event: &RelayEvent| match event {
        RelayEvent::Changed(DEPUTY, part) => Some(part.clone()),
        _ => None,
    };
    rig.events.iter().filter_map(part).flatten().collect()
}

fn answer(rig: &mut Rig, id: u64) -> Result<Reply, i32> {
    let mut found = None;
    rig.until("an answer", |rig| {
        found = answers(rig).into_iter().find(|answer| answer.id == id);
        found.is_some()
    });
    found.unwrap().result
}
