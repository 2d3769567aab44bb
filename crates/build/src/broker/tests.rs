//! Events by hand first; random ones against a model in `random`.

mod random;

use wiglaf_wire::status::{Status, Usage};

use super::*;
use crate::call::StdinKind;

pub(super) fn node(name: &str, slots: u32) -> Node {
    Node {
        name: name.to_owned(),
        slots,
        is_virtual: true,
    }
}

pub(super) fn shell(line: &str) -> Call {
    Call {
        program: "/usr/bin/dash".into(),
        argv: [b"/bin/sh".as_slice(), b"-c", line.as_bytes()]
            .map(<[u8]>::to_vec)
            .to_vec(),
        cwd: "/src".into(),
        started_by: "make".into(),
        ..Call::default()
    }
}

pub(super) fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

pub(super) fn used(cpu_us: u64) -> Option<Usage> {
    Some(Usage {
        user_us: cpu_us,
        system_us: 0,
        max_rss_kib: 1000,
    })
}

/// A build of two nodes with a slot each.
struct Build {
    broker: Broker,
    now: u64,
}

impl Build {
    fn new(learned: Learned, head_slots: u32, cores: u32) -> Build {
        let settings = Settings {
            head_slots: Some(head_slots),
            ..Settings::new("/src".into(), cores)
        };
        let mut build = Build {
            broker: Broker::new(settings, learned),
            now: 0,
        };
        build.event(Event::Nodes(vec![node("n1", 1), node("n2", 1)]));
        build
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        self.now += 1;
        self.broker.handle(ms(self.now), event)
    }

    fn call(&mut self, number: u64, line: &str) -> Vec<Effect> {
        self.event(Event::Called {
            shim: ShimId(number),
            call: shell(line),
        })
    }

    fn placed(&mut self, attempt: u64, node: &str) -> Vec<Effect> {
        self.event(Event::Placed {
            attempt: AttemptId(attempt),
            node: node.to_owned(),
        })
    }

    fn ended(&mut self, attempt: u64, status: Status) -> Vec<Effect> {
        self.event(Event::Ended {
            attempt: AttemptId(attempt),
            status,
            usage: used(100_000),
        })
    }

    fn refused(&mut self, attempt: u64) -> Vec<Effect> {
        self.event(Event::Refused {
            attempt: AttemptId(attempt),
            message: "the head is gone".into(),
        })
    }
}

fn here(shim: u64) -> Effect {
    Effect::RunHere { shim: ShimId(shim) }
}

fn hold(shim: u64) -> Effect {
    Effect::Hold { shim: ShimId(shim) }
}

fn launch(attempt: u64, shim: u64) -> Effect {
    Effect::Launch {
        attempt: AttemptId(attempt),
        shim: ShimId(shim),
        exclude: Vec::new(),
        prefer: Vec::new(),
        memory_kib: None,
        private_tmp: true,
    }
}

fn answer(shim: u64, status: Status) -> Effect {
    Effect::Answer {
        shim: ShimId(shim),
        status,
    }
}

/// What builds before have taught: these lines took so many milliseconds of processor time.
pub(super) fn taught(lines: &[(&str, u64)]) -> Learned {
    let mut broker = Broker::new(Settings::new("/src".into(), 1), Learned::default());
    broker.handle(ms(0), Event::Nodes(vec![node("n1", 1)]));
    let mut now = 0;
    for (number, (line, took)) in lines.iter().enumerate() {
        let (shim, attempt) = (ShimId(number as u64), AttemptId(number as u64));
        let call = shell(line);
        broker.handle(ms(now), Event::Called { shim, call });
        let node = "n1".to_owned();
        broker.handle(ms(now), Event::Placed { attempt, node });
        now += took;
        let status = Status::Exited(0);
        let usage = used(took * 1000);
        broker.handle(
            ms(now),
            Event::Ended {
                attempt,
                status,
                usage,
            },
        );
    }
    broker.finish(ms(now)).0
}

