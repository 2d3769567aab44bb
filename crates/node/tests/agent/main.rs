//! A real agent in namespaces of its own; the test plays head and deputy. Needs root.
//!
//! Without the usual harness: an agent is a fork, which takes a process with one thread.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is its own test harness"
)]

mod head;
mod watchdog;

use std::time::{Duration, Instant};

use head::{END_PID, FIRST_PID, Head, LONG_LEASE_MS, NOBODY, SIGKILL};
use wiglaf_link::JoinToken;
use wiglaf_linux::process::{ChildState, ExitStatus, pidfd_send_signal, wait};
use wiglaf_node::agent::Trust;
use wiglaf_wire::agent::{FromAgent, PowerAction, SignalScope, ToAgent};
use wiglaf_wire::boot::Mac;
use wiglaf_wire::id::Pid;
use wiglaf_wire::launch::{LaunchSpec, StdioKind, WindowSize};
use wiglaf_wire::status::Status;
use wiglaf_wire::stream::Stream;

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: agents need root");
        return;
    }
    let only: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let tests: [(&str, fn()); 19] = [
        ("a_task_runs_as_asked", a_task_runs_as_asked),
        ("a_terminal_is_the_tasks_own", a_terminal_is_the_tasks_own),
        ("what_can_not_run_says_why", what_can_not_run_says_why),
        ("leftovers_are_ended", leftovers_are_ended),
        ("leftovers_may_stay", leftovers_may_stay),
        ("stops_are_told", stops_are_told),
        ("signals_reach_their_scope", signals_reach_their_scope),
        (
            "descendants_have_pids_of_the_block",
            descendants_have_pids_of_the_block,
        ),
        (
            "processes_are_listed_and_signalled",
            processes_are_listed_and_signalled,
        ),
        ("the_lease_ends_everything", the_lease_ends_everything),
        (
            "a_lost_connection_ends_nothing",
            a_lost_connection_ends_nothing,
        ),
        ("a_token_is_enough_to_join", a_token_is_enough_to_join),
        (
            "a_machine_that_booted_joins_when_approved",
            a_machine_that_booted_joins_when_approved,
        ),
        (
            "an_agent_beside_leaves_when_asked",
            an_agent_beside_leaves_when_asked,
        ),
        (
            "an_agent_beside_dies_with_its_supervisor",
            an_agent_beside_dies_with_its_supervisor,
        ),
        ("many_short_tasks_all_end", many_short_tasks_all_end),
        (
            "an_agent_that_dies_while_the_kernel_waits_is_gone_soon",
            watchdog::an_agent_that_dies_while_the_kernel_waits_is_gone_soon,
        ),
        (
            "without_a_watchdog_it_would_stay",
            watchdog::without_a_watchdog_it_would_stay,
        ),
        (
            "a_watchdog_is_no_task_and_replaced",
            watchdog::a_watchdog_is_no_task_and_replaced,
        ),
    ];
    let mut passed = 0;
    for (name, test) in tests {
        if only.is_empty() || only.iter().any(|part| name.contains(part.as_str())) {
            let start = Instant::now();
            test();
            println!("ok {name} ({} ms)", start.elapsed().as_millis());
            passed += 1;
        }
    }
    // A test that fails ends the program before this line.
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured");
}

fn a_task_runs_as_asked() {
    let mut head = Head::with_agent();
    let script = "echo hi; id -u; pwd; echo $$; umask; echo err >&2; exit 7";
    let mut spec = shell(script);
    spec.cwd = b"/usr/bin".to_vec();
    spec.umask = 0o27;
    let id = head.launch(spec);
    assert_eq!(head.wait_end(id), (Status::Exited(7), 0));
    let pid = head.pid(id);
    assert_eq!(
        head.text(id, Stream::Output),
        format!("hi\n65534\n/usr/bin\n{pid}\n0027\n")
    );
    assert_eq!(head.text(id, Stream::Error), "err\n");

    let killed = head.launch(shell("kill -SEGV $$"));
    assert_eq!(head.wait_end(killed).0, Status::Signaled(11));
    let fed = head.launch(shell("cat; echo end"));
    assert_eq!(head.wait_end(fed).0, Status::Exited(0));
    assert_eq!(head.text(fed, Stream::Output), "end\n");
}

fn a_terminal_is_the_tasks_own() {
    let mut head = Head::with_agent();
    let mut spec = shell("tty; stty size; ls -ln $(tty) | cut -d' ' -f3; echo me >/dev/tty");
    spec.stdio = [StdioKind::Terminal; 3];
    spec.window = WindowSize {
        rows: 31,
        columns: 97,
    };
    let id = head.launch(spec);
    assert_eq!(head.wait_end(id).0, Status::Exited(0));
    let text = head.text(id, Stream::Output);
    assert_eq!(text, "/dev/pts/0\r\n31 97\r\n65534\r\nme\r\n");
}

