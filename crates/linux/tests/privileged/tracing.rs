//! Tracing: what a keeper sees of its ghosts.

use crate::ghosts::{Haunted, until};
use crate::runner::{Needs, Test};
use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;
use wiglaf_linux::ghost::Order;
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_linux::status::read_status;
use wiglaf_linux::trace::{SigInfo, Stop, StopKind, TraceError, Tracer};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "trace::signals_are_seen_and_swallowed",
        needs: Needs::Nothing,
        run: signals_are_seen_and_swallowed,
    },
    Test {
        name: "trace::group_stops",
        needs: Needs::Nothing,
        run: group_stops,
    },
    Test {
        name: "trace::a_dead_ghost_waits_for_its_tracer",
        needs: Needs::Nothing,
        run: a_dead_ghost_waits_for_its_tracer,
    },
];

fn next_stop(tracer: &Tracer) -> Stop {
    let mut found = None;
    until("a stop", || {
        found = tracer.next_stop().expect("waitid");
        found.is_some()
    });
    found.expect("one was found")
}

fn signals_are_seen_and_swallowed() {
    let ghost = Haunted::new(&["x"]);
    let pid = ghost.pid;
    let tracer = Tracer::new();
    tracer.seize(pid, 0).expect("seize");
    assert_eq!(
        read_status(pid).expect("status").tracer,
        std::process::id().cast_signed()
    );
    assert_eq!(tracer.next_stop(), Ok(None), "seizing does not stop it");

    process::pidfd_send_signal(&ghost.pidfd, libc::SIGINT).expect("send");
    let kind = StopKind::Delivery(libc::SIGINT);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    let sent = SigInfo {
        signo: libc::SIGINT,
        code: libc::SI_USER,
        pid: std::process::id().cast_signed(),
        uid: rustix::process::getuid().as_raw(),
    };
    assert_eq!(tracer.siginfo(pid), Ok(sent));
    tracer.cont(pid, 0).expect("swallow");

    tracer.interrupt(pid).expect("interrupt");
    let kind = StopKind::Trap;
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.cont(pid, 0).expect("cont");
    assert_eq!(
        tracer.cont(pid, 0),
        Err(TraceError::Gone { pid }),
        "it runs"
    );
    assert_eq!(tracer.peek_exit(pid), Ok(None));
    assert_eq!(tracer.reap(pid), Err(TraceError::Alive { pid }));

    // A tracer that goes away lets it live; a new one takes over.
    tracer.interrupt(pid).expect("interrupt");
    next_stop(&tracer);
    tracer.detach(pid, 0).expect("detach");
    tracer.seize(pid, 0).expect("seize again");
    ghost.order(Order::Die(15));
    let kind = StopKind::Delivery(libc::SIGTERM);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    assert_eq!(
        tracer.siginfo(pid).expect("siginfo").pid,
        pid,
        "it asked for it itself"
    );
    tracer.cont(pid, libc::SIGTERM).expect("inject");
    until("its end", || {
        tracer.peek_exit(pid).expect("waitid").is_some()
    });
    let killed = ExitStatus::Signaled {
        signal: libc::SIGTERM,
        core: false,
    };
    assert_eq!(tracer.reap(pid), Ok(killed));
    assert_eq!(tracer.cont(pid, 0), Err(TraceError::Gone { pid }));
    assert_eq!(tracer.peek_exit(pid), Err(TraceError::Gone { pid }));
}

fn group_stops() {
    let ghost = Haunted::new(&["x"]);
    let pid = ghost.pid;
    let tracer = Tracer::new();
    tracer.seize(pid, 0).expect("seize");
    process::pidfd_send_signal(&ghost.pidfd, libc::SIGSTOP).expect("send");
    let kind = StopKind::Delivery(libc::SIGSTOP);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.cont(pid, libc::SIGSTOP).expect("inject");
    let kind = StopKind::GroupStop(libc::SIGSTOP);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.listen(pid).expect("listen");
    process::pidfd_send_signal(&ghost.pidfd, libc::SIGCONT).expect("send");
    let kind = StopKind::Trap;
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.cont(pid, 0).expect("cont");
    let kind = StopKind::Delivery(libc::SIGCONT);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.cont(pid, libc::SIGCONT).expect("inject");

    // The ghost stops itself, as the remote process was stopped by its terminal.
    ghost.order(Order::Stop(19));
    let kind = StopKind::Delivery(libc::SIGSTOP);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.cont(pid, libc::SIGSTOP).expect("inject");
    let kind = StopKind::GroupStop(libc::SIGSTOP);
    assert_eq!(next_stop(&tracer), Stop { pid, kind });
    tracer.listen(pid).expect("listen");
    process::kill(pid, libc::SIGKILL).expect("kill");
    until("its end", || {
        tracer.peek_exit(pid).expect("waitid").is_some()
    });
    let killed = ExitStatus::Signaled {
        signal: libc::SIGKILL,
        core: false,
    };
    assert_eq!(tracer.reap(pid), Ok(killed));
}

/// P1: who waits for the ghost sees its stops, and its end when its tracer lets go of it.
fn a_dead_ghost_waits_for_its_tracer() {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let Fork::Parent { pid: parent, .. } = process::fork().expect("fork") else {
        drop(read);
        let ghost = Haunted::new(&["x"]);
        rustix::io::write(&write, &ghost.pid.to_ne_bytes()).expect("tell");
        let next = || {
            let change = process::wait_any_child(false)
                .expect("wait")
                .expect("a change");
            assert_eq!(change.pid, ghost.pid);
            change.state
        };
        assert_eq!(next(), ChildState::Stopped(libc::SIGSTOP));
        rustix::io::write(&write, b"s").expect("tell");
        assert_eq!(next(), ChildState::Continued);
        rustix::io::write(&write, b"c").expect("tell");
        let ChildState::Ended(status) = next() else {
            panic!("it did not end");
        };
        std::process::exit(status.shell_code());
    };
    drop(write);
    let mut told = File::from(read);
    let mut pid = [0; 4];
    told.read_exact(&mut pid).expect("the ghost's pid");
    let pid = i32::from_ne_bytes(pid);
    let tracer = Tracer::new();
    tracer.seize(pid, 0).expect("a descendant");

    process::kill(pid, libc::SIGSTOP).expect("send");
    next_stop(&tracer);
    tracer.cont(pid, libc::SIGSTOP).expect("inject");
    next_stop(&tracer);
    tracer.listen(pid).expect("listen");
    told.read_exact(&mut [0]).expect("its parent saw the stop");
    process::kill(pid, libc::SIGCONT).expect("send");
    next_stop(&tracer);
    tracer.cont(pid, 0).expect("cont");
    next_stop(&tracer);
    tracer.cont(pid, 0).expect("swallow SIGCONT");
    told.read_exact(&mut [0])
        .expect("its parent saw it continue");

    process::kill(pid, libc::SIGKILL).expect("kill");
    until("its end", || {
        tracer.peek_exit(pid).expect("waitid").is_some()
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(
        process::wait(parent, true),
        Ok(None),
        "its parent still waits"
    );
    assert!(
        fs::exists(format!("/proc/{pid}")).expect("an answer"),
        "its PID is held"
    );
    tracer.reap(pid).expect("its status");
    let change = process::wait(parent, false).expect("wait").expect("ended");
    assert_eq!(change.state, ChildState::Ended(ExitStatus::Exited(137)));
}
