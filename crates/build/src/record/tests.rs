use super::*;

/// A line that was called, began and ended at these milliseconds.
fn row(number: u64, target: &str, times: [u64; 3]) -> Row {
    Row {
        number,
        directory: ".".into(),
        program: "gcc".into(),
        target: Some(target.to_owned()),
        place: Some(Place::Node(format!("n{}", number % 2 + 1))),
        reason: "compile".into(),
        expected_us: Some(420_000),
        called_us: times[0] * 1000,
        started_us: Some(times[1] * 1000),
        ended_us: Some(times[2] * 1000),
        cpu_us: Some(100_000),
        rss_kib: None,
        attempts: 1,
        failures: Vec::new(),
        fell_back: None,
        shares_tmp: None,
        in_head_slot: false,
        status: String::new(),
        counts: true,
    }
}

fn record(rows: Vec<Row>, jobs: Option<u32>) -> Record {
    let mut record = Record::new(jobs);
    rows.into_iter().for_each(|row| record.add(row));
    record.finish(Duration::from_secs(600));
    record
}

fn sample() -> Record {
    let mut make = row(0, "", [0, 0, 600_000]);
    make.target = None;
    make.program = "make".into();
    make.place = Some(Place::Here);
    make.reason = "recursive".into();
    make.counts = false;
    make.attempts = 0;
    make.cpu_us = None;
    let mut lost = row(3, "mm/slab.o", [100, 5_000, 6_000]);
    lost.place = Some(Place::Here);
    lost.attempts = 2;
    lost.failures = vec!["n1 died".into(), "n2 died".into()];
    lost.fell_back = Some("n2 died".into());
    let mut record = record(
        vec![
            row(1, "net/core/dev.o", [0, 10, 465_010]),
            row(2, "fs/ext4/super.o", [10, 20, 354_020]),
            lost,
            row(4, "vmlinux", [465_020, 465_030, 500_030]),
            make,
        ],
        None,
    );
    record.fell_back("n2 died");
    record
}

#[test]
fn the_report_is_the_old_table() {
    let text = sample().report();
    let begin = "   time  share  lines  directory
   7:45  54.3%      1  net
   5:54  41.4%      1  fs
35.00 s   4.0%      1  .
 1.00 s   0.1%      1  mm
";
    assert!(text.starts_with(begin), "{text}");
    let end = "\
all lines  14:15 together, each as long as it took beside the others
wall clock 10:00, 1.4 lines at once
lines      5: 3 on nodes (0.30 s CPU), 2 here, 1 of them fallen back; 1 tried again
bound      8:20: 2 lines that waited for one another; more slots make it at most 1.2 times faster
      7:45  gcc net/core/dev.o
   35.00 s  gcc vmlinux
";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn the_plan_says_where_and_why() {
    let text = sample().plan();
    let wanted = "\
where      ran  waited     cpu  tries  what                 why
here     10:00  0.00 s       -      0  make in .            recursive
n2        7:45  0.01 s  0.10 s      1  gcc net/core/dev.o   compile, 0.42 s expected
n1        5:54  0.01 s  0.10 s      1  gcc fs/ext4/super.o  compile, 0.42 s expected
here    1.00 s  4.90 s  0.10 s      2  gcc mm/slab.o        compile, but n2 died
n1     35.00 s  0.01 s  0.10 s      1  gcc vmlinux          compile, 0.42 s expected
";
    assert_eq!(text, wanted);
}

#[test]
fn long_plans_are_gathered() {
    let mut rows: Vec<Row> = (1..1000)
        .map(|number| row(number, "x.o", [0, 0, 1000]))
        .collect();
    rows[7].fell_back = Some("n1 died".into());
    rows[7].place = Some(Place::Here);
    let text = record(rows, None).plan();
    assert!(text.contains("n2       500    8:20  compile\n"), "{text}");
    assert!(
        text.ends_with("here: 1.00 s gcc x.o (compile, but n1 died)\n"),
        "{text}"
    );
    assert!(text.lines().count() < 8, "{text}");
}

#[test]
fn rows_are_told_as_they_end() {
    let mut record = Record::new(None);
    record.add(row(1, "x.o", [0, 0, 420]));
    assert_eq!(
        record.take_ended(),
        ["n2: 0.42 s gcc x.o (compile, 0.42 s expected)"]
    );
    assert!(record.take_ended().is_empty());
}

