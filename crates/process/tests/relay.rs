//! The deputy and the node's relay together: bytes exact, ends right, users apart.

mod relay_rig;
#[path = "relay/view.rs"]
mod view;

use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use relay_rig::{DEPUTY, PIPES, Rig, collect, noise, pipe, task};
use rustix::fs::OFlags;
use wiglaf_process::relay::node::{NodeRelay, RelayEvent};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::frame::Compression;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::launch::StdioKind;

const MIB: usize = 1 << 20;

fn feed(fd: OwnedFd, bytes: Vec<u8>) -> std::thread::JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || std::fs::File::from(fd).write_all(&bytes))
}

#[test]
fn bulk_data_passes_through_cat_unchanged() {
    let mut rig = Rig::new();
    let ((input, to), (from, output), (errors, error)) = (pipe(), pipe(), pipe());
    let kept = (input.try_clone().unwrap(), output.try_clone().unwrap());
    rig.attach(task(0), PIPES, vec![input, output, error]);
    let child = rig.start(task(0), PIPES, &["cat"]);
    let sent = noise(64 * MIB, 7);
    let feeder = feed(to, sent.clone());
    let (received, errors) = (collect(from), collect(errors));
    assert!(rig.finish(task(0), child).success());
    feeder.join().unwrap().unwrap();
    for fd in [&kept.0, &kept.1] {
        let flags = rustix::fs::fcntl_getfl(fd).unwrap();
        assert!(
            !flags.contains(OFlags::NONBLOCK),
            "the shared description was changed"
        );
    }
    drop(kept);
    rig.detach(task(0));
    assert!(received.join().unwrap() == sent);
    assert_eq!(errors.join().unwrap(), b"");
}

#[test]
fn text_travels_compressed_both_ways() {
    for (compression, is_short) in [(Compression::Always, true), (Compression::Never, false)] {
        let mut rig = Rig::new();
        rig.relay.set_compression(compression);
        let ((input, to), (from, output), (errors, error)) = (pipe(), pipe(), pipe());
        rig.attach(task(0), PIPES, vec![input, output, error]);
        let child = rig.start(task(0), PIPES, &["cat"]);
        let sent = b"what is read again and again\n".repeat(8 * MIB / 29);
        let feeder = feed(to, sent.clone());
        let (received, errors) = (collect(from), collect(errors));
        assert!(rig.finish(task(0), child).success());
        feeder.join().unwrap().unwrap();
        let traffic = rig.relay.traffic(DEPUTY).unwrap();
        for (content, wire) in [
            (traffic.sent_content_bytes, traffic.sent_wire_bytes),
            (traffic.received_content_bytes, traffic.received_wire_bytes),
        ] {
            assert!(content >= sent.len() as u64);
            assert_eq!(wire < content / 4, is_short, "{traffic:?}");
        }
        rig.detach(task(0));
        assert!(received.join().unwrap() == sent);
        assert_eq!(errors.join().unwrap(), b"");
    }
}

#[test]
fn output_and_errors_stay_apart_and_a_status_comes_after_both() {
    let mut rig = Rig::new();
    let ((input, to), (from, output), (errors, error)) = (pipe(), pipe(), pipe());
    drop(to);
    rig.attach(task(0), PIPES, vec![input, output, error]);
    let argv = ["sh", "-c", "echo out; echo err >&2; cat; echo more; exit 7"];
    let child = rig.start(task(0), PIPES, &argv);
    assert_eq!(rig.finish(task(0), child).code(), Some(7));
    // Drained: it is all in the user's pipes by now, though nobody has read them.
    let mut bytes = [0; 64];
    let count = rustix::io::read(&from, &mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"out\nmore\n");
    rig.detach(task(0));
    assert_eq!(collect(errors).join().unwrap(), b"err\n");
}

