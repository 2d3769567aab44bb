//! Commands on the head's machine: `wiglaf run`, which becomes a ghost or is the parent of
//! several, and those that ask something. They follow `crates/cli`.

use wiglaf_head::jobs::{Caller, ClientId};
use wiglaf_wire::client::{NodeSelection, Reply, Request, RunRequest};
use wiglaf_wire::id::Pid;
use wiglaf_wire::keeper::{GhostEnd, GhostMode};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::EXIT_CLUSTER_FAILED;

use crate::world::{Event, Wire, World};

/// `HEAD_RETURN_WAIT` and `HEAD_RETURN_POLL` of `wiglaf run`.
const HEAD_RETURN_WAIT_MS: u64 = 10_000;
const HEAD_RETURN_POLL_MS: u64 = 50;
/// Few, so that they are used again soon.
const FIRST_PID: u64 = 100;
const LAST_PID: u64 = 150;
const SIGKILL: u8 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Single,
    Several,
    Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Has asked, waits for nodes or for the answer.
    Asking,
    /// Its ghosts are named and not all seized.
    Naming,
    /// A single one is the ghost; several ones' parent waits for them.
    Running,
    Over,
}

#[derive(Debug)]
pub(crate) struct Command {
    kind: Kind,
    pid: Pid,
    start_time: u64,
    credential: Credential,
    request: Request,
    client: Option<ClientId>,
    state: State,
    /// Since when it looks for a head that went away while it launched.
    retries_until_ms: Option<u64>,
    /// A zombie does nothing more.
    is_dead: bool,
    awaited: usize,
    children: Vec<Pid>,
}

impl Command {
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }
}

impl World {
    pub(crate) fn start_command(&mut self, kind: Kind) {
        let request = Request::Run(Box::new(self.run_request(kind)));
        self.start(kind, request);
    }

    pub(crate) fn ask_signal(&mut self, signal: u8) {
        let pids: Vec<_> = self.keeper.ghosts.values().map(|ghost| ghost.pid).collect();
        let Some(pid) = self.rng.pick(&pids) else {
            return;
        };
        for truth in self
            .truths
            .values_mut()
            .filter(|t| t.told.is_none() && t.pid == pid)
        {
            truth.interfered = true;
        }
        self.start(Kind::Ask, Request::Signal { pid, signal });
    }

    pub(crate) fn ask_list(&mut self) {
        self.start(Kind::Ask, Request::Processes);
    }

    fn start(&mut self, kind: Kind, request: Request) {
        let Some((pid, start_time)) = self.fork() else {
            return;
        };
        let uid = if kind == Kind::Ask {
            0
        } else {
            1_000 + u32::from(self.rng.chance(30))
        };
        let credential = Credential {
            uid,
            gid: uid,
            groups: vec![],
        };
        self.commands.push(Command {
            kind,
            pid,
            start_time,
            credential,
            request,
            client: None,
            state: State::Asking,
            retries_until_ms: None,
            is_dead: false,
            awaited: 0,
            children: Vec::new(),
        });
        let number = self.commands.len() - 1;
        if !self.ask(number) {
            self.give_up(number);
        }
    }

    fn fork(&mut self) -> Option<(Pid, u64)> {
        let free: Vec<_> = (FIRST_PID..=LAST_PID)
            .filter_map(|pid| i32::try_from(pid).ok().map(Pid))
            .filter(|pid| !self.pids.contains_key(pid))
            .collect();
        let pid = self.rng.pick(&free)?;
        // A PID does not come round within a clock tick.
        let start_time = self.order;
        self.pids.insert(pid, start_time);
        Some((pid, start_time))
    }

    fn run_request(&mut self, kind: Kind) -> RunRequest {
        let rough = !self.setup.profile.is_gentle();
        let count = u64::try_from(self.nodes.len()).unwrap_or(1);
        let nodes = self
            .rng
            .chance(30)
            .then(|| format!("n{}", self.rng.between(1, count)));
        let several = kind == Kind::Several;
        let all = several && self.rng.chance(30);
        let task_count =
            (several && !all).then(|| u32::try_from(self.rng.between(2, 4)).unwrap_or(2));
        let timeout_ms = if rough && self.rng.chance(15) {
            self.rng.between(1, 20_000)
        } else {
            0
        };
        RunRequest {
            selection: NodeSelection {
                nodes,
                all,
                task_count,
                exclusive: self.rng.chance(5),
                ..NodeSelection::default()
            },
            spec: LaunchSpec {
                leave: self.rng.chance(10),
                ..LaunchSpec::plain(&["true"])
            },
            timeout_ms,
            detach: false,
            follow: false,
        }
    }

