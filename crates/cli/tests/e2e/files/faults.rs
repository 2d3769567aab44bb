//! What fails on the head fails in the program, and nothing hangs.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wiglaf_linux::process::kill;

use crate::cluster::{ALICE, User, as_user, output_of, text, wait_for};
use crate::files::ground::TestDirectory;
use crate::files::{At, Ground, on_both_grounds};

on_both_grounds! {
    what_is_refused_locally_is_refused(1),
}

const SIGKILL: i32 = 9;
const SIGBUS: i32 = 7;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;
/// Of the small file system.
const SMALL: &str = "size=1m";

/// Writes more than there is room for, in the way that is named, and never says close.
/// The errno that a write is refused with is the exit code.
const FILL: &str = "
import mmap, os, sys
way, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
try:
    if way == 'map':
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, 0)
        for offset in range(0, size, 4096):
            memory[offset] = 1
        os._exit(0)
    for _ in range(size // 65536):
        os.write(fd, b'x' * 65536)
    if way == 'close':
        os.close(fd)
    if way == 'sync':
        os.fsync(fd)
except OSError as error:
    os._exit(error.errno)
os._exit(0)
";

fn fill_command(ground: &Ground, user: User, way: &str, file: &str, size: u32) -> Command {
    ground.command_as(
        user,
        At::Node(1),
        &["python3", "-c", FILL, way, file, &size.to_string()],
    )
}

/// A full disk is told: by the errno, or, where the program never asked, by the cluster.
fn a_full_disk_reaches_the_program(ground: &Ground) {
    let small = ground.dir().join("small");
    for way in ["write", "close", "sync", "map"] {
        let file = small.join(format!("by-{way}")).display().to_string();
        let output = output_of(fill_command(ground, User::Root, way, &file, 4 << 20));
        let errors = text(&output.stderr);
        let told = match output.status.code() {
            Some(ENOSPC) => way != "map",
            // Only an implicit close may leave it to the cluster to say.
            Some(125) => (way == "write" || way == "map") && errors.contains(&file),
            None => way == "map" && output.status.signal() == Some(SIGBUS),
            _ => false,
        };
        assert!(told, "{way}: {} {errors}", output.status);
        // With room again it goes on.
        fs::remove_file(&file).unwrap();
        let fits = output_of(fill_command(ground, User::Root, way, &file, 256 << 10));
        assert_eq!(fits.status.code(), Some(0), "{way}: {}", text(&fits.stderr));
        let content = fs::read(&file).unwrap();
        assert_eq!(content.len(), 256 << 10, "{way}");
        assert!(content.iter().step_by(4096).all(|byte| *byte != 0), "{way}");
        fs::remove_file(&file).unwrap();
    }
    // No inode left, and what a shell says of a full disk.
    let script = format!("cd {} && head -c 2000000 /dev/zero >zeros", small.display());
    let output = ground.run(At::Node(1), &["sh", "-c", &script]);
    assert_ne!(output.status.code(), Some(0));
    let said = text(&output.stderr);
    assert!(said.contains("No space left"), "{said}");
}

/// A directory with a small file system in it.
fn small(name: &str) -> Option<TestDirectory> {
    let mut dir = TestDirectory::new(name)?;
    assert!(dir.mount("small", &["-t", "tmpfs", "-o", SMALL, "none"]));
    Some(dir)
}

/// An ext4 with quota, in a file; whether the kernel has such a thing.
fn with_quota(dir: &mut TestDirectory) -> bool {
    let image = dir.path().join("quota.ext4").display().to_string();
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let mut make = Command::new("mkfs.ext4");
    make.args([
        "-q",
        "-O",
        "quota",
        "-E",
        "quotatype=usrquota,lazy_itable_init=0",
        &image,
    ]);
    assert!(output_of(make).status.success());
    if !dir.mount("quota", &["-o", "loop,usrquota", &image]) {
        return false;
    }
    // setquota is in no package that everybody has: quotactl_fd(2).
    let script = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDONLY)
# dqb_b{hard,soft}limit in KiB, curspace, i{hard,soft}limit, curinodes, btime, itime, valid
limits = struct.pack('8QI4x', 512, 512, 0, 0, 0, 0, 0, 0, 1)
if libc.syscall(443, fd, 0x80000800 - (1 << 32), int(sys.argv[2]), limits):
    sys.exit(os.strerror(ctypes.get_errno()))
";
    let mut set = as_user(User::Root, "python3".as_ref());
    set.args(["-c", script])
        .arg(dir.path().join("quota"))
        .arg("54321");
    let output = output_of(set);
    assert!(output.status.success(), "{}", text(&output.stderr));
    true
}

