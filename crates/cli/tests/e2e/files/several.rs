//! Nodes and head with the same files at the same time.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::files::ground::Place;
use crate::files::{At, Ground, on_both_grounds};

on_both_grounds! {
    appends_of_all_machines_are_whole(2),
    exclusive_creation_has_one_winner(3),
    a_directory_of_100_000_names(1),
    times_numbers_and_sizes_are_the_heads(1),
    v1_v2_stores_to_memory_are_seen(2),
    v5_shared_memory_between_machines_is_refused(2),
}

const RECORDS: usize = 300;
const RECORD_BYTES: usize = 64;
const RACES: u32 = 60;
const MANY: usize = 100_000;

fn appends_of_all_machines_are_whole(ground: &Ground) {
    let log = ground.path("log");
    fs::write(&log, "").unwrap();
    let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
    for place in &mut places {
        let who = format!("{:?}", place.at());
        place.send(&format!(
            "append_records('{log}', '{who}', {RECORDS}, {RECORD_BYTES})"
        ));
    }
    for place in &mut places {
        place.answer().unwrap();
    }
    let content = fs::read_to_string(&log).unwrap();
    assert_eq!(content.len(), places.len() * RECORDS * RECORD_BYTES);
    let mut seen = BTreeSet::new();
    for line in content.lines() {
        assert_eq!(line.len(), RECORD_BYTES - 1, "torn: {line}");
        assert!(seen.insert(line.to_owned()), "twice: {line}");
    }
    for place in &mut places {
        let who = format!("{:?}:", place.at());
        let mut own = content.lines().filter(|line| line.starts_with(&who));
        for number in 0..RECORDS {
            let line = own.next().unwrap_or_else(|| panic!("{who} lost {number}"));
            assert!(line.starts_with(&format!("{who}{number}:")), "{line}");
        }
    }
}

fn exclusive_creation_has_one_winner(ground: &Ground) {
    let top = ground.open_directory("races");
    let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
    fs::write(format!("{top}/source"), "").unwrap();
    for (kind, attempt) in [
        ("file", format!("lambda n: create_exclusively('{top}', n)")),
        (
            "directory",
            format!("lambda n: os.mkdir(f'{top}/directory{{n}}')"),
        ),
        (
            "link",
            format!("lambda n: os.link('{top}/source', f'{top}/link{{n}}')"),
        ),
    ] {
        let start = places[0].ask("time.time() + 0.05");
        for place in &mut places {
            place.send(&format!("races({attempt}, {RACES}, {start})"));
        }
        let mut winning_places = 0;
        let mut winners = vec![0; RACES as usize];
        for place in &mut places {
            let won = place.answer().unwrap();
            winning_places += usize::from(won != json!([]));
            for number in won.as_array().unwrap() {
                winners[usize::try_from(number.as_u64().unwrap()).unwrap()] += 1;
            }
        }
        assert!(
            winners.iter().all(|count| *count == 1),
            "{kind}: {winners:?}"
        );
        assert!(winning_places > 1, "{kind}: nobody raced");
    }
}

fn a_directory_of_100_000_names(ground: &Ground) {
    let top = ground.open_directory("many");
    let mut head = ground.place(At::Head);
    let mut node = ground.place(At::Node(1));
    head.ask(&format!(
        "[os.close(os.open(f'{top}/{{n:06}}', os.O_CREAT | os.O_WRONLY)) for n in range({MANY})] and None"
    ));
    let listed = format!("(lambda names: [len(names), len(set(names))])(os.listdir('{top}'))");
    assert_eq!(node.ask(&listed), json!([MANY, MANY]));
    assert_eq!(
        node.ask(&format!("os.path.exists('{top}/099999')")),
        json!(true)
    );
    node.ask(&format!("os.unlink('{top}/050000')"));
    assert_eq!(
        node.ask(&format!("os.path.exists('{top}/050000')")),
        json!(false)
    );
    assert_eq!(node.ask(&listed), json!([MANY - 1, MANY - 1]));
    assert_eq!(head.ask(&listed), json!([MANY - 1, MANY - 1]));
    // `ls -l` has attributes of them all, and `find` their types.
    let lines = ground.sh(
        At::Node(1),
        &format!("ls -l {top} | wc -l; find {top} -type f | wc -l"),
    );
    assert_eq!(lines, format!("{MANY}\n{}\n", MANY - 1));
    head.ask("import shutil");
    head.ask(&format!("shutil.rmtree('{top}')"));
    let gone = ground.run(At::Node(1), &["ls", &top]);
    assert_eq!(gone.status.code(), Some(2));
}