    /// Connects, and sends its request.
    fn ask(&mut self, number: usize) -> bool {
        let Some(command) = self.commands.get_mut(number) else {
            return false;
        };
        let Some(head) = &mut self.head else {
            return false;
        };
        let client = ClientId(self.client_count);
        self.client_count += 1;
        let caller = Caller {
            client,
            pid: command.pid,
            start_time: command.start_time,
            credential: command.credential.clone(),
        };
        head.clients.insert(client, (caller, number));
        command.client = Some(client);
        command.state = State::Asking;
        let request = command.request.clone();
        self.tell_head(client, Some(request));
        true
    }

    fn tell_head(&mut self, client: ClientId, request: Option<Request>) {
        let Some(life) = self.head.as_ref().map(|head| head.life) else {
            return;
        };
        let delay_ms = self.local_ms();
        let event = Event::CommandToHead {
            life,
            client,
            request,
        };
        self.send(Wire::CommandToHead(client), delay_ms, event);
    }

    fn hang_up(&mut self, number: usize) {
        let client = self
            .commands
            .get_mut(number)
            .and_then(|command| command.client.take());
        let is_known = |client: &ClientId| {
            self.head
                .as_ref()
                .is_some_and(|head| head.clients.contains_key(client))
        };
        if let Some(client) = client.filter(is_known) {
            self.tell_head(client, None);
        }
    }

    pub(crate) fn command_hears(&mut self, number: usize, client: ClientId, reply: Option<Reply>) {
        let Some(command) = self.commands.get(number) else {
            return;
        };
        if command.client != Some(client) || command.is_dead {
            return;
        }
        let (kind, state) = (command.kind, command.state);
        match (state, reply) {
            (State::Over, _) | (_, Some(Reply::Waiting { .. })) => {}
            (_, None) => self.head_went_away(number),
            _ if kind == Kind::Ask => self.give_up(number),
            (State::Asking, Some(Reply::Placed { nodes, .. })) => self.name(number, nodes.len()),
            (State::Naming, Some(Reply::Go { .. })) => self.go(number),
            (_, Some(Reply::Refused { message, .. })) => {
                self.refused(number, &message);
            }
            (_, Some(_)) => {}
        }
    }

    fn refused(&mut self, number: usize, message: &str) {
        let Some(command) = self.commands.get(number) else {
            return;
        };
        let pid = command.pid;
        // What has been seized already can't be refused any more, unless it is over.
        let wanted = self.truths.iter().find(|(_, truth)| {
            truth.pid == pid
                && truth.told.is_none()
                && !truth.over
                && !truth.interfered
                && truth.excuse.is_none()
        });
        if let Some((task, _)) = wanted {
            let text = format!("the command of {task} is refused while it launches: {message}");
            self.violated("P4", text);
        }
        self.give_up(number);
    }

    fn name(&mut self, number: usize, count: usize) {
        let Some(command) = self.commands.get_mut(number) else {
            return;
        };
        command.state = State::Naming;
        let Some(client) = command.client else { return };
        let mode = GhostMode::default();
        if command.kind == Kind::Single {
            let pid = command.pid;
            return self.tell_head(
                client,
                Some(Request::Ghost {
                    index: 0,
                    pid,
                    mode,
                }),
            );
        }
        command.awaited = count;
        for index in 0..u32::try_from(count).unwrap_or(0) {
            let Some((pid, _)) = self.fork() else {
                return self.give_up(number);
            };
            if let Some(command) = self.commands.get_mut(number) {
                command.children.push(pid);
            }
            self.tell_head(client, Some(Request::Ghost { index, pid, mode }));
        }
    }

    fn go(&mut self, number: usize) {
        let Some(command) = self.commands.get_mut(number) else {
            return;
        };
        if command.kind == Kind::Single {
            command.state = State::Running;
            let pid = command.pid;
            self.hang_up(number);
            self.ghost_program_starts(pid);
            return;
        }
        command.awaited = command.awaited.saturating_sub(1);
        if command.awaited == 0 {
            command.state = State::Running;
        }
    }

