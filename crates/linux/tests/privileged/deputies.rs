//! Deputies: the user's files, not the user's process.

use crate::runner::{Needs, Test};
use rustix::io::Errno;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt, chown};
use wiglaf_linux::creds::{CredsError, become_deputy, fsgid, fsuid};
use wiglaf_linux::lease::is_open_for_writing;
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_linux::status::read_status;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "creds::files_with_the_user_s_rights",
        needs: Needs::Root,
        run: files_with_the_users_rights,
    },
    Test {
        name: "creds::out_of_the_user_s_reach",
        needs: Needs::Root,
        run: out_of_the_users_reach,
    },
    Test {
        name: "creds::only_root_can_make_one",
        needs: Needs::Root,
        run: only_root_can_make_one,
    },
    Test {
        name: "creds::a_deputy_sees_writers_of_others_files",
        needs: Needs::Root,
        run: a_deputy_sees_writers_of_others_files,
    },
];

const SERVICE: u32 = 31_000;
const USER: u32 = 32_000;
const GROUP: u32 = 32_001;
const EXTRA: u32 = 32_002;

fn files_with_the_users_rights() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("chmod");
    let make = |name: &str, uid, gid, mode| {
        fs::write(path(name), name).expect("a file");
        chown(path(name), Some(uid), Some(gid)).expect("chown");
        fs::set_permissions(path(name), Permissions::from_mode(mode)).expect("chmod");
    };
    make("user's", USER, 0, 0o600);
    make("group's", 0, GROUP, 0o640);
    make("extra", 0, EXTRA, 0o640);
    make("service's", SERVICE, SERVICE, 0o600);
    make("root's", 0, 0, 0o600);

    let Fork::Parent { pid, .. } = process::fork().expect("fork") else {
        become_deputy(SERVICE, SERVICE, USER, GROUP, &[EXTRA]).expect("a deputy");
        assert_eq!((fsuid(), fsgid()), (USER, GROUP));
        let me = std::process::id().cast_signed();
        let status = read_status(me).expect("our status");
        assert_eq!(status.uids, [SERVICE, SERVICE, SERVICE, USER]);
        assert_eq!(status.gids, [SERVICE, SERVICE, SERVICE, GROUP]);
        assert_eq!(status.groups, [EXTRA]);
        assert!(status.no_new_privs);
        let text = fs::read_to_string("/proc/self/status").expect("our status");
        // CAP_LEASE and nothing else.
        for (set, what) in [
            ("CapInh", "0000000000000000"),
            ("CapPrm", "0000000010000000"),
            ("CapEff", "0000000010000000"),
            ("CapBnd", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            assert!(text.contains(&format!("{set}:\t{what}\n")), "{text}");
        }
        for name in ["user's", "group's", "extra"] {
            assert_eq!(fs::read_to_string(path(name)).expect("allowed"), name);
        }
        for name in ["service's", "root's"] {
            let refused = fs::read(path(name)).expect_err("forbidden");
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{name}");
        }
        fs::write(path("new"), "").expect("a file of the user's");
        assert!(chown(path("new"), Some(0), None).is_err());
        // Nothing brings rights back.
        assert!(become_deputy(0, 0, 0, 0, &[]).is_err());
        assert_eq!((fsuid(), fsgid()), (USER, GROUP));
        std::process::exit(0);
    };
    ended_well(pid);
    use std::os::unix::fs::MetadataExt;
    let new = fs::metadata(path("new")).expect("it was made");
    assert_eq!((new.uid(), new.gid()), (USER, GROUP));
}

fn ended_well(pid: i32) {
    let change = process::wait(pid, false).expect("wait").expect("ended");
    assert_eq!(change.state, ChildState::Ended(ExitStatus::Exited(0)));
}

fn out_of_the_users_reach() {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let Fork::Parent { pid: deputy, .. } = process::fork().expect("fork") else {
        become_deputy(SERVICE, SERVICE, USER, GROUP, &[]).expect("a deputy");
        process::set_pdeathsig(libc::SIGKILL).expect("no orphan of a failed test");
        rustix::io::write(&write, b"x").expect("tell");
        loop {
            std::thread::park();
        }
    };
    drop(write);
    File::from(read).read_exact(&mut [0]).expect("it is one");
    let Fork::Parent { pid, .. } = process::fork().expect("fork") else {
        use rustix::process::{Gid, Uid};
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        // Within a session everybody may send SIGCONT.
        rustix::process::setsid().expect("a session");
        let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(GROUP));
        set_thread_groups(&[]).expect("no groups");
        set_thread_res_gid(gid, gid, gid).expect("gid");
        set_thread_res_uid(uid, uid, uid).expect("uid");
        for signal in [0, libc::SIGTERM, libc::SIGKILL, libc::SIGCONT] {
            assert_eq!(process::kill(deputy, signal), Err(Errno::PERM));
        }
        let tracer = wiglaf_linux::trace::Tracer::new();
        assert!(tracer.seize(deputy, 0).is_err());
        assert!(fs::read(format!("/proc/{deputy}/environ")).is_err());
        std::process::exit(0);
    };
    ended_well(pid);
    assert_eq!(process::wait(deputy, true), Ok(None), "the deputy lives");
    process::kill(deputy, libc::SIGKILL).expect("root may");
    process::wait(deputy, false).expect("wait");
}

fn only_root_can_make_one() {
    use rustix::process::Uid;
    let uid = Uid::from_raw(USER);
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("uid");
    assert!(matches!(
        become_deputy(USER, USER, USER, USER, &[]),
        Err(CredsError::Failed {
            errno: Errno::PERM,
            ..
        })
    ));
}

fn a_deputy_sees_writers_of_others_files() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("chmod");
    let path = directory.path().join("root's");
    fs::write(&path, "x").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("chmod");
    let writer = File::options().append(true).open(&path).expect("a writer");
    let Fork::Parent { pid, .. } = process::fork().expect("fork") else {
        become_deputy(SERVICE, SERVICE, USER, GROUP, &[]).expect("a deputy");
        let file = File::open(&path).expect("everybody may read");
        assert_eq!(is_open_for_writing(file.as_fd()), Ok(true));
        // The fork has it too.
        drop(writer);
        std::process::exit(0);
    };
    ended_well(pid);
    drop(writer);
    let Fork::Parent { pid, .. } = process::fork().expect("fork") else {
        become_deputy(SERVICE, SERVICE, USER, GROUP, &[]).expect("a deputy");
        let file = File::open(&path).expect("everybody may read");
        assert_eq!(is_open_for_writing(file.as_fd()), Ok(false));
        assert!(File::options().append(true).open(&path).is_err());
        std::process::exit(0);
    };
    ended_well(pid);
}