fn what_can_not_run_says_why() {
    let mut head = Head::with_agent();
    let mut end = |argv: &[&str], cwd: &str| {
        let mut spec = shell("");
        spec.argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
        spec.cwd = cwd.as_bytes().to_vec();
        let id = head.launch(spec);
        match head.wait_end(id).0 {
            Status::Failed { code, reason } => (code, reason),
            other => panic!("{argv:?}: {other:?}"),
        }
    };
    let (code, reason) = end(&["no-such-command"], "/");
    assert_eq!(
        (code, reason.as_str()),
        (127, "no-such-command: not found on n3")
    );
    let (code, reason) = end(&["/etc/passwd"], "/");
    assert_eq!(code, 126);
    assert!(
        reason.contains("/etc/passwd") && reason.contains("n3"),
        "{reason}"
    );
    let (code, reason) = end(&["true"], "/no/such/directory");
    assert_eq!(code, 125);
    assert!(
        reason.contains("/no/such/directory") && reason.contains("n3"),
        "{reason}"
    );
}

fn leftovers_are_ended() {
    let mut head = Head::with_agent();
    let script = "setsid sleep 1000 & (setsid sh -c 'sleep 1001 & sleep 1002' &) ; exit 0";
    let id = head.launch(shell(script));
    let other = head.launch(shell("setsid sleep 1003 & sleep 1004"));
    let (status, leftovers) = head.wait_end(id);
    assert_eq!(status, Status::Exited(0));
    assert!((1..=4).contains(&leftovers), "{leftovers}");
    // The other task's stay.
    head.wait_until("the other task's processes", |head| {
        let list = head.list();
        assert!(
            list.iter().all(|process| process.task == Some(other)),
            "{list:?}"
        );
        list.iter()
            .filter(|process| process.command.starts_with("sleep"))
            .count()
            == 2
    });
    head.tell(ToAgent::Kill { task: other });
    assert_eq!(head.wait_end(other).0, Status::Signaled(9));
    assert!(head.list().is_empty());
}

fn leftovers_may_stay() {
    let mut head = Head::with_agent();
    let mut spec = shell("echo before; setsid sleep 1000 & exit 0");
    spec.leave = true;
    let id = head.launch(spec);
    assert_eq!(head.wait_end(id), (Status::Exited(0), 0));
    assert_eq!(head.text(id, Stream::Output), "before\n");
    let list = head.list();
    let [left] = &list[..] else {
        panic!("{list:?}")
    };
    assert_eq!((left.task, left.uid), (Some(id), NOBODY));
    assert_eq!(head.signal_process(left.pid, 9, Some(NOBODY)), 0);
    head.wait_until("the leftover's end", |head| head.list().is_empty());
}

fn stops_are_told() {
    let mut head = Head::with_agent();
    // No shell: one that has vforked can't be stopped until its child has exec'd.
    let mut spec = shell("");
    spec.argv = vec![b"sleep".to_vec(), b"1000".to_vec()];
    let id = head.launch(spec);
    head.wait_for("start", |message| {
        matches!(message, FromAgent::Started { .. })
    });
    // SIGTSTP too: the kernel itself would throw it away for want of a shell.
    for signal in [19, 20] {
        head.signal(id, signal, SignalScope::Group);
        let told = head.wait_for("stop", |message| {
            matches!(message, FromAgent::Stopped { .. })
        });
        assert_eq!(told, FromAgent::Stopped { task: id, signal });
        head.signal(id, 18, SignalScope::Group);
        let told = head.wait_for("continue", |message| {
            matches!(message, FromAgent::Continued { .. })
        });
        assert_eq!(told, FromAgent::Continued { task: id });
    }
    head.signal(id, 15, SignalScope::Process);
    assert_eq!(head.wait_end(id).0, Status::Signaled(15));
}

fn signals_reach_their_scope() {
    let script = "trap 'echo main' USR1; \
        sh -c 'trap \"echo child; exit\" USR1; echo up; while :; do sleep 0.02; done' & \
        setsid sh -c 'trap \"echo far; exit\" USR1; echo up; while :; do sleep 0.02; done' & \
        echo up; while [ ! -e /nowhere ]; do wait; sleep 0.02; done";
    for (scope, expected) in [
        (SignalScope::Process, vec!["main"]),
        (SignalScope::Group, vec!["child", "main"]),
        (SignalScope::Tree, vec!["child", "far", "main"]),
    ] {
        let mut head = Head::with_agent();
        let id = head.launch(shell(script));
        head.wait_until("three shells", |head| {
            head.text(id, Stream::Output).matches("up").count() == 3
        });
        head.signal(id, 10, scope);
        let heard = |head: &Head| {
            let text = head.text(id, Stream::Output);
            let mut words: Vec<String> = text
                .lines()
                .filter(|line| *line != "up")
                .map(str::to_owned)
                .collect();
            words.sort();
            words
        };
        head.wait_until("the traps", |head| heard(head).len() >= expected.len());
        // Whoever should not have heard it had time to say so.
        head.pump_for(Duration::from_millis(150));
        assert_eq!(heard(&head), expected);
        head.tell(ToAgent::Kill { task: id });
        head.wait_end(id);
    }
}

