//! The test's head, which is a deputy too, and the agents that it starts.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use wiglaf_link::{
    Authority, Interest, JoinToken, NodeIdentity, Poll, Role, TlsLink, Token, approval_code,
    peek_server_name, server_config,
};
use wiglaf_linux::namespace::NamespaceFlags;
use wiglaf_linux::process::{Fork, clone_into, fork, pidfd_send_signal, set_pdeathsig, wait};
use wiglaf_node::agent::{AgentConfig, Trust, run, run_beside};
use wiglaf_node::root::{Files, TaskRoot, ViewOptions, mount_own_proc};
use wiglaf_view::Export;
use wiglaf_view::export::{LinkId, Told};
use wiglaf_wire::agent::{FromAgent, SignalScope, TaskReport, ToAgent};
use wiglaf_wire::frame::Frame;
use wiglaf_wire::id::{DeputyId, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::Status;
use wiglaf_wire::stream::{Relay, Stream};
use wiglaf_wire::view::{Ask, Change, FileId, Question};

const PATIENCE: Duration = Duration::from_secs(20);
const NODE: NodeId = NodeId(3);
const DEPUTY: DeputyId = DeputyId(9);
pub(crate) const NOBODY: u32 = 65534;
pub(crate) const LONG_LEASE_MS: u64 = 60_000;
pub(crate) const FIRST_PID: i32 = 20_000;
pub(crate) const END_PID: i32 = 30_000;
pub(crate) const SIGKILL: i32 = 9;

type AgentLink = TlsLink<FromAgent, ToAgent>;
type DeputyLink = TlsLink<Relay, Relay>;

/// Head and deputy in one.
pub(crate) struct Head {
    listener: TcpListener,
    pub(crate) authority: Authority,
    tls: Arc<ServerConfig>,
    deputy_tls: Arc<ServerConfig>,
    lease_ms: u64,
    pub(crate) answers: bool,
    poll: Poll,
    fresh: Vec<OwnedFd>,
    unproven: Vec<AgentLink>,
    pub(crate) agent: Option<AgentLink>,
    deputies: Vec<(LinkId, DeputyLink)>,
    next_link: u64,
    pub(crate) hellos: VecDeque<Vec<TaskReport>>,
    pub(crate) inbox: VecDeque<FromAgent>,
    written: HashMap<(TaskId, Stream), Vec<u8>>,
    pub(crate) joined: Option<String>,
    /// Where a machine that booted asked from, and the code of its key.
    pub(crate) attempts: Vec<(u16, String)>,
    next_task: u64,
    next_request: u64,
    pub(crate) agents: Vec<(i32, OwnedFd)>,
    /// Its files, for agents that see them through the view.
    export: Export,
    /// Questions for this name are not answered.
    pub(crate) hold: Option<&'static [u8]>,
    /// The directories that they are about.
    pub(crate) held: Vec<FileId>,
}

impl Drop for Head {
    fn drop(&mut self) {
        for (pid, pidfd) in &self.agents {
            let _ = pidfd_send_signal(pidfd, SIGKILL);
            let _ = wait(*pid, false);
        }
    }
}

impl Head {
    pub(crate) fn new(lease_ms: u64) -> Head {
        let authority = Authority::create("test").unwrap();
        let server = |role, anybody| server_config(&authority.issue(role).unwrap(), anybody);
        let (tls, deputy_tls) = (
            server(Role::Head, true).unwrap(),
            server(Role::Deputy(DEPUTY), false).unwrap(),
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let poll = Poll::new().unwrap();
        poll.add(&listener, Token(0), Interest::Read).unwrap();
        Head {
            listener,
            authority,
            tls,
            deputy_tls,
            lease_ms,
            answers: true,
            poll,
            fresh: Vec::new(),
            unproven: Vec::new(),
            agent: None,
            deputies: Vec::new(),
            next_link: 0,
            hellos: VecDeque::new(),
            inbox: VecDeque::new(),
            written: HashMap::new(),
            joined: None,
            attempts: Vec::new(),
            next_task: 1,
            next_request: 1,
            agents: Vec::new(),
            export: Export::new(Vec::new(), None).unwrap(),
            hold: None,
            held: Vec::new(),
        }
    }

    pub(crate) fn with_agent() -> Head {
        let mut head = Head::new(LONG_LEASE_MS);
        head.start_agent();
        head.wait_until("the agent", |head| head.agent.is_some());
        assert_eq!(head.hellos.pop_front(), Some(vec![]));
        head
    }

    pub(crate) fn start_agent(&mut self) {
        let identity: NodeIdentity = self.authority.issue(Role::Node(NODE)).unwrap();
        self.start(Trust::Identity(identity));
    }

    /// An agent whose tasks see the files through the view.
    pub(crate) fn with_viewing_agent(lease_ms: u64) -> Head {
        let mut head = Head::new(lease_ms);
        let identity = head.authority.issue(Role::Node(NODE)).unwrap();
        head.start_with(Trust::Identity(identity), || {
            Files::View(ViewOptions::default())
        });
        head.wait_until("the agent", |head| head.agent.is_some());
        head
    }

    pub(crate) fn start(&mut self, trust: Trust) {
        self.start_with(trust, || {
            Files::Disk(TaskRoot::from_head_disk(&[]).unwrap())
        });
    }

    fn start_with(&mut self, trust: Trust, files: impl FnOnce() -> Files) {
        let head: SocketAddr = self.listener.local_addr().unwrap();
        let spaces = NamespaceFlags::NEWPID
            | NamespaceFlags::NEWNS
            | NamespaceFlags::NEWUTS
            | NamespaceFlags::NEWIPC;
        match clone_into(spaces).unwrap() {
            Fork::Parent { pid, pidfd } => self.agents.push((pid, pidfd)),
            Fork::Child => {
                set_pdeathsig(SIGKILL).unwrap();
                mount_own_proc().unwrap();
                let config = AgentConfig {
                    head,
                    trust,
                    name: Some("wished".into()),
                    files: files(),
                    keep: None,
                    address: "127.0.0.1".into(),
                    rootless: false,
                    is_virtual: false,
                };
                let result = run(config);
                if let Err(error) = &result {
                    eprintln!("{error}");
                }
                std::process::exit(i32::from(result.is_err()))
            }
        }
    }

    pub(crate) fn start_beside(&mut self) {
        let head = self.listener.local_addr().unwrap();
        let token = JoinToken::create(self.authority.fingerprint()).unwrap();
        match fork().unwrap() {
            Fork::Parent { pid, pidfd } => self.agents.push((pid, pidfd)),
            Fork::Child => {
                set_pdeathsig(SIGKILL).unwrap();
                let result = run_beside(
                    head,
                    token,
                    Some("wished".into()),
                    ViewOptions::default(),
                    None,
                );
                if let Err(error) = &result {
                    eprintln!("{error}");
                }
                std::process::exit(i32::from(result.is_err()))
            }
        }
    }

    // Tasks

    pub(crate) fn launch(&mut self, spec: LaunchSpec) -> TaskId {
        let task = TaskId {
            job: JobId(self.next_task),
            index: 0,
        };
        self.next_task += 1;
        let pid = Pid(self.pid(task));
        let credential = Credential {
            uid: NOBODY,
            gid: NOBODY,
            groups: vec![],
        };
        let spec = Box::new(spec);
        self.tell(ToAgent::Launch {
            task,
            pid,
            credential,
            deputy: DEPUTY,
            spec,
        });
        task
    }

    pub(crate) fn pid(&self, task: TaskId) -> i32 {
        5_000 + i32::try_from(task.job.0).unwrap()
    }

    pub(crate) fn signal(&mut self, task: TaskId, signal: u8, scope: SignalScope) {
        self.tell(ToAgent::Signal {
            task,
            signal,
            scope,
        });
    }

    pub(crate) fn next_end(&mut self, id: TaskId) -> (Status, u32) {
        let is_end =
            |message: &FromAgent| matches!(message, FromAgent::Ended { task, .. } if *task == id);
        match self.wait_for("the end", is_end) {
            FromAgent::Ended {
                status, leftovers, ..
            } => (status, leftovers),
            _ => unreachable!(),
        }
    }

    pub(crate) fn wait_end(&mut self, id: TaskId) -> (Status, u32) {
        let end = self.next_end(id);
        self.tell(ToAgent::Acknowledge { task: id });
        self.inbox
            .retain(|message| !matches!(message, FromAgent::Started { task } if *task == id));
        end
    }

    pub(crate) fn list(&mut self) -> Vec<wiglaf_wire::agent::Process> {
        let request = self.request();
        self.tell(ToAgent::ListProcesses { request });
        let is_answer = |message: &FromAgent| matches!(message, FromAgent::Processes { request: of, .. } if *of == request);
        match self.wait_for("the list", is_answer) {
            FromAgent::Processes {
                list, last: true, ..
            } => list,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn signal_process(&mut self, pid: Pid, signal: u8, uid: Option<u32>) -> i32 {
        let request = self.request();
        self.tell(ToAgent::SignalProcess {
            request,
            pid,
            signal,
            uid,
        });
        match self.wait_for("an errno", |message| {
            matches!(message, FromAgent::Signalled { .. })
        }) {
            FromAgent::Signalled { errno, .. } => errno,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    pub(crate) fn text(&self, task: TaskId, stream: Stream) -> String {
        let bytes = self
            .written
            .get(&(task, stream))
            .map(Vec::as_slice)
            .unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    // The conversation

    pub(crate) fn tell(&mut self, message: ToAgent) {
        let agent = self.agent.as_mut().expect("an agent is connected");
        agent.send(&message).unwrap();
    }

    pub(crate) fn tell_welcome(&mut self) {
        let lease_ms = self.lease_ms;
        self.tell(ToAgent::Welcome {
            node: NODE,
            name: "n3".into(),
            first_pid: Pid(FIRST_PID),
            end_pid: Pid(END_PID),
            lease_ms,
        });
    }

    pub(crate) fn hang_up(&mut self) {
        self.agent = None;
        self.hellos.clear();
    }

    pub(crate) fn wait_hello(&mut self) -> Vec<TaskReport> {
        self.wait_until("a hello", |head| !head.hellos.is_empty());
        self.hellos.pop_front().unwrap()
    }

    pub(crate) fn wait_hello_with(
        &mut self,
        wanted: impl Fn(&TaskReport) -> bool,
    ) -> Vec<TaskReport> {
        let until = Instant::now() + PATIENCE;
        loop {
            let hello = self.wait_hello();
            if !hello.is_empty() && hello.iter().all(&wanted) {
                return hello;
            }
            assert!(Instant::now() < until, "the agent never says so: {hello:?}");
            // Without an answer the agent waits for one: it is told to try again.
            if !self.answers {
                self.hang_up();
            }
        }
    }

    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&FromAgent) -> bool,
    ) -> FromAgent {
        self.wait_until(what, |head| head.inbox.iter().any(&wanted));
        let at = self.inbox.iter().position(wanted).unwrap();
        self.inbox.remove(at).unwrap()
    }

    pub(crate) fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Head) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < until,
                "{what} never came; there is {:?}",
                self.inbox
            );
            self.pump(Duration::from_millis(20));
        }
    }

    pub(crate) fn pump_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.pump(Duration::from_millis(10));
        }
    }

    /// Looks at every connection: few of them, so no need to know which is ready.
    pub(crate) fn pump(&mut self, wait: Duration) {
        let mut ready = Vec::new();
        self.poll.wait(&mut ready, Some(wait)).unwrap();
        while let Ok((socket, _)) = self.listener.accept() {
            let socket: OwnedFd = socket.into();
            self.watch(&socket);
            self.fresh.push(socket);
        }
        for socket in std::mem::take(&mut self.fresh) {
            match peek_server_name(&socket).map(|name| name.as_deref().and_then(Role::from_name)) {
                Ok(Some(Role::Head)) => {
                    self.unproven
                        .push(AgentLink::server(socket, self.tls.clone()).unwrap());
                }
                Ok(Some(Role::Deputy(DEPUTY))) => {
                    let mut link = DeputyLink::server(socket, self.deputy_tls.clone()).unwrap();
                    link.heed_compression();
                    self.next_link += 1;
                    self.deputies.push((LinkId(self.next_link), link));
                }
                Ok(None) => self.fresh.push(socket),
                Ok(other) => panic!("dialled {other:?}"),
                Err(_) => {}
            }
        }
        self.pump_unproven();
        self.pump_agent();
        self.pump_deputies();
    }

    pub(crate) fn watch(&self, socket: impl AsFd) {
        self.poll.add(socket, Token(1), Interest::Read).unwrap();
    }

    pub(crate) fn pump_unproven(&mut self) {
        for mut link in std::mem::take(&mut self.unproven) {
            let alive = link.receive().is_ok();
            let message = match link.next_frame() {
                Ok(Some(Frame::Message(message))) => Some(message),
                _ => None,
            };
            match message {
                Some(FromAgent::Join { name, request, .. }) => {
                    self.joined = name;
                    let certificate = self.authority.certify(Role::Node(NODE), &request).unwrap();
                    let authority = self.authority.certificate().to_vec();
                    let certificate = certificate.to_vec();
                    link.send(&ToAgent::Certificate {
                        certificate,
                        authority,
                    })
                    .unwrap();
                    self.unproven.push(link);
                }
                Some(FromAgent::JoinBooted { mac, request, .. }) => {
                    let peer = rustix::net::getpeername(&link).unwrap().unwrap();
                    let code = approval_code(&self.authority.fingerprint(), &request, mac.0);
                    let from: SocketAddr = peer.try_into().unwrap();
                    self.attempts.push((from.port(), code.clone()));
                    let answer = if self.attempts.len() == 1 {
                        ToAgent::AwaitApproval { code }
                    } else {
                        let node = Role::Node(NODE);
                        let certificate = self.authority.certify(node, &request).unwrap();
                        ToAgent::Certificate {
                            certificate: certificate.to_vec(),
                            authority: self.authority.certificate().to_vec(),
                        }
                    };
                    link.send(&answer).unwrap();
                    self.unproven.push(link);
                }
                Some(FromAgent::Hello { tasks, .. }) => {
                    self.hellos.push_back(tasks);
                    self.agent = Some(link);
                    if self.answers {
                        self.tell_welcome();
                    }
                }
                None if alive => self.unproven.push(link),
                _ => {}
            }
        }
    }

    pub(crate) fn pump_agent(&mut self) {
        let Some(mut agent) = self.agent.take() else {
            return;
        };
        let alive = agent.receive().is_ok();
        while let Ok(Some(Frame::Message(message))) = agent.next_frame() {
            match message {
                FromAgent::Renew { sequence, .. } if self.answers => {
                    agent.send(&ToAgent::Renewed { sequence }).unwrap();
                }
                FromAgent::Renew { .. } => {}
                message => self.inbox.push_back(message),
            }
        }
        self.agent = alive.then_some(agent);
    }

    pub(crate) fn pump_deputies(&mut self) {
        for (id, mut link) in std::mem::take(&mut self.deputies) {
            let alive = link.receive().is_ok();
            let mut answers = Vec::new();
            while let Ok(Some(frame)) = link.next_frame() {
                match frame {
                    Frame::Data(header, bytes) => {
                        let (task, stream) = (header.task, header.stream);
                        let written = self.written.entry((task, stream)).or_default();
                        assert_eq!(header.offset, written.len() as u64, "bytes come in order");
                        written.extend_from_slice(bytes);
                        let offset = written.len() as u64;
                        answers.push(Relay::Passed {
                            task,
                            stream,
                            offset,
                        });
                    }
                    Frame::Message(Relay::Attach { task }) => {
                        for stream in [Stream::Output, Stream::Error] {
                            let written = self.written.get(&(task, stream));
                            let offset = written.map_or(0, Vec::len) as u64;
                            answers.push(Relay::Passed {
                                task,
                                stream,
                                offset,
                            });
                        }
                    }
                    Frame::Message(Relay::Passed {
                        task,
                        stream: Stream::Input,
                        offset: 0,
                    }) => {
                        answers.push(Relay::End {
                            task,
                            stream: Stream::Input,
                            offset: 0,
                        });
                    }
                    Frame::Message(Relay::Ask(question)) => {
                        let mut told = Vec::new();
                        if !self.holds(&question) {
                            self.export.question(id, question, &mut told);
                        }
                        answers.extend(told.into_iter().map(|(_, told)| match told {
                            Told::Answer(answer) => Relay::Answer(answer),
                            Told::Changes(changes) => Relay::Changed(changes),
                            Told::Gifts(gifts) => Relay::Given(gifts),
                        }));
                    }
                    Frame::Message(_) => {}
                }
            }
            let sent = answers.iter().all(|answer| link.queue(answer).is_ok());
            if sent && link.flush().is_ok() && alive {
                self.deputies.push((id, link));
            } else {
                self.export.close(id);
            }
        }
    }

    fn holds(&mut self, question: &Question) -> bool {
        match (&question.what, self.hold) {
            (Ask::Lookup { parent, name }, Some(hold)) if name == hold => {
                self.held.push(*parent);
                true
            }
            _ => false,
        }
    }

    /// Tells all nodes that something has changed.
    pub(crate) fn tell_change(&mut self, change: &Change) {
        for (_, link) in &mut self.deputies {
            link.send(&Relay::Changed(vec![change.clone()])).unwrap();
        }
    }
}
