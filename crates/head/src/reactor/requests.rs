//! What commands ask of the head. The caller is who the kernel says it is.

use wiglaf_wire::agent::ToAgent;
use wiglaf_wire::client::{NodeChange, NodeState, Reply, Request, RunRequest};
use wiglaf_wire::id::{DeputyId, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{GhostMode, ToKeeper};
use wiglaf_wire::launch::{MAX_SPEC_BYTES, StdioKind};
use wiglaf_wire::status::Usage;

use super::{Effect, MAX_WAITING_JOBS, Reactor, Waiting};
use crate::jobs::{Caller, ClientId, Job, Phase, Task, TaskRecord};
use crate::node_table::{Node, Presence, Wanted};
use crate::placement::{Asker, Placement, Refusal, place, resolve};

/// Longest working directory (`PATH_MAX`, linux/limits.h).
const MAX_PATH_BYTES: usize = 4096;
/// More resource limits than Linux has.
const MAX_LIMITS: usize = 32;
/// Longest validity of a join token.
const MAX_TOKEN_MS: u64 = 366 * 24 * 3_600_000;

impl Reactor {
    pub(super) fn request(
        &mut self,
        now_ms: u64,
        caller: Caller,
        request: Request,
        effects: &mut Vec<Effect>,
    ) {
        let client = caller.client;
        let outcome = match request {
            Request::Hello { .. } => {
                effects.push(Effect::Reply(client, Reply::Done));
                Ok(())
            }
            Request::Run(run) => self.run(now_ms, caller, *run, effects),
            Request::Nodes => {
                let list = self.nodes.iter().map(Node::info).collect();
                effects.push(Effect::Reply(client, Reply::Nodes(list)));
                Ok(())
            }
            Request::WaitNodes { count } => {
                self.node_waiters.push((client, count));
                self.tell_node_waiters(effects);
                Ok(())
            }
            Request::SetNodes { nodes, change } => {
                self.set_nodes(&caller, &nodes, &change, effects)
            }
            Request::Processes => {
                self.list_processes(now_ms, client, effects);
                Ok(())
            }
            Request::Views { nodes } => self.list_views(now_ms, &caller, nodes, effects),
            Request::CheckViews { nodes } => self.check_views(now_ms, &caller, nodes, effects),
            Request::Signal { pid, signal } => self.signal_pid(&caller, pid, signal, effects),
            Request::Jobs => {
                let running = self
                    .jobs
                    .values()
                    .map(|job| job.info(|node| self.nodes.name(node)));
                let list = self.kept.iter().cloned().chain(running).collect();
                effects.push(Effect::Reply(client, Reply::Jobs(list)));
                Ok(())
            }
            Request::WaitJob { job } => self.wait_job(&caller, job, effects),
            Request::Logs { job, index } => self.logs(&caller, job, index, effects),
            Request::MakeToken { valid_ms } => self
                .admin_only(&caller, "make join tokens")
                .map(|()| effects.push(Effect::MakeToken(client, valid_ms.min(MAX_TOKEN_MS)))),
            Request::HeadStatus => {
                effects.push(Effect::ReplyHeadStatus(client));
                Ok(())
            }
            Request::Shutdown => self.admin_only(&caller, "end the cluster").map(|()| {
                self.shutting_down = true;
                for node in self
                    .nodes
                    .iter()
                    .filter(|n| n.presence == Presence::Connected)
                {
                    effects.push(Effect::ToNode(node.id, ToAgent::Leave));
                }
                effects.push(Effect::Reply(client, Reply::Done));
                effects.push(Effect::Shutdown);
            }),
            // The daemon handles these itself: they bring descriptors, or are not about processes.
            Request::Ghost { .. }
            | Request::VirtualNode { .. }
            | Request::Listener
            | Request::Boot(_)
            | Request::Disk(_) => Ok(()),
        };
        if let Err(refusal) = outcome {
            effects.push(Effect::Reply(client, refuse(refusal)));
        }
    }

    fn admin_only(&self, caller: &Caller, what: &str) -> Result<(), Refusal> {
        if self.is_admin(&caller.credential) {
            return Ok(());
        }
        Err(Refusal::new(
            format!("only root and the cluster's administrators may {what}"),
            "use sudo, or ask an administrator",
        ))
    }

    fn run(
        &mut self,
        now_ms: u64,
        caller: Caller,
        request: RunRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        check_request(&request)?;
        if self.waiting.len() >= MAX_WAITING_JOBS {
            return Err(Refusal::new(
                format!("{MAX_WAITING_JOBS} jobs wait already"),
                "try again when some have ended",
            ));
        }
        self.waiting.push_back(Waiting {
            caller,
            request,
            told: false,
        });
        self.place_waiting(now_ms, effects);
        Ok(())
    }

    /// The job of a command that was in the middle of a launch when the head was restarted, and
    /// now asks again: it must not be started twice (P4).
    fn resumed_job(&self, caller: &Caller) -> Option<&Job> {
        let id = self.task_by_pid(caller.pid)?;
        let (job, task) = self.task(id)?;
        (job.credential == caller.credential
            && task.start_time == caller.start_time
            && task.ghost_died.is_none()
            && job.client.is_none())
        .then_some(job)
    }

    /// The task that such a command brings its descriptors for once more, and how many streams
    /// the task has.
    pub fn resumable(&self, caller: &Caller, index: u32) -> Option<(TaskId, usize)> {
        let job = self.resumed_job(caller)?;
        let streams = job
            .spec
            .stdio
            .iter()
            .filter(|kind| kind.has_descriptor())
            .count();
        Some((TaskId { job: job.id, index }, streams))
    }

    /// Gives waiting jobs their nodes, oldest first. A job that can't be placed does not hold up
    /// those behind it that want other nodes.
    pub(super) fn place_waiting(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if !self.has_inventory {
            return;
        }
        if self.return_until_ms <= now_ms {
            self.return_until_ms = 0;
        }
        let may_grow = self.return_until_ms > 0
            && self
                .nodes
                .iter()
                .any(|node| node.presence == Presence::Silent);
        let mut kept = std::collections::VecDeque::new();
        while let Some(mut waiting) = self.waiting.pop_front() {
            let client = waiting.caller.client;
            if let Some(job) = self.resumed_job(&waiting.caller) {
                let nodes = job
                    .tasks
                    .values()
                    .map(|task| (task.node, self.nodes.name(task.node)))
                    .collect();
                effects.push(Effect::Reply(client, Reply::Placed { job: job.id, nodes }));
                continue;
            }
            let credential = &waiting.caller.credential;
            let asker = Asker {
                uid: credential.uid,
                gid: credential.gid,
                groups: &credential.groups,
            };
            let selection = &waiting.request.selection;
            let wants_all = selection.all && may_grow;
            match place(&self.nodes, asker, selection) {
                // The nodes of the head before this one are just coming back.
                Placement::Placed(_) if wants_all => kept.push_back(waiting),
                Placement::Refused(_) if may_grow => kept.push_back(waiting),
                Placement::Placed(nodes) => {
                    if let Err(refusal) = self.start_job(now_ms, waiting, &nodes, effects) {
                        effects.push(Effect::Reply(client, refuse(refusal)));
                    }
                }
                // What is over already makes room in the moment that its ghost is reaped, which the
                // shell that runs this command may have seen before us.
                Placement::Wait(_) if waiting.request.selection.now && self.is_finishing() => {
                    kept.push_back(waiting);
                }
                Placement::Wait(reason) if waiting.request.selection.now => {
                    let refusal = Refusal::new(reason, "leave --now out to wait for a free slot");
                    effects.push(Effect::Reply(client, refuse(refusal)));
                }
                Placement::Wait(reason) => {
                    if !waiting.told {
                        waiting.told = true;
                        effects.push(Effect::Reply(client, Reply::Waiting { reason }));
                    }
                    kept.push_back(waiting);
                }
                Placement::Refused(refusal) => {
                    effects.push(Effect::Reply(client, refuse(refusal)));
                }
            }
        }
        self.waiting = kept;
    }

    /// Whether some task has ended and only its ghost is left.
    fn is_finishing(&self) -> bool {
        let mut tasks = self.jobs.values().flat_map(|job| job.tasks.values());
        tasks.any(|task| matches!(task.phase, Phase::Finishing(_)))
    }

    fn start_job(
        &mut self,
        now_ms: u64,
        waiting: Waiting,
        nodes: &[NodeId],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Waiting {
            caller, request, ..
        } = waiting;
        if caller.credential.uid == 0
            && self.policy.own_uid == 0
            && !self.policy.root_on_nodes
            && let Some(node) = nodes
                .iter()
                .filter_map(|id| self.nodes.get(*id))
                .find(|node| !node.is_virtual)
        {
            return Err(Refusal::new(
                format!("root's processes may not run on {}", node.name),
                "set `root_on_nodes = true` in the head's configuration to trust nodes as the head",
            ));
        }
        let id = JobId(self.next_job);
        self.next_job += 1;
        let deputy = self.deputy_for(&caller, effects);
        let placed: Vec<_> = nodes
            .iter()
            .map(|node| (*node, self.nodes.name(*node)))
            .collect();
        let mut job = Job {
            id,
            credential: caller.credential,
            spec: request.spec,
            tasks: std::collections::BTreeMap::new(),
            ended: std::collections::BTreeMap::new(),
            size: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            client: Some(caller.client),
            deadline_ms: (request.timeout_ms > 0).then(|| now_ms + request.timeout_ms),
            timed_out: false,
            detached: request.detach,
            exclusive: request.selection.exclusive,
            follow: request.follow,
        };
        for (index, node) in (0..).zip(nodes) {
            let task = TaskId { job: id, index };
            job.tasks.insert(index, new_task(task, *node, deputy));
            if let Some(node) = self.nodes.get_mut(*node) {
                node.tasks.insert(task);
                if job.exclusive {
                    node.exclusive = Some(id);
                }
            }
        }
        self.jobs.insert(id, job);
        effects.push(Effect::Reply(
            caller.client,
            Reply::Placed {
                job: id,
                nodes: placed,
            },
        ));
        Ok(())
    }

    fn deputy_for(&mut self, caller: &Caller, effects: &mut Vec<Effect>) -> DeputyId {
        if let Some(deputy) = self.deputies.get(&caller.credential) {
            return *deputy;
        }
        let deputy = DeputyId(self.next_deputy);
        self.next_deputy += 1;
        self.deputies.insert(caller.credential.clone(), deputy);
        let credential = caller.credential.clone();
        effects.push(Effect::ToKeeper(ToKeeper::StartDeputy {
            deputy,
            credential,
        }));
        deputy
    }

    /// The daemon has checked that `pid` is the caller or a child of it.
    pub(super) fn ghost(
        &mut self,
        caller: &Caller,
        index: u32,
        process: (Pid, u64),
        mode: GhostMode,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(refusal) = self.name_ghost(caller, index, process, mode, effects) {
            effects.push(Effect::Reply(caller.client, refuse(refusal)));
        }
    }

    fn name_ghost(
        &mut self,
        caller: &Caller,
        index: u32,
        (pid, start_time): (Pid, u64),
        mode: GhostMode,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if let Some(id) = self
            .resumed_job(caller)
            .map(|job| TaskId { job: job.id, index })
        {
            if let Some(job) = self.jobs.get_mut(&id.job) {
                job.client = Some(caller.client);
            }
            self.go_on(id, effects);
            return Ok(());
        }
        let incarnation = self
            .jobs
            .values()
            .rev()
            .find(|job| job.client == Some(caller.client))
            .and_then(|job| job.tasks.get(&index))
            .and_then(|task| self.nodes.get(task.node))
            .and_then(|node| node.incarnation);
        let job = self
            .jobs
            .values_mut()
            .rev()
            .find(|job| job.client == Some(caller.client));
        let Some(job) = job else {
            return Err(Refusal::new("this command has no job", "run it again"));
        };
        let id = TaskId { job: job.id, index };
        let uid = job.credential.uid;
        let Some(task) = job.tasks.get_mut(&index) else {
            return Err(Refusal::new(
                format!("the job has no task {index}"),
                "run it again",
            ));
        };
        if task.phase != Phase::Placed {
            return Err(Refusal::new(
                format!("task {index} has its ghost already"),
                "run it again",
            ));
        }
        task.phase = Phase::Seizing;
        task.pid = pid;
        task.start_time = start_time;
        task.incarnation = incarnation;
        task.mode = mode;
        let Some((job, task)) = self.task(id) else {
            return Ok(());
        };
        let record = TaskRecord::of(job, task).to_bytes();
        effects.push(Effect::ToKeeper(ToKeeper::Seize {
            task: id,
            pid,
            uid,
            start_time,
            mode,
            record,
        }));
        Ok(())
    }

    pub(super) fn client_gone(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        self.waiting
            .retain(|waiting| waiting.caller.client != client);
        self.job_waiters.retain(|(waiter, _)| *waiter != client);
        self.node_waiters.retain(|(waiter, _)| *waiter != client);
        self.signal_requests.retain(|_, waiter| *waiter != client);
        self.lists.retain(|_, list| list.client != client);
        let mut orphans = Vec::new();
        for job in self
            .jobs
            .values_mut()
            .filter(|job| job.client == Some(client))
        {
            job.client = None;
            // Tasks whose ghosts were never named have nobody to end for.
            orphans.extend(
                job.tasks
                    .values()
                    .filter(|t| t.phase == Phase::Placed)
                    .map(|t| t.id),
            );
        }
        for id in orphans {
            let status = wiglaf_wire::status::Status::cluster_failed("its command went away");
            self.remove(id, status, effects);
        }
    }

    fn set_nodes(
        &mut self,
        caller: &Caller,
        nodes: &str,
        change: &NodeChange,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.admin_only(caller, "change nodes")?;
        let ids = resolve(&self.nodes, nodes)?;
        for id in ids {
            let Some(node) = self.nodes.get_mut(id) else {
                continue;
            };
            match change {
                NodeChange::Drain => node.wanted = Wanted::Drain,
                NodeChange::Resume | NodeChange::State(NodeState::Up) => node.wanted = Wanted::Up,
                NodeChange::State(NodeState::Unavailable) => node.wanted = Wanted::Unavailable,
                NodeChange::State(NodeState::Error) => node.wanted = Wanted::Error,
                NodeChange::State(NodeState::Drain) => node.wanted = Wanted::Drain,
                NodeChange::State(state) => {
                    return Err(Refusal::new(
                        format!("state {} comes by itself; it can't be set", state.name()),
                        "one can set: up, drain, unavailable, error",
                    ));
                }
                NodeChange::Owner(uid) => node.uid = *uid,
                NodeChange::Group(gid) => node.gid = *gid,
                NodeChange::Mode(mode) => node.mode = mode & 0o111,
                NodeChange::Slots(slots) => node.slots = Some((*slots).max(1)),
            }
            effects.push(Effect::StoreNode(Box::new(node.clone())));
        }
        effects.push(Effect::Reply(caller.client, Reply::Done));
        self.tell_node_waiters(effects);
        Ok(())
    }

    fn wait_job(
        &mut self,
        caller: &Caller,
        id: JobId,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let owner = self.job_owner(id)?;
        self.only_owner(caller, owner, id)?;
        if let Some(info) = self.kept.iter().find(|job| job.job == id) {
            effects.push(Effect::Reply(caller.client, Reply::JobEnded(info.clone())));
        } else {
            self.job_waiters.push((caller.client, id));
        }
        Ok(())
    }

    fn logs(
        &self,
        caller: &Caller,
        id: JobId,
        index: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let owner = self.job_owner(id)?;
        self.only_owner(caller, owner, id)?;
        let task = TaskId { job: id, index };
        let is_running = self.task(task).is_some();
        effects.push(Effect::ReplyLogs(caller.client, task, is_running));
        Ok(())
    }

    fn job_owner(&self, id: JobId) -> Result<u32, Refusal> {
        let running = self.jobs.get(&id).map(|job| job.credential.uid);
        let kept = || {
            self.kept
                .iter()
                .find(|job| job.job == id)
                .map(|job| job.uid)
        };
        running.or_else(kept).ok_or_else(|| {
            Refusal::new(
                format!("there is no job {id}"),
                "`wiglaf jobs` shows the jobs",
            )
        })
    }

    fn only_owner(&self, caller: &Caller, owner: u32, id: JobId) -> Result<(), Refusal> {
        if owner == caller.credential.uid || self.is_admin(&caller.credential) {
            return Ok(());
        }
        Err(Refusal::new(
            format!("job {id} is not yours"),
            "`wiglaf jobs` shows whose it is",
        ))
    }
}

fn new_task(id: TaskId, node: NodeId, deputy: DeputyId) -> Task {
    Task {
        id,
        node,
        pid: Pid(0),
        start_time: 0,
        incarnation: None,
        awaits_deputy: false,
        phase: Phase::Placed,
        ghost_died: None,
        verdict: None,
        deputy,
        deputy_gone: false,
        mode: GhostMode::default(),
        pending_signals: Vec::new(),
        usage: Usage::default(),
        uncertain: false,
    }
}

fn check_request(request: &RunRequest) -> Result<(), Refusal> {
    let spec = &request.spec;
    if spec.argv.is_empty() || spec.argv[0].is_empty() {
        return Err(Refusal::new(
            "no command is given",
            "for example: wiglaf run -w n1 uname -a",
        ));
    }
    let strings = spec.argv.iter().chain(&spec.env);
    if strings.clone().any(|s| s.contains(&0)) || spec.cwd.contains(&0) {
        return Err(Refusal::new(
            "an argument contains a zero byte",
            "leave it out",
        ));
    }
    let bytes: usize = strings
        .map(|string| string.len() + 1 + size_of::<usize>())
        .sum();
    if bytes > MAX_SPEC_BYTES {
        return Err(Refusal::new(
            format!("the arguments and the environment have {bytes} bytes, over {MAX_SPEC_BYTES}"),
            "as with E2BIG on one machine: use xargs, or a file",
        ));
    }
    if spec.cwd.len() > MAX_PATH_BYTES || spec.limits.len() > MAX_LIMITS {
        return Err(Refusal::new(
            "the working directory's name is too long",
            "use a shorter one",
        ));
    }
    if !spec.cwd.starts_with(b"/") {
        return Err(Refusal::new(
            "the working directory is not absolute",
            "cd to it, or use --chdir",
        ));
    }
    if request.detach && spec.stdio.contains(&StdioKind::Terminal) {
        return Err(Refusal::new(
            "a detached job has no terminal",
            "leave out --tty or --detach",
        ));
    }
    Ok(())
}

pub(crate) fn refuse(refusal: Refusal) -> Reply {
    Reply::Refused {
        code: refusal.code,
        message: refusal.message,
        hint: refusal.hint,
    }
}
