//! Plays the head, the keeper and the agent around a real deputy and a real relay, over real TLS.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    socketpair,
};
use wiglaf_link::{Authority, Channel, Interest, Poll, Role, Token, client_config};
use wiglaf_process::deputy::{self, CONTROL_CHANNEL, CONTROL_END, Files, NoFiles};
use wiglaf_process::relay::node::{NodeRelay, RelayEvent};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::frame::Compression;
use wiglaf_wire::id::{DeputyId, JobId, NodeId, TaskId};
use wiglaf_wire::launch::{StdioKind, WindowSize};

/// A test that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(5);

pub(crate) const NODE: NodeId = NodeId(3);
pub(crate) const DEPUTY: DeputyId = DeputyId(9);
pub(crate) const PIPES: [StdioKind; 3] = [StdioKind::Relayed; 3];

pub(crate) fn task(index: u32) -> TaskId {
    TaskId {
        job: JobId(1),
        index,
    }
}

pub(crate) type Head = Channel<FromDeputy, ToDeputy>;

pub(crate) fn sockets() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

pub(crate) struct Rig {
    pub(crate) authority: Authority,
    pub(crate) keeper: Option<OwnedFd>,
    pub(crate) head: Head,
    pub(crate) deputy: Option<JoinHandle<()>>,
    pub(crate) relay: NodeRelay,
    pub(crate) poll: Poll,
    pub(crate) events: Vec<RelayEvent>,
    listener: TcpListener,
    /// Connections are refused, as when the head is away.
    pub(crate) deaf: bool,
    /// The last connection, to break it.
    pub(crate) accepted: Option<OwnedFd>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::serving(|| Box::new(NoFiles(rustix::io::Errno::NOSYS)))
    }

    pub(crate) fn serving(files: impl FnOnce() -> Box<dyn Files> + Send + 'static) -> Rig {
        let authority = Authority::create("test").unwrap();
        let (keeper, control) = sockets();
        let deputy = std::thread::spawn(move || deputy::serve_with(control, files()).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let poll = Poll::new().unwrap();
        poll.add(&listener, Token(1), Interest::Read).unwrap();
        let mut relay = NodeRelay::new(100);
        relay.set_may_be_late();
        relay.set_identity(
            listener.local_addr().unwrap(),
            client_config(&authority.issue(Role::Node(NODE)).unwrap()).unwrap(),
        );
        // Here the wire is as fast as memory, and nothing would be compressed of itself.
        relay.set_compression(Compression::Always);
        let head = new_head(&keeper, &authority, &[]);
        Rig {
            authority,
            keeper: Some(keeper),
            head,
            deputy: Some(deputy),
            relay,
            poll,
            events: Vec::new(),
            listener,
            deaf: false,
            accepted: None,
        }
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn node_config(&self, node: NodeId) -> Arc<rustls::ClientConfig> {
        client_config(&self.authority.issue(Role::Node(node)).unwrap()).unwrap()
    }

    /// The user's descriptors go to the deputy.
    pub(crate) fn attach(&mut self, task: TaskId, stdio: [StdioKind; 3], fds: Vec<OwnedFd>) {
        self.head
            .send(
                &ToDeputy::Attach {
                    task,
                    node: NODE,
                    stdio,
                },
                fds,
            )
            .unwrap();
    }

    /// Starts a command on the node.
    pub(crate) fn start(&mut self, task: TaskId, stdio: [StdioKind; 3], argv: &[&str]) -> Child {
        let window = WindowSize {
            rows: 24,
            columns: 80,
        };
        let child = self
            .relay
            .open(&self.poll, task, DEPUTY, stdio, window)
            .unwrap();
        let mut command = Command::new(argv[0]);
        let [input, output, error] = child.fds;
        command
            .args(&argv[1..])
            .stdin(input)
            .stdout(output)
            .stderr(error);
        let child = command.spawn().unwrap();
        drop(command);
        child
    }

    /// One round of the agent's loop, with the head's listener in it.
    pub(crate) fn turn(&mut self) {
        let mut ready = Vec::new();
        let due = self
            .relay
            .deadline()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let wait = due.map_or(TICK, |due| due.min(TICK));
        self.poll.wait(&mut ready, Some(wait)).unwrap();
        for event in ready {
            if self.relay.owns(event.token) {
                self.relay.handle(&self.poll, event, &mut self.events);
            } else if let Ok((socket, _)) = self.listener.accept()
                && !self.deaf
            {
                let socket = OwnedFd::from(socket);
                self.accepted = Some(socket.try_clone().unwrap());
                self.head.send(&ToDeputy::Link, vec![socket]).unwrap();
            }
        }
        self.relay.tick(&self.poll, &mut self.events);
        self.relay.send_late(&self.poll);
    }

    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Rig) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < end, "{what} did not happen");
            self.turn();
        }
    }

    /// Waits for the command's end, as the agent does, and for its output to be on the head.
    pub(crate) fn finish(&mut self, task: TaskId, mut child: Child) -> ExitStatus {
        let mut status = None;
        self.until("the command's end", |_| {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        self.relay.main_ended(&self.poll, task, &mut self.events);
        self.until("drained", |rig| {
            rig.events.contains(&RelayEvent::Drained(task))
        });
        status.unwrap()
    }

    pub(crate) fn detach(&mut self, task: TaskId) {
        self.relay.close(&self.poll, task);
        self.head.send(&ToDeputy::Detach { task }, vec![]).unwrap();
    }

    /// The next message of the deputy's to the head, while the agent goes on.
    pub(crate) fn hear(&mut self) -> FromDeputy {
        let mut heard = None;
        self.until("a message of the deputy's", |rig| {
            rig.head.receive().unwrap();
            heard = rig.head.next_message().unwrap();
            heard.is_some()
        });
        heard.unwrap()
    }

    /// The head dies, and comes back.
    pub(crate) fn restart_head(&mut self, tasks: &[TaskId]) {
        self.head = new_head(self.keeper.as_ref().unwrap(), &self.authority, tasks);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            rustix::io::write(&keeper, &[CONTROL_END]).unwrap();
            let ended = self.deputy.take().map(JoinHandle::join);
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

/// Gives the deputy a channel to the head, by the keeper's control socket.
fn new_head(keeper: &OwnedFd, authority: &Authority, tasks: &[TaskId]) -> Head {
    let (ours, theirs) = sockets();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let rights = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    let byte = [CONTROL_CHANNEL];
    let bytes = [IoSlice::new(&byte)];
    rustix::net::sendmsg(keeper, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
    let mut head = Head::new(ours).unwrap();
    let FromDeputy::Ready { tasks: known } = head.wait_message().unwrap() else {
        panic!("the first message is Ready");
    };
    assert_eq!(known, tasks);
    let identity = authority.issue(Role::Deputy(DEPUTY)).unwrap();
    let identity = ToDeputy::Identity {
        certificate: identity.certificate.to_vec(),
        key: identity.key,
        authority: identity.authority.to_vec(),
    };
    head.send(&identity, vec![]).unwrap();
    head
}

/// A pipe of the user's: blocking, as a shell makes it.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Reads a pipe to its end, in a thread.
pub(crate) fn collect(fd: OwnedFd) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut bytes).unwrap();
        bytes
    })
}

/// Bytes that do not repeat, the same for each seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
