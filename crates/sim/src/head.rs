//! The head's daemon around the reactor: who is connected, and what waits for whom. It follows
//! `crates/head/src/daemon`, effect by effect.

use std::collections::{BTreeMap, BTreeSet};

use wiglaf_head::jobs::{Caller, ClientId};
use wiglaf_head::node_table::{NodeTable, Presence};
use wiglaf_head::reactor::{Effect, Event as HeadEvent, Policy, Reactor};
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostMode, ToKeeper};

use crate::faults::Mistake;
use crate::keeper::KeeperSays;
use crate::network::{ConnId, Down, HeadEnd};
use crate::world::{Event, Wire, World};

const JOB_NUMBERS_PER_GRANT: u64 = 1_000;

pub(crate) struct Head {
    pub(crate) life: u64,
    pub(crate) reactor: Reactor,
    agents: BTreeMap<NodeId, ConnId>,
    pub(crate) clients: BTreeMap<ClientId, (Caller, usize)>,
    deputies: BTreeSet<DeputyId>,
    deputy_queues: BTreeMap<DeputyId, Vec<ToDeputy>>,
    pub(crate) parcels: BTreeMap<TaskId, Parcel>,
    /// The life of the keeper that it is connected to.
    keeper: Option<u64>,
    tick_at_ms: Option<u64>,
}

/// The descriptors of a task.
pub(crate) struct Parcel {
    control: Option<Pid>,
    stdio: bool,
}

impl World {
    pub(crate) fn start_head(&mut self) {
        if self.head.is_some() {
            return;
        }
        self.head_lives += 1;
        let mut table = NodeTable::default();
        for stored in self.store.nodes.iter() {
            let node = table.insert(stored.id, stored.name.clone());
            (node.slots, node.is_virtual) = (stored.slots, stored.is_virtual);
        }
        let (lease_ms, margin_ms) = match self.setup.mistake {
            Some(Mistake::ShortLease(lease_ms)) => (lease_ms, 0),
            _ => (self.setup.lease_ms, self.setup.margin_ms),
        };
        let policy = Policy {
            lease_ms,
            margin_ms,
            root_on_nodes: true,
            ..Policy::default()
        };
        let reactor = Reactor::new(policy, table, Vec::new(), self.store.next_job);
        self.store.next_job += JOB_NUMBERS_PER_GRANT;
        self.head = Some(Head {
            life: self.head_lives,
            reactor,
            agents: BTreeMap::new(),
            clients: BTreeMap::new(),
            deputies: BTreeSet::new(),
            deputy_queues: BTreeMap::new(),
            parcels: BTreeMap::new(),
            keeper: None,
            tick_at_ms: None,
        });
        self.connect_keeper();
    }

    fn connect_keeper(&mut self) {
        let life = self.head_lives;
        self.meet_keeper(life);
        let keeper = self.keeper.life;
        if let Some(head) = &mut self.head {
            head.keeper = Some(keeper);
        }
    }