#[test]
fn a_reader_that_leaves_ends_the_program_by_sigpipe() {
    let mut rig = Rig::new();
    let (from, output) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![output]);
    let child = rig.start(
        task(0),
        kinds,
        &[
            "sh",
            "-c",
            "trap - PIPE; exec env --default-signal=PIPE yes",
        ],
    );
    let mut from = std::fs::File::from(from);
    let mut line = [0; 2];
    rig.until("output", |_| {
        let set = &mut [rustix::event::PollFd::new(
            &from,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(set, Some(&now)).unwrap() == 1
    });
    from.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"y\n");
    drop(from);
    assert_eq!(rig.finish(task(0), child).signal(), Some(13));
}

#[test]
fn a_program_that_reads_little_stops_the_deputys_reading() {
    let mut rig = Rig::new();
    let ((input, to), (from, output)) = (pipe(), pipe());
    let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![input, output]);
    let child = rig.start(task(0), kinds, &["head", "-n1"]);
    let feeder = std::thread::spawn(move || {
        let mut to = std::fs::File::from(to);
        let mut lines = 0;
        while to.write_all(b"a line that head may want\n").is_ok() {
            lines += 1;
        }
        lines
    });
    assert!(rig.finish(task(0), child).success());
    // With the deputy's end closed, the user's other program gets its SIGPIPE as well.
    assert!(feeder.join().unwrap() > 0);
    rig.detach(task(0));
    assert_eq!(
        collect(from).join().unwrap(),
        b"a line that head may want\n"
    );
}

#[test]
fn files_are_read_and_written_at_the_shared_offset() {
    let mut rig = Rig::new();
    let (mut input, mut output) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let content = noise(3 * MIB, 5);
    input.write_all(&content).unwrap();
    input.seek(std::io::SeekFrom::Start(10)).unwrap();
    output.write_all(b"before").unwrap();
    let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
    let fds = vec![
        input.try_clone().unwrap().into(),
        output.try_clone().unwrap().into(),
    ];
    rig.attach(task(0), kinds, fds);
    let child = rig.start(task(0), kinds, &["cat"]);
    assert!(rig.finish(task(0), child).success());
    output.write_all(b"after").unwrap();
    output.rewind().unwrap();
    let mut written = Vec::new();
    output.read_to_end(&mut written).unwrap();
    assert!(written == [b"before", &content[10..], b"after"].concat());
    assert_eq!(input.stream_position().unwrap(), content.len() as u64);
}

#[test]
fn a_full_device_is_told_to_the_user() {
    let mut rig = Rig::new();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let (errors, error) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Relayed];
    rig.attach(task(0), kinds, vec![full.into(), error]);
    let child = rig.start(task(0), kinds, &["echo", "lost"]);
    rig.finish(task(0), child);
    rig.detach(task(0));
    let errors = String::from_utf8(collect(errors).join().unwrap()).unwrap();
    assert!(
        errors.starts_with("wiglaf: standard output can't be written: No space"),
        "{errors}"
    );
}

