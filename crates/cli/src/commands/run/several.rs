//! Several tasks: this process stays as the parent of their ghosts, in one process group with
//! them, and ends when the last has ended.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::PipeFlags;
use wiglaf_link::{Channel, Interest, Poll, Token};
use wiglaf_linux::ghost::{GhostRequest, spawn_ghost};
use wiglaf_linux::process::{ChildState, ExitStatus, kill, wait_any_child};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::launch::LaunchSpec;

use super::gather::{Show, TaskOutput, print_gathered, print_in_turn, print_json};
use super::single::{
    Stdin, Streams, argv, dump_no_core, ghost_stderr, kit, name_ghost, open_input, open_output,
};
use super::{Args, Placed, StdinFor, expand};
use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;
use crate::output;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
/// Sent by the kernel, here the terminal (sigaction(2), SI_KERNEL).
const SI_KERNEL: i32 = 0x80;

const HEAD: Token = Token(0);
const SIGNALS: Token = Token(1);
/// Output pipes: two for each task from here on.
const FIRST_PIPE: u64 = 2;
const READ_BYTES: usize = 64 << 10;

pub(super) fn run(args: &Args, head: Head, spec: &LaunchSpec, placed: &Placed) -> CommandResult {
    dump_no_core();
    if args.detach {
        return detach(args, head, spec, placed);
    }
    let show = args.show();
    // Before there are children whose end could be missed.
    let handled = SignalSet::of(&[SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP]);
    block_signals(handled);
    let signals = SignalFd::new(handled)?;
    let mut family = Family::start(args, head, spec, placed, show)?;
    family.serve(&signals)?;
    family.finish(show)
}

/// Starts the ghosts in process groups of their own, and returns.
fn detach(args: &Args, mut head: Head, spec: &LaunchSpec, placed: &Placed) -> CommandResult {
    let mut ghosts = Vec::new();
    for index in 0..placed.nodes.len() {
        let null = open_input("/dev/null".as_ref())?;
        let streams = Streams {
            stdin: Stdin::Direct(null.try_clone()?),
            stdout: null.try_clone()?,
            stderr: null.try_clone()?,
            raw: false,
        };
        let mut kit = kit(streams)?;
        // The head opens the log files itself.
        kit.parcel.truncate(1);
        let argv = argv(spec)?;
        let ghost = spawn_ghost(&GhostRequest {
            argv: &argv,
            // Its environment is the task's, on the node; here it would only take memory.
            env: &[],
            control: kit.control.as_fd(),
            stdin: None,
            stdin_pipe: None,
            stderr: None,
            // A group of its own: the terminal's Ctrl-C is not for it.
            group: Some(0),
            dies_with_parent: false,
        })?;
        let pid = ghost.pid;
        name_ghost(&mut head, index, pid, kit.mode, kit.parcel)?;
        ghosts.push(pid);
    }
    for _ in &ghosts {
        match head.next()? {
            Reply::Go { .. } => {}
            other => {
                for pid in &ghosts {
                    let _ = kill(*pid, SIGKILL);
                }
                return Err(CommandError::from_reply(other));
            }
        }
    }
    if args.verbose {
        eprintln!("wiglaf: `wiglaf logs -f {}` shows its output", placed.job);
    }
    output::print(&format!("{}\n", placed.job))?;
    Ok(0)
}

/// The ghosts and what they write.
struct Family {
    poll: Poll,
    head: Option<Channel<Reply, Request>>,
    ghosts: Vec<(i32, Option<ExitStatus>)>,
    outputs: Vec<TaskOutput>,
    pipes: Vec<Option<std::fs::File>>,
    show: Show,
    awaited: usize,
    refused: bool,
}

