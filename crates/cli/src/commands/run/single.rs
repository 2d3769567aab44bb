//! One task: this process itself becomes its ghost, so that `$!`, `kill`, `wait`, Ctrl-Z and the
//! exit status in the user's shell are the remote process's own.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::PipeFlags;
use wiglaf_linux::ghost::{GhostRequest, exec_ghost};
use wiglaf_linux::process::set_ptracer_any;
use wiglaf_wire::client::{Reply, Request, RunRequest};
use wiglaf_wire::id::Pid;
use wiglaf_wire::keeper::GhostMode;
use wiglaf_wire::launch::LaunchSpec;

use super::{Args, HEAD_RETURN_POLL, HEAD_RETURN_WAIT, Placed, StdinFor, expand, relayed_count};
use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;

/// A ghost's descriptors, and those that go to its keeper and deputy.
pub(super) struct GhostKit {
    pub(super) mode: GhostMode,
    /// The ghost's end of its control socket.
    pub(super) control: OwnedFd,
    /// The keeper's end, then the task's streams.
    pub(super) parcel: Vec<OwnedFd>,
    /// Where the ghost puts what it reads from the terminal.
    pub(super) pump: Option<OwnedFd>,
}

pub(super) fn run(
    args: &Args,
    mut head: Head,
    request: RunRequest,
    spec: &LaunchSpec,
    placed: &Placed,
) -> CommandResult {
    let node = placed.nodes.first().map_or("", |(_, name)| name);
    let streams = streams(args, node, 0, spec)?;
    let kit = kit(streams)?;
    // Under Yama only a declared tracer may seize an ordinary user's process; the keeper is
    // declared by nobody's PID here, so for the moment of the seizing anybody of this user is.
    let _ = set_ptracer_any(true);
    dump_no_core();
    launch(&mut head, request, &kit)?;
    let _ = set_ptracer_any(false);
    drop(head);
    match become_ghost(spec, &kit) {
        Ok(never) => match never {},
        Err(error) => Err(error),
    }
}

/// A ghost that has to die by a dumping signal would overwrite the user's `core`. 1 rather than 0
/// also keeps a piped core pattern from running (core(5)).
pub(crate) fn dump_no_core() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let found = getrlimit(Resource::Core);
    let soft = found.maximum.map_or(1, |hard| hard.min(1));
    let _ = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(soft),
            maximum: found.maximum,
        },
    );
}

/// Where the three streams of a task come from and go to.
pub(super) struct Streams {
    pub(super) stdin: Stdin,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) raw: bool,
}

/// A task's standard input.
pub(super) enum Stdin {
    /// The deputy reads it.
    Direct(OwnedFd),
    /// The ghost reads the terminal, so that the kernel decides who may.
    Terminal,
}

fn streams(
    args: &Args,
    node: &str,
    task: usize,
    spec: &LaunchSpec,
) -> Result<Streams, CommandError> {
    let stdin = match &args.input {
        Some(path) => Stdin::Direct(open_input(&expand(path, node, task))?),
        None if args.stdin == StdinFor::Nobody => Stdin::Direct(open_input("/dev/null".as_ref())?),
        None if rustix::termios::isatty(rustix::stdio::stdin()) => Stdin::Terminal,
        None => Stdin::Direct(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 10)?),
    };
    Ok(Streams {
        stdin,
        stdout: match &args.output {
            Some(path) => open_output(&expand(path, node, task))?,
            None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 10)?,
        },
        stderr: match &args.error {
            Some(path) => open_output(&expand(path, node, task))?,
            None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 10)?,
        },
        raw: spec.has_terminal(),
    })
}

pub(super) fn open_input(path: &std::path::Path) -> Result<OwnedFd, CommandError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|error| CommandError::new(format!("{}: {error}", path.display())))
}

pub(super) fn open_output(path: &std::path::Path) -> Result<OwnedFd, CommandError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|error| CommandError::new(format!("{}: {error}", path.display())))
}