#[test]
fn the_clusters_words_come_after_the_tasks() {
    let mut rig = Rig::new();
    let (both, output) = pipe();
    let error = output.try_clone().unwrap();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Relayed];
    rig.attach(task(0), kinds, vec![output, error]);
    // More than the pipe holds, so that the words have to wait.
    let child = rig.start(task(0), kinds, &["head", "-c", "400000", "/dev/zero"]);
    let mut arrived = 0;
    let mut some = vec![0; 100_000];
    while arrived < 100_000 {
        rig.turn();
        let set = &mut [rustix::event::PollFd::new(
            &both,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if rustix::event::poll(set, Some(&now)).unwrap() == 1 {
            arrived += rustix::io::read(&both, &mut some[arrived..]).unwrap();
        }
    }
    for _ in 0..50 {
        rig.turn();
    }
    rig.head
        .send(
            &ToDeputy::Say {
                task: task(0),
                text: "lost n3".into(),
            },
            vec![],
        )
        .unwrap();
    let reader = collect(both);
    assert_eq!(rig.hear(), FromDeputy::Said { task: task(0) });
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    let bytes = reader.join().unwrap();
    assert_eq!(bytes.len(), 300_000 + b"wiglaf: lost n3\n".len());
    assert!(bytes.ends_with(b"wiglaf: lost n3\n"));
    // Of a task that is gone, so that the head never waits in vain.
    rig.head
        .send(
            &ToDeputy::Say {
                task: task(0),
                text: "x".into(),
            },
            vec![],
        )
        .unwrap();
    assert_eq!(rig.hear(), FromDeputy::Said { task: task(0) });
}

#[test]
fn another_node_gets_nothing_of_a_task() {
    let mut rig = Rig::new();
    let ((input, to), (from, output)) = (pipe(), pipe());
    let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
    feed(to, b"a secret\n".to_vec()).join().unwrap().unwrap();
    rig.attach(task(0), kinds, vec![input, output]);
    let config = rig.node_config(NodeId(4));
    let stranger = NodeRelay::new(100);
    let honest = std::mem::replace(&mut rig.relay, stranger);
    rig.relay.set_identity(rig.address(), config);
    let mut thief = rig.start(task(0), kinds, &["cat"]);
    rig.until("refused", |rig| !rig.events.is_empty());
    assert!(matches!(&rig.events[..], [RelayEvent::Lost(lost, _)] if *lost == task(0)));
    thief.wait().unwrap();
    rig.relay.close(&rig.poll, task(0));
    // The right one is served all the same.
    rig.events.clear();
    rig.relay = honest;
    let child = rig.start(task(0), kinds, &["cat"]);
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    assert_eq!(collect(from).join().unwrap(), b"a secret\n");
}

#[test]
fn an_agent_that_is_faster_than_the_head_waits() {
    let mut rig = Rig::new();
    let ((input, to), (from, output)) = (pipe(), pipe());
    let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
    let child = rig.start(task(0), kinds, &["cat"]);
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        rig.turn();
    }
    rig.attach(task(0), kinds, vec![input, output]);
    feed(to, b"hello".to_vec()).join().unwrap().unwrap();
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    assert_eq!(collect(from).join().unwrap(), b"hello");
}

