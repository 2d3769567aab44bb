//! The node's pipes and terminals of one task.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use wiglaf_link::{Interest, Poll};
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::launch::{StdioKind, WindowSize};
use wiglaf_wire::stream::Stream;

use super::{RelayError, Target, Task, Tokens};
use crate::relay::port::Port;
use crate::relay::streams::{AtEnd, Sink, Source, Streams};

/// What the child gets: blocking, close-on-exec descriptors, to be closed by the agent once it
/// runs.
#[derive(Debug)]
pub struct ChildStdio {
    /// Standard input, output and error.
    pub fds: [OwnedFd; 3],
    /// The stream that is the task's terminal, if it has one: a session leader makes it its
    /// controlling terminal, and it shall belong to the task's user.
    pub terminal: Option<Stream>,
    /// Pipes and terminals to look at, which were made for the task.
    made: [bool; 3],
}

impl ChildStdio {
    /// Whether one of them is a terminal that is to become the controlling one.
    pub fn controlling_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// What shall belong to the task's user, who may open it again (`/dev/stderr`).
    pub fn to_own(&self) -> impl Iterator<Item = &OwnedFd> {
        let is_one = |stream: &Stream| self.made[stream.index()] || self.terminal == Some(*stream);
        let streams = Stream::ALL.into_iter().filter(is_one);
        streams.map(|stream| &self.fds[stream.index()])
    }
}

/// The agent's ends.
pub(super) struct Ends {
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    master: Option<Master>,
}

struct Master {
    fd: OwnedFd,
    takes_input: bool,
    gives: Option<Stream>,
}

pub(super) fn make(
    task: TaskId,
    stdio: [StdioKind; 3],
    window: WindowSize,
    terminals: &Path,
) -> Result<(ChildStdio, Ends), RelayError> {
    let pipe_error = |errno| RelayError::Pipe { task, errno };
    let mut slave = None;
    let mut ends = Ends {
        input: None,
        outputs: [None, None],
        master: None,
    };
    let is_terminal = |stream: &Stream| stdio[stream.index()] == StdioKind::Terminal;
    let terminal = Stream::ALL.into_iter().find(is_terminal);
    if terminal.is_some() {
        let (fd, other) = open_terminal(terminals, window, OFlags::RDWR).map_err(|errno| {
            RelayError::Terminal {
                task,
                path: terminals.to_owned(),
                errno,
            }
        })?;
        slave = Some(other);
        let gives = [Stream::Output, Stream::Error]
            .into_iter()
            .find(is_terminal);
        ends.master = Some(Master {
            fd,
            takes_input: is_terminal(&Stream::Input),
            gives,
        });
    }
    let mut made = [false; 3];
    let mut make_one = |stream: Stream| -> Result<OwnedFd, Errno> {
        let kind = stdio[stream.index()];
        if kind == StdioKind::Screen
            && stream != Stream::Input
            && let Ok((ours, theirs)) = open_screen(terminals, window)
        {
            made[stream.index()] = true;
            ends.outputs[usize::from(stream == Stream::Error)] = Some(ours);
            return Ok(theirs);
        }
        match (kind, &slave) {
            (StdioKind::Terminal, Some(slave)) => rustix::io::fcntl_dupfd_cloexec(slave, 0),
            // A node that is out of terminals has pipes: rather no colours than no line.
            (StdioKind::Relayed | StdioKind::Screen, _) => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                made[stream.index()] = true;
                let (ours, theirs) = match stream {
                    Stream::Input => (write, read),
                    Stream::Output | Stream::Error => (read, write),
                };
                rustix::io::ioctl_fionbio(&ours, true)?;
                match stream {
                    Stream::Input => ends.input = Some(ours),
                    Stream::Output => ends.outputs[0] = Some(ours),
                    Stream::Error => ends.outputs[1] = Some(ours),
                }
                Ok(theirs)
            }
            (StdioKind::Null | StdioKind::Terminal | StdioKind::WithOutput, _) => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open("/dev/null", flags, Mode::empty())
            }
        }
    };
    let mut one = |stream| make_one(stream).map_err(pipe_error);
    let input = one(Stream::Input)?;
    let output = one(Stream::Output)?;
    let takes_both = matches!(
        stdio[Stream::Output.index()],
        StdioKind::Relayed | StdioKind::Screen
    );
    let follows = stdio[Stream::Error.index()] == StdioKind::WithOutput && takes_both;
    let error = if follows {
        rustix::io::fcntl_dupfd_cloexec(&output, 0).map_err(pipe_error)?
    } else {
        one(Stream::Error)?
    };
    let fds = [input, output, error];
    let child = ChildStdio {
        fds,
        terminal,
        made,
    };
    Ok((child, ends))
}

