//! What users of a view see.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, unmount};
use wiglaf_view::{Answer, Ask, View, ViewMount};
use wiglaf_wire::stream::ViewAsk;

use crate::deputies::Deputies;
use crate::say;

/// All of them.
pub(crate) const ALL: &[(&str, fn())] = &[
    (
        "shell_and_python_run_in_the_view",
        shell_and_python_run_in_the_view,
    ),
    ("a_tree_reads_the_same", a_tree_reads_the_same),
    ("rights_are_the_users", rights_are_the_users),
    (
        "a_replaced_file_is_seen_and_the_old_stays_open",
        a_replaced_file_is_seen_and_the_old_stays_open,
    ),
    ("a_changed_file_is_read_anew", a_changed_file_is_read_anew),
    ("files_keep_their_identity", files_keep_their_identity),
    ("the_nodes_own_mounts_stay", the_nodes_own_mounts_stay),
    ("a_lost_deputy_comes_back", a_lost_deputy_comes_back),
    (
        "nobody_waits_for_a_lost_deputy",
        nobody_waits_for_a_lost_deputy,
    ),
    (
        "what_is_cached_is_not_asked_again",
        what_is_cached_is_not_asked_again,
    ),
];

/// Two users without names.
/// What the views of these tests have of their own.
const OWN_DIRECTORIES: [&str; 3] = ["proc", "sys", "dev"];
const USER: u32 = 61_001;
const OTHER: u32 = 61_002;
/// Longer than the kernel believes anything.
const AFTER_TTL: Duration = Duration::from_millis(1200);
/// Far above what any of these answers takes.
const SOON: Duration = Duration::from_secs(5);

/// A view with deputies of both users, and a directory of the head to play in.
struct Scene {
    deputies: Arc<Deputies>,
    view: Option<ViewMount>,
    at: PathBuf,
    /// On the head; readable by all.
    files: PathBuf,
    _hidden: tempfile::TempDir,
    _shown: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let hidden = tempfile::tempdir().expect("a directory");
        let shown = tempfile::tempdir().expect("a directory");
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(shown.path(), all).expect("permissions");
        let at = hidden.path().join("view");
        fs::create_dir(&at).expect("a directory");
        let deputies = Deputies::hiding(hidden.path());
        deputies.start(USER);
        deputies.start(OTHER);
        let ask: Arc<dyn Ask + Send + Sync> = deputies.clone();
        let view = View::mount(&at, &OWN_DIRECTORIES, ask).expect("a view");
        Scene {
            deputies,
            view: Some(view),
            at,
            files: shown.path().to_owned(),
            _hidden: hidden,
            _shown: shown,
        }
    }

    fn view(&self) -> View {
        self.view.as_ref().expect("a view").view()
    }

    /// The node's own /proc and /dev.
    fn with_own(self) -> Scene {
        let proc = self.at.join("proc");
        mount("proc", &proc, "proc", MountFlags::empty(), None).expect("/proc");
        mount_bind_recursive("/dev", self.at.join("dev")).expect("/dev");
        self
    }

    /// Runs a shell line as a user whose root is the view.
    fn run(&self, uid: u32, line: &str) -> Output {
        shell(uid, &self.at, line)
    }

    fn says(&self, uid: u32, line: &str) -> String {
        let output = self.run(uid, line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for own in ["proc", "dev"] {
            // Not every test has mounted them.
            let _ = unmount(self.at.join(own), UnmountFlags::DETACH);
        }
        self.view = None;
    }
}

fn shell(uid: u32, root: &Path, line: &str) -> Output {
    command(uid, root, line).output().expect("chroot")
}

fn command(uid: u32, root: &Path, line: &str) -> Command {
    let mut command = Command::new("/usr/sbin/chroot");
    command
        .arg(format!("--userspec={uid}:{uid}"))
        .arg("--groups=")
        .arg(root)
        .args(["/bin/sh", "-c", line])
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    command
}

/// A shell that does `before`, waits while `meanwhile` is done here, and does `after`. Returns
/// what `after` wrote.
fn shell_around(scene: &Scene, before: &str, after: &str, meanwhile: impl FnOnce()) -> String {
    let line = format!("{before}; echo ready; read go; {after}");
    let mut child = command(USER, &scene.at, &line)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("chroot");
    let mut output = child.stdout.take().expect("a pipe");
    let mut ready = [0; 6];
    output.read_exact(&mut ready).expect("it is ready");
    assert_eq!(&ready, b"ready\n");
    meanwhile();
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"go\n").expect("it reads");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("text");
    assert!(child.wait().expect("its end").success(), "{text}");
    text
}