fn times_numbers_and_sizes_are_the_heads(ground: &Ground) {
    let top = ground.open_directory("times");
    for round in 0..5 {
        ground.sh(At::Head, &format!("touch {top}/before{round}"));
        ground.sh(
            At::Node(1),
            &format!("touch {top}/node{round}; mkdir {top}/dir{round}; echo x >{top}/file{round}"),
        );
        ground.sh(At::Head, &format!("touch {top}/after{round}"));
        let time = |name: &str| {
            let about = fs::metadata(format!("{top}/{name}{round}")).unwrap();
            about.modified().unwrap()
        };
        for name in ["node", "dir", "file"] {
            assert!(
                time("before") <= time(name) && time(name) <= time("after"),
                "{name}{round}"
            );
        }
    }
    // One line a file: all that stat tells, in nanoseconds; but for the device, which is the
    // mount's, and the access time, which reading may change.
    let about = format!(
        "cd {top}; ln -s x link; mkfifo fifo; truncate -s 5G hole; find . /etc/passwd /usr/bin/env \
         | sort | xargs stat -c '%n %i %f %h %u %g %s %b %y %z'; stat -f -c '%S %b %l' ."
    );
    let there = ground.sh(At::Node(1), &about);
    let here = ground.sh(
        At::Head,
        about
            .replace("ln -s x link; mkfifo fifo; truncate -s 5G hole; ", "")
            .as_str(),
    );
    assert_eq!(there, here);
}

fn v1_v2_stores_to_memory_are_seen(ground: &Ground) {
    let file = ground.path("mapped");
    let mut head = ground.place(At::Head);
    head.ask(&format!("put('{file}', 'a' * 20000)"));
    assert_eq!(ground.ok(At::Node(1), &["head", "-c", "3", &file]), "aaa");
    // The head's map lives on while nodes read: each launch sees what was stored before it.
    head.ask(&format!("opened('m', '{file}', os.O_RDWR)"));
    head.ask("kept.__setitem__('map', mmap.mmap(kept['m'], 0))");
    head.ask("closed('m')");
    for round in 0..8 {
        let text = format!("round{round}");
        let offset = round * 2000;
        head.ask(&format!(
            "kept['map'].__setitem__(slice({offset}, {offset} + 6), b'{text}')"
        ));
        let node = At::Node(1 + round % 2);
        let read = ground.ok(
            node,
            &[
                "sh",
                "-c",
                &format!("tail -c +{} {file} | head -c 6", offset + 1),
            ],
        );
        assert_eq!(read, text);
    }
    head.ask("kept.pop('map').close()");
    assert!(
        ground
            .ok(At::Node(1), &["head", "-c", "6", &file])
            .starts_with("round0")
    );
    // A node's store is on the head when its process has ended, however it ended.
    for (round, end) in ["sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), 9)"]
        .iter()
        .enumerate()
    {
        let script = format!(
            "import mmap, os, sys\nfd = os.open('{file}', os.O_RDWR)\nm = mmap.mmap(fd, 0)\n\
             m[12000:12006] = b'there{round}'\nos.pwrite(fd, b'written{round}', 16000)\n{end}"
        );
        ground.run(At::Node(2), &["python3", "-c", &script]);
        let content = fs::read_to_string(&file).unwrap();
        assert_eq!(&content[12000..12006], format!("there{round}"));
        assert_eq!(&content[16000..16008], format!("written{round}"));
        let other = ground.ok(
            At::Node(1),
            &["sh", "-c", &format!("tail -c +12001 {file} | head -c 6")],
        );
        assert_eq!(other, format!("there{round}"));
    }
}

fn v5_shared_memory_between_machines_is_refused(ground: &Ground) {
    let file = ground.path("shared");
    fs::write(&file, "a".repeat(8192)).unwrap();
    let mut writer = ground.place(At::Node(1));
    let mut other = ground.place(At::Node(2));
    writer.ask(&format!("opened('w', '{file}', os.O_RDWR)"));
    other.ask(&format!("opened('w', '{file}', os.O_RDWR)"));
    let shared = other.attempt("kept.__setitem__('map', mmap.mmap(kept['w'], 0))");
    if ground.cluster().is_none() {
        assert!(shared.is_ok());
        return;
    }
    assert_eq!(
        shared,
        Err(i64::from(rustix::io::Errno::NODEV.raw_os_error()))
    );
    // Reading and writing go on to work, and see each other.
    writer.ask("os.pwrite(kept['w'], b'from one', 0)");
    other.until("os.pread(kept['w'], 8, 0)", &json!("from one"));
    other.ask("os.pwrite(kept['w'], b'from two', 0)");
    writer.until("os.pread(kept['w'], 8, 0)", &json!("from two"));
    // When the other has closed it, memory may be shared again.
    writer.ask("closed('w')");
    other.ask("closed('w')");
    other.ask(&format!("mapped_patch('{file}', 0, 'mine')"));
    assert_eq!(&fs::read(&file).unwrap()[..8], b"mine two");
}