impl Family {
    fn start(
        args: &Args,
        mut head: Head,
        spec: &LaunchSpec,
        placed: &Placed,
        show: Show,
    ) -> Result<Family, CommandError> {
        let poll = Poll::new()?;
        let mut pipes = Vec::new();
        let mut inputs = Vec::new();
        let mut ghosts = Vec::new();
        let argv = argv(spec)?;
        let null = open_input("/dev/null".as_ref())?;
        for (index, (_, node)) in placed.nodes.iter().enumerate() {
            let streams = streams(args, show, index, node, &mut pipes, &mut inputs)?;
            let kit = kit(streams)?;
            let ghost = spawn_ghost(&GhostRequest {
                argv: &argv,
                // Its environment is the task's, on the node; here it would only take memory.
                env: &[],
                control: kit.control.as_fd(),
                stdin: None,
                stdin_pipe: None,
                stderr: Some(ghost_stderr(&null)),
                group: None,
                // When the launcher disappears, nothing keeps spinning on the nodes.
                dies_with_parent: true,
            })?;
            let pid = ghost.pid;
            ghosts.push((pid, None));
            name_ghost(&mut head, index, pid, kit.mode, kit.parcel)?;
        }
        feed(inputs)?;
        let head = head.into_channel()?;
        poll.add(&head, HEAD, Interest::Read)?;
        for (number, pipe) in (FIRST_PIPE..).zip(&pipes) {
            if let Some(pipe) = pipe {
                poll.add(pipe, Token(number), Interest::Read)?;
            }
        }
        let longest_line = args.show.map(|(_, bytes)| bytes);
        let outputs = placed
            .nodes
            .iter()
            .map(|(id, name)| TaskOutput::new(id.0, name.clone(), longest_line))
            .collect();
        let awaited = ghosts.len();
        Ok(Family {
            poll,
            head: Some(head),
            ghosts,
            outputs,
            pipes,
            show,
            awaited,
            refused: false,
        })
    }

    fn is_over(&self) -> bool {
        self.ghosts.iter().all(|(_, end)| end.is_some()) && self.pipes.iter().all(Option::is_none)
    }

    fn serve(&mut self, signals: &SignalFd) -> Result<(), CommandError> {
        self.poll.add(signals, SIGNALS, Interest::Read)?;
        let mut ready = Vec::new();
        while !self.is_over() {
            self.poll.wait(&mut ready, None)?;
            for event in &ready {
                match event.token {
                    HEAD => self.hear_head(),
                    SIGNALS => self.take_signals(signals)?,
                    Token(number) => self.read_pipe(number)?,
                }
            }
        }
        Ok(())
    }

    /// Reads whether the ghosts were seized. Later the head may come and go.
    fn hear_head(&mut self) {
        let Some(head) = &mut self.head else { return };
        let ended = head.receive().is_err();
        let mut refusal = None;
        while let Ok(Some(reply)) = head.next_message() {
            match reply {
                Reply::Go { .. } => self.awaited = self.awaited.saturating_sub(1),
                other => refusal = Some(other),
            }
        }
        let lost = (ended && self.awaited > 0).then(|| Reply::Refused {
            code: wiglaf_wire::status::EXIT_CLUSTER_FAILED,
            message: "the head went away while the tasks were launched".into(),
            hint: Some("run the command again".into()),
        });
        if let Some(refusal) = refusal.or(lost) {
            CommandError::from_reply(refusal).report();
            self.refused = true;
            for (pid, end) in &self.ghosts {
                if end.is_none() {
                    let _ = kill(*pid, SIGKILL);
                }
            }
        }
        if ended && let Some(head) = self.head.take() {
            let _ = self.poll.remove(&head);
        }
    }

    fn take_signals(&mut self, signals: &SignalFd) -> Result<(), CommandError> {
        while let Some(signal) = signals.read()? {
            match (signal.signo, signal.code) {
                (SIGCHLD, _) => {}
                // The ghosts are in the same process group and have got it too; when their tasks
                // have stopped they stop, and so does this process.
                (SIGTSTP, SI_KERNEL) => {
                    let own = rustix::process::getpid().as_raw_nonzero().get();
                    kill(own, SIGSTOP)?;
                }
                (_, SI_KERNEL) => {}
                (signo, _) => {
                    for (pid, _) in self.ghosts.iter().filter(|(_, end)| end.is_none()) {
                        let _ = kill(*pid, signo);
                    }
                }
            }
        }
        while let Ok(Some(change)) = wait_any_child(true) {
            if let ChildState::Ended(status) = change.state
                && let Some(ghost) = self.ghosts.iter_mut().find(|(pid, _)| *pid == change.pid)
            {
                ghost.1 = Some(status);
            }
        }
        Ok(())
    }