#[test]
fn a_line_goes_to_a_node_and_ends_as_it_ended_there() {
    let mut build = Build::new(Learned::default(), 0, 2);
    assert_eq!(build.call(1, "make -C sub"), [here(1)]);
    assert_eq!(build.call(2, "gcc -c x.c"), [hold(2), launch(0, 2)]);
    assert_eq!(build.placed(0, "n1"), []);
    assert_eq!(build.broker.progress().running, [("n1".to_owned(), 1)]);
    assert_eq!(
        build.ended(0, Status::Exited(1)),
        [answer(2, Status::Exited(1))]
    );
    assert_eq!(build.broker.progress().done, 1);
    assert_eq!(build.event(Event::LocalEnded { shim: ShimId(1) }), []);
    let record = build.broker.finish(ms(100)).1;
    assert_eq!(record.fallen_back(), None);
    assert_eq!(record.rows()[0].status, "exit 1");
}

#[test]
fn one_at_a_time_is_asked_for_and_the_longest_is_next() {
    let lines = [
        ("gcc -c a.c", 100),
        ("gcc -c b.c", 300),
        ("gcc -c c.c", 200),
    ];
    let mut build = Build::new(taught(&lines), 0, 2);
    let launched = |effects: &[Effect]| -> Vec<u64> {
        let one = |effect: &Effect| match effect {
            Effect::Launch { shim, .. } => Some(shim.0),
            _ => None,
        };
        effects.iter().filter_map(one).collect()
    };
    assert_eq!(launched(&build.call(1, "gcc -c a.c")), [1]);
    for (number, line) in [
        (2, "gcc -c a.c"),
        (3, "gcc -c b.c"),
        (4, "gcc -c c.c"),
        (5, "ld -o new a.o"),
    ] {
        assert_eq!(build.call(number, line), [hold(number)]);
    }
    build.event(Event::Waiting {
        attempt: AttemptId(0),
    });
    assert_eq!(build.broker.progress().queued, 4);
    // What is not known may be the longest of all.
    let order: Vec<u64> = (0..4)
        .flat_map(|attempt| launched(&build.placed(attempt, "n1")))
        .collect();
    assert_eq!(order, [5, 3, 4, 2]);
}

#[test]
fn a_lost_line_goes_to_another_node_and_then_here() {
    let mut build = Build::new(Learned::default(), 0, 2);
    build.call(1, "gcc -c x.c");
    build.placed(0, "n1");
    let again = build.ended(0, Status::cluster_failed("n1 died"));
    let [
        Effect::Launch {
            attempt, exclude, ..
        },
    ] = again.as_slice()
    else {
        panic!("{again:?}");
    };
    assert_eq!(
        (attempt.0, exclude.as_slice()),
        (1, ["n1".to_owned()].as_slice())
    );
    build.placed(1, "n2");
    assert_eq!(build.ended(1, Status::cluster_failed("n2 died")), [here(1)]);
    assert_eq!(build.broker.progress().fallen_back, 1);
    build.event(Event::LocalEnded { shim: ShimId(1) });
    let record = build.broker.finish(ms(50)).1;
    let sentence = record.fallen_back().expect("a sentence");
    assert_eq!(sentence, "1 line meant for nodes ran here (1: n2 died)");
    assert_eq!(record.rows()[0].failures, ["n1 died", "n2 died"]);
}

#[test]
fn a_link_goes_where_its_files_were_written() {
    let mut build = Build::new(Learned::default(), 0, 2);
    for (number, file, place) in [(0, "a", "n1"), (1, "b", "n2"), (2, "c", "n2")] {
        build.call(number, &format!("gcc -c {file}.c -o {file}.o"));
        build.placed(number, place);
    }
    build.ended(0, Status::Exited(0));
    build.ended(1, Status::Exited(0));
    build.ended(2, Status::Exited(1));
    let preferred = |effects: &[Effect]| match effects {
        [_, Effect::Launch { prefer, .. }] => prefer.clone(),
        other => panic!("{other:?}"),
    };
    let both = build.call(3, "gcc -o x a.o b.o c.o");
    assert_eq!(preferred(&both), ["n1", "n2"]);
    build.placed(3, "n2");
    assert_eq!(
        preferred(&build.call(4, "strings x b.o; gcc -o y b.o")),
        ["n2"]
    );
}