fn descendants_have_pids_of_the_block() {
    let mut head = Head::with_agent();
    let id = head.launch(shell(
        "echo $$; sh -c 'echo $$; true'; (sh -c 'echo $$; true')",
    ));
    head.wait_end(id);
    let text = head.text(id, Stream::Output);
    let pids: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(pids[0], head.pid(id));
    assert!(
        pids[1..]
            .iter()
            .all(|pid| (FIRST_PID..END_PID).contains(pid)),
        "{pids:?}"
    );
    // The next task's come after them: the cursor is not set back too early.
    let next = head.launch(shell("sh -c 'echo $$; true'"));
    head.wait_end(next);
    let after: i32 = head.text(next, Stream::Output).trim().parse().unwrap();
    assert!(after > pids[2], "{after} comes after {pids:?}");
}

fn processes_are_listed_and_signalled() {
    let mut head = Head::with_agent();
    let id = head.launch(shell("sleep 1000 & wait"));
    head.wait_until("its child", |head| {
        head.list()
            .iter()
            .any(|process| process.command == "sleep 1000")
    });
    let list = head.list();
    let main = list
        .iter()
        .find(|process| process.pid.0 == head.pid(id))
        .unwrap();
    let child = list
        .iter()
        .find(|process| process.command == "sleep 1000")
        .unwrap();
    assert_eq!(
        (child.parent, child.task, child.uid),
        (main.pid, Some(id), NOBODY)
    );
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let age_ms = u64::try_from(now_ms.as_millis())
        .unwrap()
        .abs_diff(child.started_ms);
    assert!(age_ms < 60_000, "{age_ms}");
    // It may not have come to sleeping yet.
    let is_alive = matches!(child.state, 'R' | 'S' | 'D');
    assert!(child.rss_kib > 0 && is_alive, "{child:?}");

    let (own, foreign) = (child.pid, Pid(1));
    assert_eq!(
        head.signal_process(own, 15, Some(1)),
        rustix::io::Errno::PERM.raw_os_error()
    );
    assert_eq!(
        head.signal_process(foreign, 15, None),
        rustix::io::Errno::SRCH.raw_os_error()
    );
    assert_eq!(
        head.signal_process(own, 99, None),
        rustix::io::Errno::INVAL.raw_os_error()
    );
    assert_eq!(head.signal_process(own, 15, Some(NOBODY)), 0);
    assert_eq!(head.wait_end(id).0, Status::Exited(0));
}

fn the_lease_ends_everything() {
    let mut head = Head::new(1_000);
    head.start_agent();
    head.wait_until("the agent", |head| head.agent.is_some());
    let id = head.launch(shell("setsid sleep 1000 & echo up; sleep 1000"));
    let mut left = shell("setsid sleep 1000 & exit 0");
    left.leave = true;
    let left = head.launch(left);
    head.wait_end(left);
    head.wait_until("output", |head| head.text(id, Stream::Output) == "up\n");
    // Renewals keep it alive beyond one lease.
    head.pump_for(Duration::from_millis(2_500));
    let over = head
        .inbox
        .iter()
        .any(|message| matches!(message, FromAgent::Ended { .. }));
    assert!(!over, "{:?}", head.inbox);

    let silent = Instant::now();
    head.answers = false;
    let reports = head.wait_hello_with(|report| report.ended.is_some());
    assert!(silent.elapsed() < Duration::from_secs(8));
    let Some((Status::Failed { code: 125, reason }, _)) = &reports[0].ended else {
        panic!("{reports:?}")
    };
    assert!(
        reason.contains("n3") && reason.contains("run the command again"),
        "{reason}"
    );
    head.answers = true;
    head.tell_welcome();
    assert!(head.list().is_empty());
    // It takes work again.
    head.tell(ToAgent::Acknowledge { task: id });
    let next = head.launch(shell("exit 3"));
    assert_eq!(head.wait_end(next).0, Status::Exited(3));
}