fn natively(uid: u32, line: &str) -> String {
    let output = shell(uid, Path::new("/"), line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn shell_and_python_run_in_the_view() {
    let scene = Scene::new().with_own();
    assert_eq!(scene.says(USER, "echo hi"), "hi\n");
    for line in [
        "ls /usr/bin | wc -l",
        "readlink -f /bin/sh",
        "cd /usr/lib && pwd",
    ] {
        assert_eq!(scene.says(USER, line), natively(USER, line), "{line}");
    }
    if Path::new("/usr/bin/python3").exists() {
        let line = "/usr/bin/python3 -c 'import json; print(json.dumps({\"a\": [1, 2]}))'";
        assert_eq!(scene.says(OTHER, line), "{\"a\": [1, 2]}\n");
    } else {
        say("SKIPPED: no /usr/bin/python3");
    }
}

fn a_tree_reads_the_same() {
    const FILES: usize = 1000;
    let scene = Scene::new().with_own();
    let tree = scene.files.join("tree");
    for number in 0..FILES {
        let directory = tree.join(format!("d{}", number % 7)).join("deep");
        fs::create_dir_all(&directory).expect("a directory");
        // Sizes on both sides of pages and of the longest read.
        let size = if number % 100 == 0 {
            (1 << 20) + number
        } else {
            number * 37 % 9000
        };
        let bytes: Vec<u8> = (0..size)
            .map(|byte| (byte * 31 + number).to_le_bytes()[0])
            .collect();
        fs::write(directory.join(format!("f{number}")), bytes).expect("a file");
        symlink(format!("f{number}"), directory.join(format!("l{number}"))).expect("a link");
    }
    let dir = tree.display();
    let hash =
        format!("cd {dir} && find . -type f -o -type l | sort | xargs sha256sum | sha256sum");
    assert_eq!(scene.says(USER, &hash), natively(USER, &hash));
    // Again, from the node's cache and by the other user's deputy.
    assert_eq!(scene.says(OTHER, &hash), natively(OTHER, &hash));
    let listing = "find /usr/include | sort | sha256sum; ls -lRn /usr/include | sha256sum";
    // Directories' total of blocks is the head's as well.
    assert_eq!(scene.says(USER, listing), natively(USER, listing));
}

fn rights_are_the_users() {
    let scene = Scene::new().with_own();
    let closed = scene.files.join("closed");
    fs::create_dir(&closed).expect("a directory");
    fs::write(closed.join("inside"), "secret").expect("a file");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("permissions");
    chown(&closed, Some(OTHER), Some(OTHER)).expect("owner");
    let file = scene.files.join("mine");
    fs::write(&file, "mine").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("permissions");
    chown(&file, Some(USER), Some(USER)).expect("owner");
    let (file, inside) = (file.display(), closed.join("inside").display().to_string());

    assert_eq!(scene.says(USER, &format!("cat {file}")), "mine");
    assert_eq!(scene.says(OTHER, &format!("cat {inside}")), "secret");
    for (uid, line) in [
        (OTHER, format!("cat {file}")),
        (USER, format!("cat {inside}")),
    ] {
        let output = scene.run(uid, &line);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{line}");
        assert!(error.contains("Permission denied"), "{error}");
    }
    let output = scene.run(USER, &format!("echo more >>{file}"));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("Read-only file system"), "{error}");
    // A user without a deputy here, and wiglaf's own directory.
    assert!(!scene.run(61_003, "true").status.success());
    let own = scene.at.parent().expect("a parent").display();
    let output = scene.run(USER, &format!("ls {own}"));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("No such file"), "{error}");
}

fn a_replaced_file_is_seen_and_the_old_stays_open() {
    let scene = Scene::new().with_own();
    let file = scene.files.join("program");
    fs::write(&file, "old").expect("a file");
    let path = file.display();
    let before = format!("exec 3<{path}");
    let after = format!("cat {path}; cat <&3");
    let text = shell_around(&scene, &before, &after, || {
        fs::write(scene.files.join("new"), "new!").expect("a file");
        fs::rename(scene.files.join("new"), &file).expect("a rename");
        std::thread::sleep(AFTER_TTL);
    });
    assert_eq!(text, "new!old");
}

fn a_changed_file_is_read_anew() {
    let scene = Scene::new();
    let file = scene.files.join("changing");
    let line = format!("cat {}", file.display());
    for text in ["first", "again", "and longer"] {
        fs::write(&file, text).expect("a file");
        std::thread::sleep(AFTER_TTL);
        assert_eq!(scene.says(USER, &line), text);
    }
    fs::remove_file(&file).expect("removed");
    std::thread::sleep(AFTER_TTL);
    assert!(!scene.run(USER, &line).status.success());
    fs::write(&file, "back").expect("a file");
    std::thread::sleep(AFTER_TTL);
    assert_eq!(scene.says(USER, &line), "back");
}