#[test]
fn hearing_of_the_same_nodes_again_forgives_nothing() {
    let mut build = Build::new(Learned::default(), 0, 8);
    for number in 0..3 {
        build.call(number, "gcc -c x.c");
        build.refused(number);
    }
    build.event(Event::Nodes(vec![node("n1", 1), node("n2", 1)]));
    assert_eq!(build.call(3, "gcc -c x.c"), [here(3)]);
    build.event(Event::Nodes(vec![node("n1", 1), node("n3", 1)]));
    assert_eq!(build.call(4, "gcc -c x.c"), [hold(4), launch(3, 4)]);
    assert!(build.broker.wants_nodes());
    build.placed(3, "n3");
    assert!(!build.broker.wants_nodes());
}

#[test]
fn with_no_other_node_a_lost_line_runs_here() {
    let mut build = Build::new(Learned::default(), 0, 2);
    build.event(Event::Nodes(vec![node("n1", 1)]));
    build.call(1, "gcc -c x.c");
    build.placed(0, "n1");
    assert_eq!(build.ended(0, Status::cluster_failed("n1 died")), [here(1)]);
}

#[test]
fn a_head_that_refuses_is_left_alone_for_a_while() {
    let mut build = Build::new(Learned::default(), 0, 8);
    for number in 0..3 {
        build.call(number, "gcc -c x.c");
        assert_eq!(build.refused(number), [here(number)]);
    }
    assert_eq!(build.call(3, "gcc -c x.c"), [here(3)]);
    assert_eq!(build.broker.progress().fallen_back, 4);
    build.now += 6_000;
    assert_eq!(build.call(4, "gcc -c x.c"), [hold(4), launch(3, 4)]);
}

#[test]
fn when_all_nodes_are_gone_lines_wait_for_their_return() {
    let mut build = Build::new(Learned::default(), 0, 1);
    build.event(Event::Nodes(Vec::new()));
    assert_eq!(build.call(1, "gcc -c x.c"), [hold(1)]);
    let due = build.broker.due().expect("a time");
    assert_eq!(build.call(2, "gcc -c y.c"), [hold(2)]);
    let back = build.broker.handle(due, Event::Tick);
    assert_eq!(back, [here(1)], "as many at once as there are processors");
    assert_eq!(build.broker.due(), None);
    build.now += 6_000;
    assert_eq!(
        build.event(Event::LocalEnded { shim: ShimId(1) }),
        [here(2)]
    );
}

#[test]
fn what_runs_here_in_a_lines_place_keeps_its_parts() {
    let mut build = Build::new(Learned::default(), 0, 1);
    build.event(Event::Nodes(Vec::new()));
    build.now += 6_000;
    build.call(1, "gcc -c x.c");
    let mut part = shell("gcc -c x.c");
    part.program = "/usr/bin/gcc".into();
    part.argv = ["gcc", "-c", "x.c"]
        .map(|word| word.as_bytes().to_vec())
        .to_vec();
    part.inside = Some(ShimId(1));
    assert_eq!(
        build.event(Event::Called {
            shim: ShimId(2),
            call: part
        }),
        [here(2)]
    );
    assert_eq!(build.broker.progress().fallen_back, 1);
    build.event(Event::LocalEnded { shim: ShimId(2) });
    build.event(Event::LocalEnded { shim: ShimId(1) });
    assert_eq!(build.broker.finish(ms(10_000)).1.rows().len(), 1);
}

#[test]
fn signals_reach_the_line_wherever_it_is() {
    let mut build = Build::new(Learned::default(), 0, 2);
    let signal = |shim: u64, by_terminal: bool| Event::ShimSignal {
        shim: ShimId(shim),
        signal: 15,
        by_terminal,
    };
    build.call(1, "gcc -c x.c");
    build.placed(0, "n1");
    let to_node = Effect::Signal {
        attempt: AttemptId(0),
        signal: 15,
    };
    assert_eq!(build.event(signal(1, false)), [to_node]);
    assert_eq!(
        build.event(signal(1, true)),
        [],
        "the ghost has got it from the terminal"
    );
    // What was to end is not begun again.
    let end = build.ended(0, Status::cluster_failed("n1 died"));
    assert_eq!(end, [answer(1, Status::Signaled(15))]);
    // One that is not placed, and one in the queue.
    build.call(2, "gcc -c y.c");
    build.call(3, "gcc -c z.c");
    assert_eq!(
        build.event(signal(3, false)),
        [answer(3, Status::Signaled(15))]
    );
    let cancel = Effect::Cancel {
        attempt: AttemptId(1),
    };
    assert_eq!(
        build.event(signal(2, true)),
        [cancel, answer(2, Status::Signaled(15))]
    );
    assert_eq!(build.ended(1, Status::Signaled(9)), []);
}

