//! What a launch carries: the caller's process, described so that a node can make it again.

use serde::{Deserialize, Serialize};

/// Longest `argv` plus environment that a launch may carry: the kernel's own limit for an
/// eight-megabyte stack (`execve(2)`, a quarter of RLIMIT_STACK).
pub const MAX_SPEC_BYTES: usize = 2 << 20;

/// Who a task runs as, exactly as the kernel told it of the caller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Credential {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted. Empty when the head is rootless: they can't be mapped there.
    pub groups: Vec<u32>,
}

/// A resource limit by its number in `asm-generic/resource.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// RLIMIT_* number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What one of a task's three standard streams is on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdioKind {
    /// `/dev/null` of the node.
    Null,
    /// A pipe, relayed from and to the head by the deputy.
    Relayed,
    /// The task's terminal (all streams that are `Terminal` share one).
    Terminal,
    /// Standard error only: the pipe or screen of standard output, so that what is written to both
    /// keeps its order. Where output is neither, `/dev/null`.
    WithOutput,
    /// Output or error: a terminal to look at, nobody's controlling one, that can't be read and
    /// changes nothing of what is written, as the user's own does that. Relayed as a pipe is.
    Screen,
}

impl StdioKind {
    /// Whether the deputy gets a descriptor for it.
    pub fn has_descriptor(self) -> bool {
        match self {
            StdioKind::Relayed | StdioKind::Terminal | StdioKind::Screen => true,
            StdioKind::Null | StdioKind::WithOutput => false,
        }
    }
}

/// Size of a terminal, as in `ioctl_tty(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// The caller's process: everything that the command inherits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The file to execute, where `argv[0]` does not name it.
    pub program: Option<Vec<u8>>,
    /// The command and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` strings.
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute.
    pub cwd: Vec<u8>,
    /// File mode creation mask.
    pub umask: u32,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// Bit N−1 is set when signal N is ignored.
    pub ignored_signals: u64,
    /// Bit N−1 is set when signal N is blocked.
    pub blocked_signals: u64,
    /// Standard input, output and error.
    pub stdio: [StdioKind; 3],
    /// Size of the terminal, where there is one.
    pub window: WindowSize,
    /// What the main process leaves running is kept (`--leave`).
    pub leave: bool,
    /// What the task puts into `/tmp` and `/var/tmp` stays in the node's memory until it ends.
    pub private_tmp: bool,
    /// What the task has made anew is removed if the cluster fails it.
    pub undo: bool,
    /// The host name that the task sees; the node's own unless given.
    pub host_name: Option<Vec<u8>>,
}

impl LaunchSpec {
    /// A command in `/` with nothing in its environment, its three streams relayed.
    pub fn plain(argv: &[&str]) -> LaunchSpec {
        LaunchSpec {
            program: None,
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: Vec::new(),
            cwd: b"/".to_vec(),
            umask: 0o22,
            limits: Vec::new(),
            ignored_signals: 0,
            blocked_signals: 0,
            stdio: [StdioKind::Relayed; 3],
            window: WindowSize::default(),
            leave: false,
            private_tmp: false,
            undo: false,
            host_name: None,
        }
    }

    /// Whether the task has a terminal of its own.
    pub fn has_terminal(&self) -> bool {
        self.stdio.contains(&StdioKind::Terminal)
    }

    /// The command as a person would type it, for lists and messages.
    pub fn command_line(&self) -> String {
        let words: Vec<_> = self
            .argv
            .iter()
            .map(|word| String::from_utf8_lossy(word))
            .collect();
        words.join(" ")
    }
}