#[test]
fn the_chain_is_walked_back_through_lines_that_waited_for_one_another() {
    // 1 and 2 run beside each other; 3 follows 2, 4 follows 3 after a queue; 5 is short.
    let rows = vec![
        row(1, "a", [0, 0, 2500]),
        row(2, "b", [0, 0, 2000]),
        row(3, "c", [2020, 2020, 3000]),
        row(5, "e", [2020, 2020, 2100]),
        row(6, "f", [2020, 2020, 2100]),
        row(4, "d", [3049, 3500, 5000]),
    ];
    let found = record(rows.clone(), None).figures().chain;
    let numbers: Vec<u64> = found.steps.iter().map(|step| step.number).collect();
    assert_eq!(numbers, [2, 3, 4]);
    assert_eq!(
        (found.length_us, found.from_us, found.is_cut),
        (4_480_000, 0, false)
    );
    // With two slots line 3 may have waited for one of them.
    let found = record(rows.clone(), Some(2)).figures().chain;
    let numbers: Vec<u64> = found.steps.iter().map(|step| step.number).collect();
    assert_eq!(
        (numbers.as_slice(), found.is_cut),
        ([3, 4].as_slice(), true)
    );
    // Too long after: nobody was waited for.
    let mut late = rows;
    late[5].called_us = 3_051_000;
    assert_eq!(record(late, None).figures().chain.steps.len(), 1);
}

#[test]
fn lines_without_a_duration_end_the_walk_as_well() {
    let rows = (0..100).map(|number| row(number, "x", [5, 5, 5])).collect();
    let found = record(rows, None).figures().chain;
    assert!(found.step_count <= 100);
    assert_eq!(record(Vec::new(), None).figures().chain, Chain::default());
}

#[test]
fn targets_are_told_from_the_tree() {
    let mut one = row(1, "../lib/./x.o", [0, 0, 1000]);
    one.directory = "src".into();
    let figures = record(vec![one, row(2, "/usr/x", [0, 0, 500])], None).figures();
    let names: Vec<_> = figures
        .targets
        .iter()
        .map(|share| share.name.as_str())
        .collect();
    assert_eq!(names, ["lib/x.o", "/usr/x"]);
    let names: Vec<_> = figures
        .directories
        .iter()
        .map(|share| share.name.as_str())
        .collect();
    assert_eq!(names, ["lib", "/usr"]);
}

#[test]
fn what_fell_back_is_one_sentence() {
    let mut record = Record::new(None);
    assert_eq!(record.fallen_back(), None);
    (0..20).for_each(|number| record.fell_back(&format!("reason {}", number % 12)));
    let sentence = record.fallen_back().expect("a sentence");
    assert!(
        sentence.starts_with("20 lines meant for nodes ran here ("),
        "{sentence}"
    );
    assert!(sentence.contains(": other reasons"), "{sentence}");
}

#[test]
fn json_has_all_of_it() {
    let value = serde_json::to_value(sample()).expect("JSON");
    assert_eq!(value["lines"].as_array().map(Vec::len), Some(5));
    assert_eq!(value["lines"][0]["place"]["node"], "n2");
    assert_eq!(value["lines"][4]["place"], "here");
    assert_eq!(value["report"]["directories"][0]["name"], "net");
    assert_eq!(value["report"]["fallen_back"], 1);
    assert_eq!(value["omitted_lines"], 0);
}

#[test]
fn it_is_bounded() {
    let mut record = Record::new(None);
    (0..MAX_ROWS as u64 + 5).for_each(|number| record.add(row(number, "x.o", [0, 0, 1])));
    assert_eq!(record.rows().len(), MAX_ROWS);
    let figures = record.figures();
    assert_eq!(figures.lines, MAX_ROWS as u64 + 5);
    assert_eq!(figures.sum_us, (MAX_ROWS as u64 + 5) * 1000);
}

#[test]
fn a_terminal_is_told_nothing_by_a_name() {
    let call = crate::Call {
        program: "/bin/sh".into(),
        argv: vec![
            b"sh".to_vec(),
            b"-c".to_vec(),
            b"gcc -o 'a\x1b[2J' a.o".to_vec(),
        ],
        ..crate::Call::default()
    };
    let settings = crate::Settings::new("/src".into(), 1);
    let judgement = crate::policy::judge(&call, &settings, &crate::Learned::default());
    let row = Row::new(0, &judgement, Duration::ZERO);
    assert_eq!(row.target.as_deref(), Some("a?[2J"));
}