fn a_lost_connection_ends_nothing() {
    let mut head = Head::with_agent();
    let id = head.launch(shell("echo a; sleep 0.5; echo b; exit 4"));
    head.wait_until("output", |head| head.text(id, Stream::Output) == "a\n");
    head.hang_up();
    let reports = head.wait_hello_with(|_| true);
    assert_eq!((reports[0].task, reports[0].pid.0), (id, head.pid(id)));
    assert_eq!(head.next_end(id), (Status::Exited(4), 0));
    assert_eq!(head.text(id, Stream::Output), "a\nb\n");
    // Not acknowledged, so it is told again.
    head.hang_up();
    let reports = head.wait_hello_with(|_| true);
    assert_eq!(
        reports[0].ended.as_ref().map(|ended| &ended.0),
        Some(&Status::Exited(4))
    );
    head.tell(ToAgent::Acknowledge { task: id });
    head.hang_up();
    assert!(head.wait_hello().is_empty());
}

fn a_token_is_enough_to_join() {
    let mut head = Head::new(LONG_LEASE_MS);
    let token = JoinToken::create(head.authority.fingerprint()).unwrap();
    head.start(Trust::Token(token));
    head.wait_until("the agent", |head| head.agent.is_some());
    assert_eq!(head.joined.as_deref(), Some("wished"));
    let id = head.launch(shell("exit 5"));
    assert_eq!(head.wait_end(id).0, Status::Exited(5));
    head.tell(ToAgent::Leave);
    let agent = head.agents.remove(0);
    let end = wait(agent.0, false).unwrap().unwrap();
    assert_eq!(end.state, ChildState::Ended(ExitStatus::Exited(0)));
}

fn a_machine_that_booted_joins_when_approved() {
    let mut head = Head::new(LONG_LEASE_MS);
    head.start(Trust::Booted {
        authority: head.authority.fingerprint(),
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        boot: None,
    });
    head.wait_until("the agent", |head| head.agent.is_some());
    // It asks from root's ports, and always with the same key.
    let [(first, shown), (second, approved)] = &head.attempts[..] else {
        panic!("{:?}", head.attempts);
    };
    assert!(*first < 1024 && *second < 1024);
    assert_eq!(shown, approved);
    let id = head.launch(shell("sleep 1000"));
    head.wait_for("start", |message| {
        matches!(message, FromAgent::Started { .. })
    });
    // Its tasks are ended in order before the machine is.
    let action = PowerAction::Reboot;
    head.tell(ToAgent::Power { action });
    let (status, _) = head.wait_end(id);
    assert!(matches!(status, Status::Failed { code: 125, .. }));
    let agent = head.agents.remove(0);
    let end = wait(agent.0, false).unwrap().unwrap();
    assert_eq!(end.state, ChildState::Ended(ExitStatus::Exited(0)));
}

fn an_agent_beside_leaves_when_asked() {
    let mut head = Head::new(LONG_LEASE_MS);
    head.start_beside();
    head.wait_until("the agent", |head| head.agent.is_some());
    let id = head.launch(shell("sleep 1000"));
    head.wait_for("start", |message| {
        matches!(message, FromAgent::Started { .. })
    });
    let (pid, supervisor) = head.agents.remove(0);
    pidfd_send_signal(&supervisor, 15).unwrap();
    let (status, _) = head.wait_end(id);
    assert!(
        matches!(status, Status::Failed { code: 125, .. }),
        "{status:?}"
    );
    let end = wait(pid, false).unwrap().unwrap();
    assert_eq!(end.state, ChildState::Ended(ExitStatus::Exited(0)));
}

fn an_agent_beside_dies_with_its_supervisor() {
    let mut head = Head::new(LONG_LEASE_MS);
    head.start_beside();
    head.wait_until("the agent", |head| head.agent.is_some());
    let (pid, supervisor) = head.agents.remove(0);
    pidfd_send_signal(&supervisor, SIGKILL).unwrap();
    wait(pid, false).unwrap();
    head.wait_until("the end of the connection", |head| head.agent.is_none());
}

fn many_short_tasks_all_end() {
    let mut head = Head::with_agent();
    let mut spec = shell("");
    spec.argv = vec![b"true".to_vec()];
    let start = Instant::now();
    for _ in 0..10 {
        let batch: Vec<_> = (0..50).map(|_| head.launch(spec.clone())).collect();
        for id in batch {
            assert_eq!(head.wait_end(id), (Status::Exited(0), 0));
        }
    }
    println!(
        "   {} µs for a task of `true`",
        start.elapsed().as_micros() / 500
    );
    let agent = head.agents[0].0;
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon"))
        .unwrap();
    println!("   agent: {line}");
    assert!(head.list().is_empty());
}

fn shell(script: &str) -> LaunchSpec {
    LaunchSpec {
        env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()],
        ..LaunchSpec::plain(&["sh", "-c", script])
    }
}