fn a_quota_reaches_the_program(ground: &Ground) {
    let limited = ground.dir().join("quota");
    ground.sh(At::Head, &format!("chmod 777 {}", limited.display()));
    for way in ["write", "close", "sync"] {
        let file = limited.join(format!("by-{way}")).display().to_string();
        let output = output_of(fill_command(ground, ALICE, way, &file, 4 << 20));
        let errors = text(&output.stderr);
        let told = match output.status.code() {
            Some(EDQUOT) => true,
            Some(125) => way == "write" && errors.contains(&file),
            _ => false,
        };
        assert!(told, "{way}: {} {errors}", output.status);
        fs::remove_file(&file).unwrap();
    }
}

mod on_a_small_disk {
    use super::*;

    #[test]
    fn natively() {
        let Some(dir) = small("native-small") else {
            return;
        };
        let ground = Ground::native_in(dir, 1);
        a_full_disk_reaches_the_program(&ground);
        ground.down();
    }

    #[test]
    fn through_the_view() {
        let Some(ground) = small("small").and_then(|dir| Ground::view_in(dir, 1)) else {
            return;
        };
        a_full_disk_reaches_the_program(&ground);
        ground.down();
    }

    #[test]
    fn a_quota() {
        for is_view in [false, true] {
            let Some(mut dir) = TestDirectory::new(&format!("quota-{is_view}")) else {
                return;
            };
            if !with_quota(&mut dir) {
                return crate::cluster::skip("this kernel has no disk quotas (CONFIG_QFMT_V2)");
            }
            let ground = if is_view {
                Ground::view_in(dir, 1)
            } else {
                Some(Ground::native_in(dir, 1))
            };
            let Some(ground) = ground else {
                return;
            };
            a_quota_reaches_the_program(&ground);
            ground.down();
        }
    }
}

fn what_is_refused_locally_is_refused(ground: &Ground) {
    let top = ground.path("closed");
    ground.sh(At::Head, &format!("mkdir -m 755 {top}; cd {top}; echo x >secret; chmod 600 secret; mkdir -m 700 inner; echo x >inner/file; echo x >open"));
    for (script, why) in [
        (format!("cat {top}/secret"), "Permission denied"),
        (format!("cat {top}/inner/file"), "Permission denied"),
        (format!("ls {top}/inner"), "Permission denied"),
        (format!("echo x >{top}/new"), "Permission denied"),
        (format!("echo x >{top}/open"), "Permission denied"),
        (format!("rm -f {top}/open"), "Permission denied"),
        (format!("mv {top}/open {top}/moved"), "Permission denied"),
        (format!("ln {top}/open {top}/linked"), "ermi"),
        (format!("touch -d 2001-01-01 {top}/open"), "ermi"),
        (format!("chmod 777 {top}/open"), "not permitted"),
        (format!("chown 54321 {top}/open"), "not permitted"),
        (format!("setfacl -m u:54321:rw {top}/open"), "not permitted"),
        (format!("cat {top}/absent"), "No such file"),
        (format!("cd {top}/inner"), "can't cd"),
        (format!("mkdir {top}/open/x"), "Not a directory"),
    ] {
        let output = ground.run_as(ALICE, At::Node(1), &["sh", "-c", &script]);
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && said.contains(why),
            "{script}: {} {said}",
            output.status
        );
    }
    let left = ground.sh(
        At::Head,
        &format!("cd {top}; ls -A; cat open secret inner/file"),
    );
    assert_eq!(left, "inner\nopen\nsecret\nx\nx\nx\n");
}

/// Tasks of a node that read all the time, and their cluster.
fn readers(ground: &Ground, count: usize, script: &str) -> Vec<Child> {
    let started: Vec<Child> = (0..count)
        .map(|number| {
            let mut command = ground.command(At::Node(1), &["sh", "-c", script]);
            // A file: of a pipe the ghost keeps no copy that it could speak to.
            let said = fs::File::create(ground.path(&format!("said-{number}"))).unwrap();
            command.stdout(Stdio::null()).stderr(said);
            command.spawn().unwrap()
        })
        .collect();
    let cluster = ground.cluster().expect("a cluster");
    wait_for(
        "the tasks",
        || cluster.remote_commands().len() >= count,
        String::new,
    );
    started
}

#[test]
fn p4_a_killed_deputy_ends_its_tasks_and_hangs_nobody() {
    let Some(ground) = Ground::view("deputy", 1) else {
        return;
    };
    let cluster = ground.cluster().expect("a cluster");
    let script = "while :; do find /usr/include /usr/lib -type f | head -2000 | xargs cat; done";
    let tasks = readers(&ground, 2, script);
    std::thread::sleep(Duration::from_millis(300));
    for deputy in cluster.daemon("wiglaf: deputy") {
        kill(deputy, SIGKILL).unwrap();
    }
    for (number, mut task) in tasks.into_iter().enumerate() {
        let status = task.wait().unwrap();
        let said = fs::read_to_string(ground.path(&format!("said-{number}"))).unwrap();
        assert_eq!(status.code(), Some(125), "{said}");
        assert!(said.contains("deputy"), "{said}");
    }
    // Another one serves what comes next, from the files as they are.
    let file = ground.path("after");
    fs::write(&file, "still here").unwrap();
    assert_eq!(ground.ok(At::Node(1), &["cat", &file]), "still here");
    assert_eq!(
        ground.sh(At::Node(1), &format!("echo more >>{file}; wc -c <{file}")),
        "15\n"
    );
    ground.down();
}