fn files_keep_their_identity() {
    let scene = Scene::new();
    let (one, two) = (scene.files.join("one"), scene.files.join("two"));
    fs::write(&one, "x").expect("a file");
    fs::hard_link(&one, &two).expect("a link");
    let fifo = scene.files.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .expect("a FIFO");
    let line = format!(
        "stat -c '%i %h %s %Y %a %u %F' {} {} {}",
        one.display(),
        two.display(),
        fifo.display()
    );
    assert_eq!(scene.says(USER, &line), natively(USER, &line));
    let ino = fs::metadata(&one).expect("metadata").ino().to_string();
    assert!(scene.says(USER, &line).starts_with(&ino));
}

fn the_nodes_own_mounts_stay() {
    let scene = Scene::new().with_own();
    assert_eq!(scene.says(USER, "cat /proc/sys/kernel/ostype"), "Linux\n");
    std::thread::sleep(AFTER_TTL);
    // Neither root nor this user has a deputy.
    assert!(fs::metadata(scene.at.join("unknown")).is_err());
    assert!(scene.run(61_003, "cat /proc/version").stdout.is_empty());
    assert!(fs::metadata(scene.at.join("proc/version")).is_ok());
    assert_eq!(scene.says(USER, "cat /proc/sys/kernel/ostype"), "Linux\n");
}

fn a_lost_deputy_comes_back() {
    let scene = Scene::new();
    let file = scene.files.join("file");
    fs::write(&file, "kept").expect("a file");
    let path = file.display();
    let before = format!("exec 3<{path}");
    let after = format!("cat <&3; cat {path}");
    let text = shell_around(&scene, &before, &after, || {
        scene.deputies.kill(USER);
        scene.view().fail_all(USER);
        scene.deputies.start(USER);
    });
    assert_eq!(text, "keptkept");
}

/// A deputy that takes every question and never answers.
#[derive(Default)]
struct Silent {
    held: std::sync::Mutex<Vec<Answer>>,
}

impl Ask for Silent {
    fn ask(&self, _: u32, _: ViewAsk, reply: Answer) {
        self.held.lock().expect("lock").push(reply);
    }
}

fn nobody_waits_for_a_lost_deputy() {
    let directory = tempfile::tempdir().expect("a directory");
    let silent = Arc::new(Silent::default());
    let view = View::mount(directory.path(), &OWN_DIRECTORIES, silent).expect("a view");
    let asking = || {
        let (sender, receiver) = channel();
        let path = directory.path().join("file");
        std::thread::spawn(move || {
            let mut text = String::new();
            let result = fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
            let _ = sender.send(result.map_err(|error| error.kind()));
        });
        receiver
    };
    let waiting = asking();
    assert!(
        waiting.recv_timeout(Duration::from_millis(300)).is_err(),
        "answered by nobody"
    );
    // What the kernel asks for the root itself waits as well: end both.
    let until = Instant::now() + SOON;
    let result = loop {
        view.view().fail_all(0);
        match waiting.recv_timeout(Duration::from_millis(50)) {
            Ok(result) => break result,
            Err(_) => assert!(Instant::now() < until, "still waiting"),
        }
    };
    assert_eq!(result, Err(ErrorKind::NotConnected));
    let waiting = asking();
    std::thread::sleep(Duration::from_millis(100));
    drop(view);
    assert!(waiting.recv_timeout(SOON).expect("an answer").is_err());
}

fn what_is_cached_is_not_asked_again() {
    let scene = Scene::new();
    let file = scene.files.join("big");
    fs::write(&file, vec![7; 8 << 20]).expect("a file");
    let line = format!("sha256sum {}", file.display());
    let expected = natively(USER, &line);
    assert_eq!(scene.says(USER, &line), expected);
    let first = scene.deputies.reads();
    assert!(first.iter().sum::<u32>() >= 8 << 20, "{first:?}");
    say(&format!("8 MiB came in {} reads", first.len()));
    // Root, which looks for users' names in /etc when it runs the shell, has no deputy.
    std::thread::sleep(AFTER_TTL);
    assert_eq!(scene.says(USER, &line), expected);
    // A kernel that is short of memory may have dropped some of it.
    let again: u32 = scene.deputies.reads()[first.len()..].iter().sum();
    assert!(again < 2 << 20, "{again} bytes were read again");
}