    fn read_pipe(&mut self, number: u64) -> Result<(), CommandError> {
        let slot = usize::try_from(number - FIRST_PIPE)?;
        let Some(Some(pipe)) = self.pipes.get_mut(slot) else {
            return Ok(());
        };
        let mut bytes = [0; READ_BYTES];
        let read = pipe.read(&mut bytes)?;
        let output = &mut self.outputs[slot / 2];
        if read > 0 {
            output.take(self.show, slot % 2, &bytes[..read])?;
            return Ok(());
        }
        output.finish(self.show, slot % 2)?;
        if let Some(pipe) = self.pipes[slot].take() {
            self.poll.remove(&pipe)?;
        }
        Ok(())
    }

    fn finish(self, show: Show) -> CommandResult {
        match show {
            Show::Gathered => print_gathered(&self.outputs)?,
            Show::Json => print_json(&self.outputs, &self.ghosts)?,
            Show::InTurn { prefix, dividers } => {
                print_in_turn(&self.outputs, prefix, dividers)?;
            }
            Show::Plain | Show::Lines(_) => {}
        }
        if self.refused {
            return Ok(wiglaf_wire::status::EXIT_CLUSTER_FAILED);
        }
        let codes = self
            .ghosts
            .iter()
            .filter_map(|(_, end)| end.as_ref())
            .map(|e| e.shell_code());
        Ok(u8::try_from(codes.max().unwrap_or(0)).unwrap_or(u8::MAX))
    }
}

/// The streams of one of several tasks; pipes that this process reads or fills are remembered.
fn streams(
    args: &Args,
    show: Show,
    index: usize,
    node: &str,
    pipes: &mut Vec<Option<std::fs::File>>,
    inputs: &mut Vec<OwnedFd>,
) -> Result<Streams, CommandError> {
    let gets_stdin = match args.stdin {
        StdinFor::All => true,
        StdinFor::Task(task) => usize::try_from(task) == Ok(index),
        StdinFor::Nobody => false,
    };
    let stdin = match &args.input {
        Some(path) => open_input(&expand(path, node, index))?,
        None if gets_stdin => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            inputs.push(write);
            read
        }
        None => open_input("/dev/null".as_ref())?,
    };
    let mut output = |path: &Option<std::path::PathBuf>, own: std::os::fd::BorrowedFd<'_>| {
        if let Some(path) = path {
            pipes.push(None);
            return open_output(&expand(path, node, index));
        }
        if show == Show::Plain {
            pipes.push(None);
            return Ok(rustix::io::fcntl_dupfd_cloexec(own, 10)?);
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        pipes.push(Some(read.into()));
        Ok(write)
    };
    Ok(Streams {
        stdin: Stdin::Direct(stdin),
        stdout: output(&args.output, rustix::stdio::stdout())?,
        stderr: output(&args.error, rustix::stdio::stderr())?,
        raw: false,
    })
}

/// Copies this process's standard input to all who get it, in a thread of its own: a task that
/// does not read must hold up neither the others' output nor this process's end.
fn feed(inputs: Vec<OwnedFd>) -> Result<(), CommandError> {
    if inputs.is_empty() {
        return Ok(());
    }
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut inputs = inputs;
            let mut bytes = vec![0; READ_BYTES];
            while !inputs.is_empty() {
                let read = match rustix::io::read(rustix::stdio::stdin(), &mut bytes[..]) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => break,
                };
                inputs.retain(|input| write_all(input, &bytes[..read]));
            }
        })?;
    Ok(())
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