#[test]
fn broken_links_and_a_restarted_head_lose_no_byte() {
    let mut rig = Rig::new();
    let ((input, to), (from, output)) = (pipe(), pipe());
    let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![input, output]);
    let mut child = rig.start(task(0), kinds, &["cat"]);
    let sent = noise(24 * MIB, 11);
    let feeder = feed(to, sent.clone());
    let (progress, count) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut from = std::fs::File::from(from);
        let (mut bytes, mut piece) = (Vec::new(), vec![0; 100_000]);
        loop {
            let read = from.read(&mut piece).unwrap();
            if read == 0 {
                return bytes;
            }
            bytes.extend_from_slice(&piece[..read]);
            let _ = progress.send(bytes.len());
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    for round in 1..=4 {
        rig.until("progress", |_| {
            count.try_iter().any(|count| count > round * 4 * MIB)
        });
        let link = rig.accepted.take().unwrap();
        rustix::net::shutdown(&link, rustix::net::Shutdown::Both).unwrap();
        if round == 2 {
            rig.restart_head(&[task(0)]);
        }
        rig.until("a new link", |rig| rig.accepted.is_some());
    }
    rig.until("the end", |_| child.try_wait().unwrap().is_some());
    rig.relay.main_ended(&rig.poll, task(0), &mut rig.events);
    rig.until("drained", |rig| {
        rig.events.contains(&RelayEvent::Drained(task(0)))
    });
    feeder.join().unwrap().unwrap();
    rig.detach(task(0));
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_terminal_is_made_resized_and_hung_up() {
    let mut rig = Rig::new();
    // The user's own terminal, of which the deputy has the size.
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let screen = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&screen).unwrap();
    let terminal = rustix::pty::ioctl_tiocgptpeer(&screen, flags).unwrap();
    let mut raw = rustix::termios::tcgetattr(&terminal).unwrap();
    raw.make_raw();
    let now = rustix::termios::OptionalActions::Now;
    rustix::termios::tcsetattr(&terminal, now, &raw).unwrap();
    let size = |rows, columns| rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&screen, size(30, 100)).unwrap();
    let (typed, keyboard) = pipe();
    let kinds = [StdioKind::Terminal; 3];
    let fds = vec![
        typed,
        terminal.try_clone().unwrap(),
        terminal.try_clone().unwrap(),
    ];
    rig.attach(task(0), kinds, fds);
    let script = "stty -echo; stty size; trap 'stty size; exit 3' WINCH; echo ready; \
                  while :; do sleep 0.05; done";
    let child = rig.start(task(0), kinds, &["setsid", "-cw", "sh", "-c", script]);
    let mut shown = String::new();
    let mut see = |rig: &mut Rig, what: &str| {
        rig.until(what, |_| {
            let set = &mut [rustix::event::PollFd::new(
                &screen,
                rustix::event::PollFlags::IN,
            )];
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if rustix::event::poll(set, Some(&now)).unwrap() == 1 {
                let mut bytes = [0; 1000];
                let count = rustix::io::read(&screen, &mut bytes).unwrap();
                shown.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
            shown.contains(what)
        });
    };
    see(&mut rig, "ready\r\n");
    rustix::termios::tcsetwinsize(&screen, size(41, 123)).unwrap();
    rig.head
        .send(&ToDeputy::WindowChanged { task: task(0) }, vec![])
        .unwrap();
    see(&mut rig, "41 123\r\n");
    assert_eq!(rig.finish(task(0), child).code(), Some(3));
    assert!(
        shown.starts_with("24 80\r\n") || shown.starts_with("30 100\r\n"),
        "{shown}"
    );
    drop(keyboard);
    rig.detach(task(0));
    let flags = rustix::fs::fcntl_getfl(&terminal).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK));
}

#[test]
fn a_screen_is_a_terminal_that_changes_nothing() {
    let mut rig = Rig::new();
    let (from, output) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Screen, StdioKind::WithOutput];
    rig.attach(task(0), kinds, vec![output]);
    let script = "test -t 1 && test -t 2 && ! test -t 0 && echo terminals; echo error >&2; \
                  stty size <&1; read x <&1 || echo refused; printf 'a\\r\\tb\\n'; seq 20000";
    let child = rig.start(task(0), kinds, &["sh", "-c", script]);
    let reader = collect(from);
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    let shown = String::from_utf8(reader.join().unwrap()).unwrap();
    let (head, numbers) = shown.split_at(shown.find("1\n2\n").unwrap());
    let head: Vec<_> = head
        .lines()
        .filter(|line| !line.starts_with("sh: "))
        .collect();
    assert_eq!(head, ["terminals", "error", "24 80", "refused", "a\r\tb"]);
    let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn the_end_of_what_is_typed_ends_a_reader_of_lines() {
    let mut rig = Rig::new();
    let ((typed, keyboard), (from, output)) = (pipe(), pipe());
    let kinds = [StdioKind::Terminal, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![typed, output]);
    let child = rig.start(task(0), kinds, &["cat"]);
    feed(keyboard, b"a line\n".to_vec())
        .join()
        .unwrap()
        .unwrap();
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    assert_eq!(collect(from).join().unwrap(), b"a line\n");
}

#[test]
fn a_task_that_only_reads_is_answered_too() {
    let mut rig = Rig::new();
    let (input, to) = pipe();
    let kinds = [StdioKind::Relayed, StdioKind::Null, StdioKind::Null];
    rig.attach(task(0), kinds, vec![input]);
    let child = rig.start(task(0), kinds, &["cat"]);
    // Until then the link counts as one that nobody answers on.
    rig.until("an answer", |rig| rig.relay.deadline().is_none());
    drop(to);
    assert!(rig.finish(task(0), child).success());
}