#[test]
fn p4_killing_the_head_disturbs_no_writer() {
    let Some(ground) = Ground::view("head", 1) else {
        return;
    };
    let cluster = ground.cluster().expect("a cluster");
    let log = ground.path("log");
    let script = format!(
        "i=0; while [ $i -lt 60 ]; do echo $i >>{log}; cp {log} {log}.copy; mv {log}.copy {log}.moved; \
         i=$((i + 1)); sleep 0.02; done"
    );
    let task = readers(&ground, 1, &script).remove(0);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        for pid in cluster.daemon("wiglaf: head") {
            kill(pid, SIGKILL).unwrap();
        }
        wait_for(
            "another head",
            || cluster.wiglaf(&["nodes", "--wait", "1"]).status.success(),
            String::new,
        );
    }
    let output = task.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{} {}",
        output.status,
        text(&output.stderr)
    );
    let expected: String = (0..60).map(|number| format!("{number}\n")).collect();
    assert_eq!(fs::read_to_string(&log).unwrap(), expected);
    assert_eq!(
        fs::read_to_string(format!("{log}.moved")).unwrap(),
        expected
    );
    ground.down();
}

#[test]
fn down_with_files_open_mapped_and_locked_never_hangs() {
    let Some(ground) = Ground::view("down", 2) else {
        return;
    };
    let cluster = ground.cluster().expect("a cluster");
    let top = ground.open_directory("busy");
    ground.sh(
        At::Head,
        &format!("cd {top}; head -c 8000000 /dev/zero >big; >lock; mkfifo fifo; mkdir here"),
    );
    let python = |code: &str| format!("exec python3 -c \"import fcntl, mmap, os, time\n{code}\"");
    let scripts = [
        format!("cd {top}/here; sleep 1000"),
        format!("cat {top}/fifo"),
        format!("while :; do cat {top}/big >/dev/null; done"),
        format!("while :; do head -c 300000 /dev/zero >{top}/written$$; done"),
        format!("exec 9>>{top}/lock; flock 9; sleep 1000"),
        format!("sleep 0.5; exec 9>>{top}/lock; flock 9; sleep 1000"),
        python(&format!(
            "m = mmap.mmap(os.open('{top}/big', os.O_RDWR), 0)\nm[5] = 5\ntime.sleep(1000)"
        )),
        python(&format!(
            "f = os.open('{top}/gone', os.O_RDWR | os.O_CREAT)\nos.unlink('{top}/gone')\nos.write(f, b'x' * 9999)\ntime.sleep(1000)"
        )),
    ];
    let tasks: Vec<Child> = scripts
        .iter()
        .enumerate()
        .map(|(number, script)| {
            let node = At::Node(1 + u32::try_from(number % 2).unwrap());
            let mut command = ground.command(node, &["sh", "-c", script]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    wait_for(
        "the tasks",
        || cluster.remote_commands().len() >= scripts.len(),
        String::new,
    );
    std::thread::sleep(Duration::from_millis(700));
    let begun = Instant::now();
    // Shows too that no process and no mount is left.
    ground.down();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    for mut task in tasks {
        assert!(!task.wait().unwrap().success());
    }
}

#[test]
fn a_killed_agent_leaves_locks_and_files_to_others() {
    let Some(ground) = Ground::view("agent", 2) else {
        return;
    };
    let cluster = ground.cluster().expect("a cluster");
    let file = ground.path("lock");
    fs::write(&file, "").unwrap();
    let mut holder = ground.place(At::Node(1));
    holder.ask(&format!("opened('l', '{file}', os.O_RDWR)"));
    holder.ask("lock('posix', 'l', EXCLUSIVE)");
    let mut other = ground.place(At::Node(2));
    other.ask(&format!("opened('l', '{file}', os.O_RDWR)"));
    other.send("lock('posix', 'l', EXCLUSIVE, wait=True)");
    assert!(other.answer_within(Duration::from_millis(100)).is_none());
    kill(cluster.agent("n1"), SIGKILL).unwrap();
    assert_eq!(holder.finish(), Some(125));
    other.answer().unwrap();
    other.ask("os.pwrite(kept['l'], b'mine', 0)");
    other.ask("closed('l')");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    drop(other);
    ground.down();
}