    pub(crate) fn crash_head(&mut self) {
        let Some(head) = self.head.take() else { return };
        let open: Vec<_> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.head != HeadEnd::Closed)
            .map(|(id, _)| *id)
            .collect();
        open.into_iter().for_each(|conn| self.close_head_end(conn));
        for pid in head
            .parcels
            .into_values()
            .filter_map(|parcel| parcel.control)
        {
            self.control_socket_closes(pid);
        }
        for (client, (_, command)) in head.clients {
            let delay_ms = self.local_ms();
            let closed = Event::HeadToCommand {
                command,
                client,
                reply: None,
            };
            self.send(Wire::HeadToCommand(client), delay_ms, closed);
        }
    }

    /// Lets the reactor take an event, and carries out what it wants.
    fn head_event(&mut self, event: HeadEvent) {
        let now_ms = self.now_ms;
        let Some(head) = &mut self.head else { return };
        let before = presences(head);
        let mut effects = Vec::new();
        head.reactor.handle(now_ms, event, &mut effects);
        let after = presences(head);
        for (node, presence) in after {
            if presence == Presence::Absent && before.get(&node) != Some(&Presence::Absent) {
                self.node_became_absent(node);
            }
        }
        for effect in effects {
            self.note(|_| format!("  head does {effect:?}"));
            self.carry_out(effect);
        }
        self.plan_head_tick();
    }

    /// A node that is fenced rightly excuses what is told of its tasks.
    fn node_became_absent(&mut self, node: NodeId) {
        let Some(machine) = self.nodes.get(&node) else {
            return;
        };
        let fence_ms = self.setup.lease_ms + self.setup.margin_ms;
        if machine
            .answered_ms
            .is_none_or(|at| self.now_ms >= at + fence_ms)
        {
            self.excuse("its node was fenced", |truth| truth.node == node);
        }
    }

    fn plan_head_tick(&mut self) {
        let now_ms = self.now_ms;
        let jitter_ms = self.rng.below(5);
        let Some(head) = &mut self.head else { return };
        let Some(deadline) = head.reactor.next_deadline_ms() else {
            return;
        };
        let at_ms = deadline.max(now_ms) + 1 + jitter_ms;
        if head.tick_at_ms.is_none_or(|planned| planned > at_ms) {
            head.tick_at_ms = Some(at_ms);
            let life = head.life;
            self.at(at_ms, Event::HeadTick { life });
        }
    }

    pub(crate) fn head_tick(&mut self, life: u64) {
        let Some(head) = self.head.as_mut().filter(|head| head.life == life) else {
            return;
        };
        head.tick_at_ms = None;
        self.head_event(HeadEvent::Tick);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::ToNode(node, message) => self.tell_agent(node, message),
            Effect::DropNode(node) => self.drop_agent(node),
            Effect::ToKeeper(message) => self.tell_keeper(message),
            Effect::ToDeputy(deputy, message) => self.tell_deputy(deputy, message),
            Effect::Reply(client, reply) => self.reply(client, reply),
            Effect::Forget(task) => {
                let parcel = self
                    .head
                    .as_mut()
                    .and_then(|head| head.parcels.remove(&task));
                if let Some(pid) = parcel.and_then(|parcel| parcel.control) {
                    self.control_socket_closes(pid);
                }
            }
            Effect::ReplyLogs(..)
            | Effect::StoreNode(_)
            | Effect::StoreJob(_)
            | Effect::MakeToken(..)
            | Effect::ReplyHeadStatus(_)
            | Effect::Shutdown => {}
        }
    }

    fn tell_agent(&mut self, node: NodeId, mut message: ToAgent) {
        let Some(conn) = self
            .head
            .as_ref()
            .and_then(|head| head.agents.get(&node))
            .copied()
        else {
            return;
        };
        if let ToAgent::Welcome { lease_ms, .. } = &mut message {
            *lease_ms = self.setup.lease_ms;
        }
        if matches!(message, ToAgent::Welcome { .. } | ToAgent::Renewed { .. })
            && let Some(machine) = self.nodes.get_mut(&node)
        {
            machine.answered_ms = Some(self.now_ms);
        }
        self.push_down(conn, Down::Message(message));
    }

    fn drop_agent(&mut self, node: NodeId) {
        if let Some(conn) = self
            .head
            .as_mut()
            .and_then(|head| head.agents.remove(&node))
        {
            self.close_head_end(conn);
            self.head_event(HeadEvent::NodeLost(node));
        }
    }

    fn tell_keeper(&mut self, message: ToKeeper) {
        let Some(head) = &mut self.head else { return };
        match &message {
            ToKeeper::Seize { task, .. } => {
                if let Some(parcel) = head.parcels.get_mut(task) {
                    parcel.control = None;
                }
            }
            ToKeeper::Finish { task, .. } => {
                let task = *task;
                self.called_over(task);
            }
            _ => {}
        }
        let Some(life) = self.head.as_ref().and_then(|head| head.keeper) else {
            if let ToKeeper::Seize { pid, .. } = message {
                self.control_socket_closes(pid);
            }
            return;
        };
        let delay_ms = self.local_ms();
        self.send(
            Wire::HeadToKeeper,
            delay_ms,
            Event::HeadToKeeper { life, message },
        );
    }

    fn tell_deputy(&mut self, deputy: DeputyId, message: ToDeputy) {
        let Some(head) = &mut self.head else { return };
        match &message {
            ToDeputy::Attach { task, .. } => match head.parcels.get_mut(task) {
                Some(parcel) if parcel.stdio => parcel.stdio = false,
                // Nothing to attach: the daemon keeps it to itself.
                _ => return,
            },
            ToDeputy::Say { task, .. } => {
                let task = *task;
                self.called_over(task);
            }
            _ => {}
        }
        self.send_deputy(deputy, message);
    }

    fn send_deputy(&mut self, deputy: DeputyId, message: ToDeputy) {
        let Some(head) = &mut self.head else { return };
        if !head.deputies.contains(&deputy) {
            head.deputy_queues.entry(deputy).or_default().push(message);
            return;
        }
        let Some(keeper) = head.keeper else { return };
        let delay_ms = self.local_ms();
        let event = Event::HeadToDeputy {
            keeper,
            deputy,
            message,
        };
        self.send(Wire::HeadToDeputy(deputy), delay_ms, event);
    }

    fn reply(&mut self, client: ClientId, reply: Reply) {
        let Some(command) = self
            .head
            .as_ref()
            .and_then(|head| head.clients.get(&client))
            .map(|(_, c)| *c)
        else {
            return;
        };
        let delay_ms = self.local_ms();
        let event = Event::HeadToCommand {
            command,
            client,
            reply: Some(reply),
        };
        self.send(Wire::HeadToCommand(client), delay_ms, event);
    }

    // --- what arrives -----------------------------------------------------------------------

    pub(crate) fn head_hears_keeper(&mut self, life: u64, message: KeeperSays) {
        let Some(head) = self.head.as_mut().filter(|head| head.life == life) else {
            return;
        };
        match message {
            KeeperSays::Message(message) => {
                if let FromKeeper::DeputyGone { deputy, .. } = &message {
                    head.deputies.remove(deputy);
                    head.deputy_queues.remove(deputy);
                }
                self.head_event(HeadEvent::FromKeeper(message));
            }
            KeeperSays::Deputy(deputy, message) => {
                head.deputies.insert(deputy);
                let queue = head.deputy_queues.remove(&deputy).unwrap_or_default();
                queue
                    .into_iter()
                    .for_each(|message| self.send_deputy(deputy, message));
                let delay_ms = self.local_ms();
                let wire = Wire::DeputyToHead(deputy);
                self.send(
                    wire,
                    delay_ms,
                    Event::DeputyToHead {
                        life,
                        deputy,
                        message,
                    },
                );
            }
            KeeperSays::Gone => {
                head.keeper = None;
                head.deputies.clear();
                head.deputy_queues.clear();
                self.head_event(HeadEvent::KeeperLost);
                self.connect_keeper();
            }
        }
    }

    pub(crate) fn head_hears_deputy(&mut self, life: u64, deputy: DeputyId, message: FromDeputy) {
        if self
            .head
            .as_ref()
            .is_some_and(|h| h.life == life && h.deputies.contains(&deputy))
        {
            self.head_event(HeadEvent::FromDeputy(deputy, message));
        }
    }

    pub(crate) fn head_proves(&mut self, node: NodeId, conn: ConnId, hello: FromAgent) {
        self.drop_agent(node);
        if let Some(found) = self.conns.get_mut(&conn) {
            found.head = HeadEnd::Proven;
        }
        if let Some(head) = &mut self.head {
            head.agents.insert(node, conn);
        }
        self.head_event(HeadEvent::NodeHello { node, hello });
    }

    pub(crate) fn head_hears_agent(&mut self, node: NodeId, conn: ConnId, message: FromAgent) {
        if self
            .head
            .as_ref()
            .is_some_and(|head| head.agents.get(&node) == Some(&conn))
        {
            self.head_event(HeadEvent::FromNode(node, message));
        }
    }

    pub(crate) fn head_loses_agent(&mut self, node: NodeId, conn: ConnId) {
        let Some(head) = &mut self.head else { return };
        if head.agents.get(&node) == Some(&conn) {
            head.agents.remove(&node);
            self.close_head_end(conn);
            self.head_event(HeadEvent::NodeLost(node));
        }
    }

    /// The pidfd of a virtual node's agent: only a head that was running has it.
    pub(crate) fn head_sees_agent_die(&mut self, node: NodeId) {
        if self.rng.chance(80) {
            self.head_event(HeadEvent::NodeProvenDead(node));
        }
    }

    pub(crate) fn head_hears_command(
        &mut self,
        life: u64,
        client: ClientId,
        request: Option<Request>,
    ) {
        let Some(head) = self.head.as_mut().filter(|head| head.life == life) else {
            return;
        };
        let Some((caller, _)) = head.clients.get(&client).cloned() else {
            return;
        };
        match request {
            None => {
                head.clients.remove(&client);
                self.head_event(HeadEvent::ClientGone(client));
            }
            Some(Request::Ghost { index, pid, mode }) => {
                self.ghost_named(caller, index, pid, mode);
            }
            Some(request) => self.head_event(HeadEvent::Request(caller, request)),
        }
    }

    fn ghost_named(&mut self, caller: Caller, index: u32, pid: Pid, mode: GhostMode) {
        let Some(head) = &mut self.head else { return };
        if let Some(job) = head.reactor.job_of(caller.client) {
            let task = TaskId { job: job.id, index };
            let Some(start_time) = self.pids.get(&pid).copied() else {
                let message = "no such process".into();
                let reply = Reply::Refused {
                    code: 125,
                    message,
                    hint: None,
                };
                return self.reply(caller.client, reply);
            };
            head.parcels.insert(
                task,
                Parcel {
                    control: Some(pid),
                    stdio: true,
                },
            );
            self.head_event(HeadEvent::Ghost {
                caller,
                index,
                pid,
                start_time,
                mode,
            });
        } else if let Some((task, _)) = head.reactor.resumable(&caller, index) {
            head.parcels.insert(
                task,
                Parcel {
                    control: None,
                    stdio: true,
                },
            );
            let start_time = caller.start_time;
            self.head_event(HeadEvent::Ghost {
                caller,
                index,
                pid,
                start_time,
                mode,
            });
        } else {
            let message = "this command has no job; run it again".into();
            let reply = Reply::Refused {
                code: 125,
                message,
                hint: None,
            };
            self.reply(caller.client, reply);
        }
    }
}

fn presences(head: &Head) -> BTreeMap<NodeId, Presence> {
    head.reactor
        .nodes()
        .iter()
        .map(|node| (node.id, node.presence))
        .collect()
}