/// Makes the sockets and pipes around a ghost.
pub(super) fn kit(streams: Streams) -> Result<GhostKit, CommandError> {
    let (control, keepers) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let (stdin, pump) = match streams.stdin {
        Stdin::Direct(fd) => (fd, None),
        Stdin::Terminal => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        }
    };
    Ok(GhostKit {
        mode: GhostMode {
            pump: pump.is_some(),
            raw: streams.raw,
        },
        control,
        parcel: vec![keepers, stdin, streams.stdout, streams.stderr],
        pump,
    })
}

/// Names this process as the ghost and waits until it is seized. A head that is killed meanwhile
/// and restarted is asked again; it knows from the keeper what it had begun.
fn launch(head: &mut Head, request: RunRequest, kit: &GhostKit) -> Result<(), CommandError> {
    let Err(error) = name_itself(head, kit).and_then(|()| wait_go(head)) else {
        return Ok(());
    };
    if !error.is_connection_lost() {
        return Err(error);
    }
    let deadline = Instant::now() + HEAD_RETURN_WAIT;
    while Instant::now() < deadline {
        std::thread::sleep(HEAD_RETURN_POLL);
        let Ok(mut again) = Head::connect() else {
            continue;
        };
        let attempt = super::place(&mut again, request.clone())
            .and_then(|_| name_itself(&mut again, kit))
            .and_then(|()| wait_go(&mut again));
        match attempt {
            Err(error) if error.is_connection_lost() => {}
            other => return other,
        }
    }
    Err(
        CommandError::new("the head went away while this was launched, and did not come back")
            .hint("`wiglaf up` starts it again; then run the command again"),
    )
}

fn name_itself(head: &mut Head, kit: &GhostKit) -> Result<(), CommandError> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let copies = kit
        .parcel
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 10))
        .collect::<Result<Vec<_>, _>>()?;
    name_ghost(head, 0, pid, kit.mode, copies)
}

/// Tells the head which process is the ghost of a task, and passes what it needs of it.
pub(super) fn name_ghost(
    head: &mut Head,
    index: usize,
    pid: i32,
    mode: GhostMode,
    parcel: Vec<OwnedFd>,
) -> Result<(), CommandError> {
    let index = u32::try_from(index)?;
    let pid = Pid(pid);
    head.send(&Request::Ghost { index, pid, mode }, parcel)
}

fn wait_go(head: &mut Head) -> Result<(), CommandError> {
    match head.next()? {
        Reply::Go { .. } => Ok(()),
        other => Err(CommandError::from_reply(other)),
    }
}

fn become_ghost(spec: &LaunchSpec, kit: &GhostKit) -> Result<Infallible, CommandError> {
    debug_assert!(relayed_count(spec) <= 3, "a task has three streams");
    let argv = argv(spec)?;
    let null = open_input("/dev/null".as_ref())?;
    let stdin = if kit.pump.is_some() {
        rustix::stdio::stdin()
    } else {
        null.as_fd()
    };
    let error = exec_ghost(&GhostRequest {
        argv: &argv,
        // Its environment is the task's, on the node; here it would only take memory.
        env: &[],
        control: kit.control.as_fd(),
        stdin: Some(stdin),
        stdin_pipe: kit.pump.as_ref().map(AsFd::as_fd),
        stderr: Some(ghost_stderr(&null)),
        group: None,
        dies_with_parent: false,
    });
    Err(CommandError::new(format!(
        "this process can't become the ghost: {error}"
    )))
}

/// A ghost keeps no pipe open: whoever reads it waits for its end.
pub(super) fn ghost_stderr(null: &OwnedFd) -> std::os::fd::BorrowedFd<'_> {
    let stderr = rustix::stdio::stderr();
    let is_pipe = rustix::fs::fstat(stderr).is_ok_and(|stat| {
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        matches!(
            kind,
            rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket
        )
    });
    if is_pipe { null.as_fd() } else { stderr }
}

/// The remote command line, for the ghost's own.
pub(super) fn argv(spec: &LaunchSpec) -> Result<Vec<CString>, CommandError> {
    Ok(spec
        .argv
        .iter()
        .map(|word| CString::new(word.clone()))
        .collect::<Result<_, _>>()?)
}
