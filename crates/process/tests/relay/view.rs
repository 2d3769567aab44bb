//! Questions of the view on the links of the relay.

use rustix::io::Errno;
use wiglaf_process::deputy::{AnswersView, Exports};
use wiglaf_process::relay::node::RelayEvent;
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::launch::StdioKind;
use wiglaf_wire::stream::{ViewAnswer, ViewAsk, ViewQuestion, ViewReply};

use crate::relay_rig::{DEPUTY, Rig, collect, pipe, task};

#[test]
fn s3_questions_are_answered_only_while_a_task_is_there() {
    let mut rig = Rig::serving(|| Box::new(Echoes));
    assert!(
        !rig.relay.ask(&rig.poll, DEPUTY, attributes(1)),
        "nobody to ask"
    );
    rig.relay.set_serves_view();
    let nothing = [StdioKind::Null; 3];
    rig.attach(task(0), nothing, vec![]);
    let child = rig.start(task(0), nothing, &["true"]);
    // Before the link stands: it waits for the deputy's first word.
    assert!(rig.relay.ask(&rig.poll, DEPUTY, attributes(1)));
    assert_eq!(answer(&mut rig, 1), Ok(ViewReply::Link(b"1".to_vec())));
    assert!(rig.finish(task(0), child).success());

    rig.head
        .send(&ToDeputy::Detach { task: task(0) }, vec![])
        .unwrap();
    // Nothing tells when the deputy has heard it.
    let mut id = 2;
    let refused = Err(Errno::ACCESS.raw_os_error());
    loop {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, attributes(id)));
        if answer(&mut rig, id) == refused {
            break;
        }
        id += 1;
    }
    rig.relay.close(&rig.poll, task(0));
}

#[test]
fn many_questions_are_answered_in_their_order_and_streams_go_on() {
    const QUESTIONS: u64 = 10_000;
    let mut rig = Rig::serving(|| Box::new(Echoes));
    rig.relay.set_serves_view();
    let (from, output) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![output]);
    let child = rig.start(task(0), kinds, &["sh", "-c", "head -c 3000000 /dev/zero"]);
    let received = collect(from);
    for id in 0..QUESTIONS {
        assert!(rig.relay.ask(&rig.poll, DEPUTY, attributes(id)));
    }
    assert!(rig.finish(task(0), child).success());
    rig.until("all answers", |rig| answers(rig).len() as u64 == QUESTIONS);
    let ids: Vec<_> = answers(&rig).iter().map(|answer| answer.id).collect();
    assert!(ids.is_sorted(), "out of order");
    rig.detach(task(0));
    assert_eq!(received.join().unwrap().len(), 3_000_000);
}

#[test]
fn a_broken_link_is_told_and_its_questions_are_not_asked_again() {
    let mut rig = Rig::serving(|| Box::new(Echoes));
    rig.relay.set_serves_view();
    let nothing = [StdioKind::Null; 3];
    rig.attach(task(0), nothing, vec![]);
    let child = rig.start(task(0), nothing, &["true"]);
    assert!(rig.relay.ask(&rig.poll, DEPUTY, attributes(1)));
    answer(&mut rig, 1).unwrap();
    let link = rig.accepted.take().unwrap();
    rustix::net::shutdown(&link, rustix::net::Shutdown::Both).unwrap();
    let mut lost = Vec::new();
    rig.until("the loss", |rig| {
        lost = rig.relay.take_unlinked();
        !lost.is_empty()
    });
    assert_eq!(lost, [DEPUTY]);
    // The next one is another export, which is told apart by its numbers.
    assert!(rig.relay.ask(&rig.poll, DEPUTY, attributes(2)));
    answer(&mut rig, 2).unwrap();
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
}

/// Answers each question by its number.
#[derive(Clone, Copy, Debug)]
struct Echoes;

impl Exports for Echoes {
    fn open(&self) -> Result<Box<dyn AnswersView>, Errno> {
        Ok(Box::new(Echoes))
    }
}

impl AnswersView for Echoes {
    fn answer(&mut self, question: ViewQuestion) -> ViewAnswer {
        let text = question.id.to_string().into_bytes();
        ViewAnswer {
            id: question.id,
            result: Ok(ViewReply::Link(text)),
        }
    }
}

fn attributes(id: u64) -> ViewQuestion {
    ViewQuestion {
        id,
        what: ViewAsk::Attributes { node: 1 },
    }
}

fn answers(rig: &Rig) -> Vec<ViewAnswer> {
    let answer = |event: &RelayEvent| match event {
        RelayEvent::Answered(DEPUTY, answer) => Some(answer.clone()),
        _ => None,
    };
    rig.events.iter().filter_map(answer).collect()
}

fn answer(rig: &mut Rig, id: u64) -> Result<ViewReply, i32> {
    let mut found = None;
    rig.until("an answer", |rig| {
        found = answers(rig).into_iter().find(|answer| answer.id == id);
        found.is_some()
    });
    found.unwrap().result
}