/// A new terminal of the task's own `devpts`, whose `ptmx` is there by that name.
fn open_terminal(
    terminals: &Path,
    window: WindowSize,
    access: OFlags,
) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open(terminals.join("ptmx"), flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::from_bits_retain(access.bits()) | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    set_size(&master, window)?;
    Ok((master, slave))
}

/// A terminal to look at. Nobody types there, so that whoever reads it is refused rather than
/// left to wait.
fn open_screen(terminals: &Path, window: WindowSize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (master, slave) = open_terminal(terminals, window, OFlags::WRONLY)?;
    let mut modes = tcgetattr(&master)?;
    modes.output_modes.remove(OutputModes::OPOST);
    tcsetattr(&master, OptionalActions::Now, &modes)?;
    Ok((master, slave))
}

/// Sets a terminal's size; the kernel tells its programs (SIGWINCH).
pub(super) fn set_size(master: &OwnedFd, window: WindowSize) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: window.rows,
        ws_col: window.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size)
}

impl Ends {
    pub(super) fn into_task(
        self,
        poll: &Poll,
        task: TaskId,
        deputy: DeputyId,
        tokens: &mut Tokens,
    ) -> Task {
        let mut streams = Streams::new(task);
        let mut give = |stream: Stream| tokens.give(Target::Stream(task, stream));
        if let Some(fd) = self.input {
            let sink = Sink::new(Port::own(fd), give(Stream::Input), AtEnd::Close, true);
            streams.sinks[Stream::Input.index()] = Some(sink);
        }
        for (stream, fd) in [Stream::Output, Stream::Error]
            .into_iter()
            .zip(self.outputs)
        {
            if let Some(fd) = fd {
                let source = Source::new(Port::own(fd), give(stream), true);
                streams.sources[stream.index()] = Some(source);
            }
        }
        let mut entry = Task {
            deputy,
            streams,
            terminal: None,
            terminal_output: None,
            discard: None,
            main_ended: false,
            settled: false,
        };
        if let Some(master) = self.master {
            entry.set_terminal(poll, master, tokens);
        }
        entry
    }
}

impl Task {
    fn set_terminal(&mut self, poll: &Poll, master: Master, tokens: &mut Tokens) {
        let task = self.streams.task;
        // One descriptor for each use, as epoll knows them by number. Out of descriptors, the
        // terminal is closed, and the task ends by its hang-up.
        let another = || rustix::io::fcntl_dupfd_cloexec(&master.fd, 0);
        if master.takes_input
            && let Ok(fd) = another()
        {
            let token = tokens.give(Target::Stream(task, Stream::Input));
            let sink = Sink::new(Port::own(fd), token, AtEnd::TypeEndOfFile, false);
            self.streams.sinks[Stream::Input.index()] = Some(sink);
        }
        match (master.gives, another()) {
            (Some(stream), Ok(fd)) => {
                let token = tokens.give(Target::Stream(task, stream));
                let source = Source::new(Port::own(fd), token, false);
                self.streams.sources[stream.index()] = Some(source);
                self.terminal_output = Some(stream);
            }
            (None, Ok(fd)) => {
                let token = tokens.give(Target::Discard(task));
                if poll.add(&fd, token, Interest::Read).is_ok() {
                    self.discard = Some((fd, token));
                }
            }
            (_, Err(_)) => return,
        }
        self.terminal = Some(master.fd);
    }
}