#[test]
fn a_killed_shim_takes_its_line_along() {
    let mut build = Build::new(Learned::default(), 0, 2);
    build.call(1, "gcc -c x.c");
    build.placed(0, "n1");
    let gone = build.event(Event::ShimGone { shim: ShimId(1) });
    assert_eq!(
        gone,
        [Effect::Cancel {
            attempt: AttemptId(0)
        }]
    );
    assert_eq!(build.ended(0, Status::cluster_failed("killed")), []);
    assert!(build.broker.attempts.is_empty() && build.broker.lines.is_empty());
}

#[test]
fn short_lines_run_here_while_there_is_room() {
    let mut build = Build::new(taught(&[("gcc -c a.c", 10)]), 0, 2);
    assert_eq!(build.call(1, "gcc -c a.c"), [here(1)]);
    assert_eq!(build.call(2, "gcc -c a.c"), [here(2)]);
    let third = build.call(3, "gcc -c a.c");
    assert!(third.contains(&hold(3)) && third.len() == 2, "{third:?}");
    assert_eq!(build.broker.progress().fallen_back, 0);
    assert_eq!(build.broker.progress().here, 2);
}

#[test]
fn the_heads_slots_take_lines_and_shrink_when_it_is_busy() {
    let mut build = Build::new(Learned::default(), 2, 4);
    assert_eq!(
        build.call(1, "gcc -c a.c"),
        [here(1)],
        "it would end here sooner"
    );
    build.event(Event::HeadLoad {
        busy_millicores: 700,
    });
    assert_eq!(build.call(2, "gcc -c b.c"), [hold(2), launch(0, 2)]);
    build.event(Event::HeadLoad { busy_millicores: 0 });
    assert_eq!(build.call(3, "gcc -c c.c"), [here(3)]);
    assert_eq!(build.call(4, "gcc -c d.c"), [hold(4)]);
    assert_eq!(
        build.event(Event::LocalEnded { shim: ShimId(1) }),
        [here(4)]
    );
    assert_eq!(build.broker.progress().fallen_back, 0);
}

#[test]
fn memory_that_was_needed_is_asked_for() {
    let mut build = Build::new(taught(&[("gcc -c a.c", 500)]), 0, 2);
    let effects = build.call(1, "gcc -c a.c");
    assert!(
        matches!(
            effects[1],
            Effect::Launch {
                memory_kib: Some(1000),
                ..
            }
        ),
        "{effects:?}"
    );
}

#[test]
fn unknown_programs_run_here_once() {
    let learned = {
        let mut build = Build::new(Learned::default(), 0, 2);
        assert_eq!(build.call(1, "./generate big"), [here(1)]);
        build.now += 5_000;
        build.event(Event::LocalEnded { shim: ShimId(1) });
        build.call(2, "./hasten");
        build.event(Event::LocalEnded { shim: ShimId(2) });
        // A script that starts what belongs on nodes stays here.
        build.call(3, "./build-all");
        let mut inner = shell("gcc -c x.c");
        inner.inside = Some(ShimId(3));
        let effects = build.event(Event::Called {
            shim: ShimId(4),
            call: inner,
        });
        assert_eq!(effects, [hold(4), launch(0, 4)]);
        build.now += 5_000;
        build.event(Event::LocalEnded { shim: ShimId(3) });
        build.broker.finish(ms(60_000)).0
    };
    let mut build = Build::new(learned, 0, 2);
    assert_eq!(build.call(1, "./generate big"), [hold(1), launch(0, 1)]);
    assert_eq!(build.call(2, "./hasten"), [here(2)]);
    assert_eq!(build.call(3, "./build-all"), [here(3)]);
    // A terminal might be asked something.
    let mut call = shell("./generate big");
    call.stdin = StdinKind::Terminal;
    assert_eq!(
        build.event(Event::Called {
            shim: ShimId(5),
            call
        }),
        [here(5)]
    );
}
