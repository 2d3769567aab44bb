//! The head: somebody who changes files there, and how they are.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::kernel::Seen;

/// A shell: it changes files as another process than the test's, whose own changes the watch takes
/// for the deputy's.
pub(crate) struct Somebody {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Somebody {
    pub(crate) fn new(at: &Path) -> Somebody {
        let mut child = Command::new("sh")
            .current_dir(at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Somebody {
            child,
            orders,
            answers,
        }
    }

    pub(crate) fn begin(&mut self, command: &str) {
        writeln!(self.orders, "( {command} ) </dev/null >/dev/null\necho $?").expect("sh reads");
        self.orders.flush().expect("sh reads");
    }

    /// Waits for the command's end; its exit code as text.
    pub(crate) fn end(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("sh answers");
        line.trim_end().to_owned()
    }

    pub(crate) fn run(&mut self, command: &str) -> String {
        self.begin(command);
        self.end()
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What there is, as a program on a node has to see it.
pub(crate) fn truth(path: &Path) -> Option<Seen> {
    let stat = fs::symlink_metadata(path).ok()?;
    Some(Seen {
        ino: stat.ino(),
        mode: stat.mode(),
        links: u32::try_from(stat.nlink()).expect("few"),
        size: stat.is_file().then_some(stat.size()),
        modified: (stat.mtime(), stat.mtime_nsec()),
        changed: (stat.ctime(), stat.ctime_nsec()),
        content: stat.is_file().then(|| fs::read(path).expect("readable")),
    })
}