#[test]
fn one_stuck_task_does_not_hold_up_another() {
    let mut rig = Rig::new();
    let (_never_read, stuck) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![stuck]);
    let mut first = rig.start(task(0), kinds, &["cat", "/dev/zero"]);
    for index in 1..20 {
        let (from, output) = pipe();
        rig.attach(task(index), kinds, vec![output]);
        let child = rig.start(task(index), kinds, &["echo", "free"]);
        assert!(rig.finish(task(index), child).success());
        rig.detach(task(index));
        assert_eq!(collect(from).join().unwrap(), b"free\n");
    }
    rig.head
        .send(&ToDeputy::Detach { task: task(0) }, vec![])
        .unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn what_a_task_leaves_running_does_not_hold_its_end() {
    let mut rig = Rig::new();
    let (from, output) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![output]);
    let mut child = rig.start(task(0), kinds, &["sh", "-c", "sleep 30 & echo $!"]);
    rig.until("the end", |_| child.try_wait().unwrap().is_some());
    rig.relay.main_ended(&rig.poll, task(0), &mut rig.events);
    assert_eq!(rig.events, []);
    rig.relay.cut_outputs(&rig.poll, task(0), &mut rig.events);
    rig.until("drained", |rig| {
        rig.events == [RelayEvent::Drained(task(0))]
    });
    rig.detach(task(0));
    let pid = String::from_utf8(collect(from).join().unwrap()).unwrap();
    let killed = std::process::Command::new("kill")
        .arg(pid.trim())
        .status()
        .unwrap();
    assert!(killed.success());
}

#[test]
fn a_deputy_whose_keeper_died_says_so_and_ends() {
    let mut rig = Rig::new();
    let (errors, error) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Null, StdioKind::Relayed];
    rig.attach(task(0), kinds, vec![error]);
    let mut child = rig.start(task(0), kinds, &["sleep", "30"]);
    rig.until("a link", |rig| rig.accepted.is_some());
    rig.keeper = None;
    rig.deputy.take().unwrap().join().unwrap();
    let text = collect(errors).join().unwrap();
    assert_eq!(text, b"wiglaf: the keeper has died; this task was ended\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_unreachable_deputy_is_dialled_until_it_answers() {
    let mut rig = Rig::new();
    rig.deaf = true;
    let (from, output) = pipe();
    let kinds = [StdioKind::Null, StdioKind::Relayed, StdioKind::Null];
    rig.attach(task(0), kinds, vec![output]);
    let child = rig.start(task(0), kinds, &["echo", "patience"]);
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        rig.turn();
    }
    rig.deaf = false;
    assert!(rig.finish(task(0), child).success());
    rig.detach(task(0));
    assert_eq!(collect(from).join().unwrap(), b"patience\n");
    assert_eq!(rig.relay.tasks().count(), 0);
}

/// `cargo test -p wiglaf-process --release --test relay -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn throughput() {
    const TOTAL: usize = 1 << 30;
    for round in 0..3 {
        let mut rig = Rig::new();
        let ((input, to), (from, output)) = (pipe(), pipe());
        let kinds = [StdioKind::Relayed, StdioKind::Relayed, StdioKind::Null];
        rig.attach(task(0), kinds, vec![input, output]);
        let child = rig.start(task(0), kinds, &["cat"]);
        let started = Instant::now();
        let mut source = std::process::Command::new("head")
            .args(["-c", &TOTAL.to_string(), "/dev/zero"])
            .stdout(to)
            .spawn()
            .unwrap();
        let mut sink = std::process::Command::new("wc")
            .arg("-c")
            .stdin(from)
            .spawn()
            .unwrap();
        assert!(rig.finish(task(0), child).success());
        let seconds = started.elapsed().as_secs_f64();
        rig.detach(task(0));
        assert!(source.wait().unwrap().success() && sink.wait().unwrap().success());
        println!(
            "round {round}: {:.0} MB/s through cat and back",
            1_073.741_824 / seconds
        );
    }
}