    fn head_went_away(&mut self, number: usize) {
        let Some(command) = self.commands.get_mut(number) else {
            return;
        };
        command.client = None;
        match (command.kind, command.state) {
            (Kind::Single, State::Naming) => {
                command.retries_until_ms = Some(self.now_ms + HEAD_RETURN_WAIT_MS);
                self.retry_later(number);
            }
            (Kind::Single, State::Asking) if command.retries_until_ms.is_some() => {
                self.retry_later(number);
            }
            (Kind::Several, State::Running) => {}
            _ => self.give_up(number),
        }
    }

    fn retry_later(&mut self, number: usize) {
        self.after(
            HEAD_RETURN_POLL_MS,
            Event::CommandRetries { command: number },
        );
    }

    pub(crate) fn command_retries(&mut self, number: usize) {
        let now_ms = self.now_ms;
        let Some(command) = self.commands.get_mut(number) else {
            return;
        };
        if command.is_dead || command.state == State::Over || command.client.is_some() {
            return;
        }
        if command.retries_until_ms.is_none_or(|until| until <= now_ms) {
            self.give_up(number);
        } else if !self.ask(number) {
            self.retry_later(number);
        }
    }

    /// Ends with 125, or, as a parent, kills its children first.
    fn give_up(&mut self, number: usize) {
        self.hang_up(number);
        let Some(command) = self.commands.get_mut(number) else {
            return;
        };
        if command.kind == Kind::Several && !command.children.is_empty() {
            command.state = State::Running;
            let children = command.children.clone();
            children
                .into_iter()
                .for_each(|pid| self.signal_local(pid, SIGKILL));
            return;
        }
        let pid = command.pid;
        let end = GhostEnd::Exit(EXIT_CLUSTER_FAILED);
        let ghost = self
            .keeper
            .ghosts
            .iter()
            .find(|(_, ghost)| ghost.pid == pid);
        match ghost.map(|(task, _)| *task) {
            Some(task) => {
                if let Some(truth) = self.truths.get_mut(&task) {
                    truth.interfered = true;
                }
                self.ghost_dies(task, end);
            }
            None => self.process_is_gone(pid, end),
        }
    }

    pub(crate) fn kill_some_command(&mut self) {
        let launching: Vec<_> = self
            .commands
            .iter()
            .filter(|c| c.kind == Kind::Single && !c.is_dead && c.state != State::Over)
            .map(|command| command.pid)
            .collect();
        if let Some(pid) = self.rng.pick(&launching) {
            self.signal_local(pid, SIGKILL);
        }
    }

    /// Whether this process reads what its keeper orders.
    pub(crate) fn is_ghost_program(&self, pid: Pid) -> bool {
        self.commands.iter().any(|command| {
            command.children.contains(&pid)
                || (command.pid == pid
                    && command.kind == Kind::Single
                    && command.state == State::Running)
        })
    }

    /// The keeper's end of a ghost's control socket was closed before it reached the keeper.
    pub(crate) fn control_socket_closes(&mut self, pid: Pid) {
        let is_child = self
            .commands
            .iter()
            .any(|command| command.children.contains(&pid));
        if is_child {
            self.process_is_gone(pid, GhostEnd::Exit(EXIT_CLUSTER_FAILED));
        }
    }

    /// It is a zombie: it does nothing more, and its connections are closed.
    pub(crate) fn command_process_died(&mut self, pid: Pid) {
        let found = self
            .commands
            .iter()
            .position(|c| c.pid == pid && c.state != State::Over);
        if let Some(number) = found {
            self.commands[number].is_dead = true;
            self.hang_up(number);
        }
    }

    /// It is reaped: its PID is free.
    pub(crate) fn process_is_gone(&mut self, pid: Pid, end: GhostEnd) {
        self.pids.remove(&pid);
        self.note(|_| format!("  process {pid} is gone: {end:?}"));
        self.command_process_died(pid);
        let mut orphaned = Vec::new();
        for command in &mut self.commands {
            if command.pid == pid {
                command.state = State::Over;
            }
            if command.children.contains(&pid) {
                command.children.retain(|child| *child != pid);
                if command.children.is_empty() {
                    command.state = State::Over;
                    orphaned.push(command.pid);
                }
            }
        }
        self.pids.retain(|pid, _| !orphaned.contains(pid));
        let over: Vec<_> = (0..self.commands.len())
            .filter(|number| {
                self.commands[*number].is_over() && self.commands[*number].client.is_some()
            })
            .collect();
        over.into_iter().for_each(|number| self.hang_up(number));
    }
}
