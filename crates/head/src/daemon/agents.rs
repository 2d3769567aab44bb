//! Nodes' agents: TLS connections, the proof of who they are, and virtual nodes' proofs of death.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use wiglaf_link::{Interest, JoinToken, LinkError, Ready, Role, peek_server_name};
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::client::Reply;
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::frame::Frame;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::nodeset::is_node_name;

use super::clients::refused;
use super::{
    Agent, AgentLink, CONNECTIONS, Daemon, DaemonError, Kind, LOOK_AGAIN_MS, MAX_UNPROVEN,
    MAX_WAITING_LINKS, PROOF_WAIT_MS, Unproven, accept, await_room, is_over, log, now_ms, token,
    wall_clock_s,
};
use crate::node_table::Presence;
use crate::reactor::Event;

impl Daemon {
    pub(super) fn listen_for_agents(&mut self, address: SocketAddr) -> Result<(), DaemonError> {
        let failed = |errno| DaemonError::Socket {
            what: format!("listening on {address}"),
            errno,
        };
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(failed)?;
        rustix::net::listen(&socket, 4096).map_err(failed)?;
        self.poll.add(&socket, CONNECTIONS, Interest::Read)?;
        self.listeners.push((None, socket));
        Ok(())
    }

    pub(super) fn accept_connections(&mut self) {
        let mut accepted = Vec::new();
        let listeners = self.listeners.iter().map(|(_, socket)| socket);
        for listener in listeners.chain(self.boot.listeners()) {
            accepted.extend(std::iter::from_fn(|| accept(listener)).take(MAX_UNPROVEN));
        }
        for socket in accepted {
            if self.unproven.len() >= MAX_UNPROVEN {
                continue;
            }
            let number = self.number();
            if self
                .poll
                .add(&socket, token(Kind::Unproven, number), Interest::Read)
                .is_ok()
            {
                let deadline = now_ms() + PROOF_WAIT_MS;
                self.unproven
                    .insert(number, (Unproven::Fresh(socket, None), deadline));
            }
        }
    }

    pub(super) fn drop_late_unproven(&mut self) {
        let now = now_ms();
        self.unproven.retain(|_, (_, deadline)| *deadline > now);
    }

    /// Connections whose ClientHello was not whole.
    pub(super) fn look_again(&mut self) {
        let now = now_ms();
        let due = |connection: &Unproven| matches!(connection, Unproven::Fresh(_, Some(at)) if *at <= now);
        let numbers: Vec<_> = self
            .unproven
            .iter()
            .filter(|(_, (c, _))| due(c))
            .map(|(number, _)| *number)
            .collect();
        numbers
            .into_iter()
            .for_each(|number| self.unproven_ready(number));
    }

    pub(super) fn unproven_ready(&mut self, number: u64) {
        let Some((connection, deadline)) = self.unproven.remove(&number) else {
            return;
        };
        let outcome = match connection {
            Unproven::Fresh(socket, _) => self.route(number, socket),
            Unproven::Handshake(link) => self.prove(number, link),
        };
        match outcome {
            Ok(Some(connection)) => {
                self.unproven.insert(number, (connection, deadline));
            }
            Ok(None) => {}
            // An agent that has its certificate hangs up and comes again.
            Err(LinkError::Closed) => {}
            Err(error) => log(&format!("a connection was refused: {error}")),
        }
    }

    /// Who is the connection for? A deputy's is handed on untouched; the head's own goes on here.
    fn route(&mut self, number: u64, socket: OwnedFd) -> Result<Option<Unproven>, LinkError> {
        let Some(name) = peek_server_name(&socket)? else {
            // What has been looked at is still there to be read: waiting for it would spin.
            self.poll
                .modify(&socket, token(Kind::Unproven, number), Interest::None)?;
            return Ok(Some(Unproven::Fresh(
                socket,
                Some(now_ms() + LOOK_AGAIN_MS),
            )));
        };
        self.poll.remove(&socket)?;
        match Role::from_name(&name) {
            Some(Role::Deputy(deputy)) => {
                // Only of deputies that there are: a stranger may ask for any number (S1).
                let is_starting = self.deputy_queues.get(&deputy).is_some_and(|waiting| {
                    let is_link = |(message, _): &&(ToDeputy, _)| *message == ToDeputy::Link;
                    waiting.iter().filter(is_link).count() < MAX_WAITING_LINKS
                });
                if !self.deputies.contains_key(&deputy) && !is_starting {
                    return Err(LinkError::Closed);
                }
                self.send_deputy(deputy, ToDeputy::Link, vec![socket]);
                Ok(None)
            }
            Some(Role::Head) => {
                let link = AgentLink::server(socket, self.tls.clone())?;
                self.poll
                    .add(&link, token(Kind::Unproven, number), Interest::Read)?;
                self.prove(number, Box::new(link))
            }
            _ => Err(LinkError::Closed),
        }
    }

    /// Takes the first message: a request to join, or the hello of a member.
    fn prove(
        &mut self,
        number: u64,
        mut link: Box<AgentLink>,
    ) -> Result<Option<Unproven>, LinkError> {
        link.receive()?;
        let first = match link.next_frame()? {
            Some(Frame::Message(message)) => message,
            Some(Frame::Data(..)) => return Err(LinkError::Closed),
            None => {
                let interest = Interest::read_and(link.wants_write());
                self.poll
                    .modify(&*link, token(Kind::Unproven, number), interest)?;
                return Ok(Some(Unproven::Handshake(link)));
            }
        };
        let role = link
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(Role::of_certificate);
        match (first, role) {
            (
                FromAgent::Join {
                    version,
                    token: secret,
                    name,
                    request,
                },
                _,
            ) => {
                let answer = self.join(version, &secret, name, &request);
                link.send(&answer)?;
                // The agent closes when it has read the answer; until then, or the deadline, the
                // connection is kept.
                Ok(Some(Unproven::Handshake(link)))
            }
            (
                FromAgent::JoinBooted {
                    version,
                    mac,
                    request,
                },
                _,
            ) => {
                let from = rustix::net::getpeername(&*link)
                    .ok()
                    .and_then(|address| SocketAddr::try_from(address?).ok());
                let answer = self.join_booted(version, mac, &request, from);
                link.send(&answer)?;
                Ok(Some(Unproven::Handshake(link)))
            }
            (FromAgent::Hello { .. }, Some(Role::Node(node))) if !self.is_present(node, &link) => {
                link.send(&ToAgent::Refused {
                    reason: "another machine is this node now, or nobody is to be: join anew \
                             (`wiglaf node token` on the head, or start it from the network)"
                        .into(),
                })?;
                Ok(Some(Unproven::Handshake(link)))
            }
            (hello @ FromAgent::Hello { .. }, Some(Role::Node(node))) => {
                self.poll.remove(&*link)?;
                self.drop_agent(node);
                self.poll
                    .add(&*link, token(Kind::Node, u64::from(node.0)), Interest::Read)?;
                self.agents.insert(
                    node,
                    Agent {
                        link: *link,
                        awaits_room: false,
                    },
                );
                self.event(Event::NodeHello { node, hello });
                // It may have been refused.
                let known = self.reactor.nodes().get(node);
                if let Some(known) = known.filter(|node| node.presence == Presence::Connected) {
                    let name = known.name.clone();
                    self.machine_is_up(node);
                    self.tell_keeping_key(node, &name);
                }
                self.tell_names(node);
                self.agent_frames(node);
                Ok(None)
            }
            _ => Err(LinkError::Closed),
        }
    }

    /// Whether a certificate is the one that the node has now: who was given one before may be
    /// alive all the same, and must not be taken for whoever came after.
    fn is_present(&self, node: NodeId, link: &AgentLink) -> bool {
        let chain = link.peer_certificates().unwrap_or_default();
        let certificate = chain.first().map_or(&[][..], |first| first);
        match self.store.is_last_certificate(node, certificate) {
            Ok(is_last) => is_last,
            Err(error) => {
                log(&error.to_string());
                true
            }
        }
    }

    fn join(&mut self, version: u32, secret: &[u8], name: Option<String>, key: &[u8]) -> ToAgent {
        let refuse = |reason: &str| ToAgent::Refused {
            reason: reason.to_owned(),
        };
        if version != wiglaf_wire::PROTOCOL_VERSION {
            return refuse("it speaks another protocol: use the head's own wiglaf binary");
        }
        let hash = JoinToken::secret_hash(secret);
        match self.store.has_token(&hash, wall_clock_s()) {
            Ok(true) => {}
            Ok(false) => {
                return refuse(
                    "the head does not know this token, or it is too old: \
                     `wiglaf node token` on the head makes a new one",
                );
            }
            Err(error) => return refuse(&error.to_string()),
        }
        let name = name.unwrap_or_else(|| {
            let machines = &self.boot.machines;
            self.reactor
                .nodes()
                .free_name_but(|name| machines.find(name).is_ok())
        });
        if !is_node_name(&name) {
            return refuse("its name can't be a node's: letters, digits, - and . are allowed");
        }
        if let Some(node) = self.reactor.nodes().by_name(&name)
            && node.presence != Presence::Absent
        {
            // What a silent one runs may live until the fence (P4).
            return refuse(
                "a node with this name is connected, or has been until now: give this one \
                 another --name, or wait until `wiglaf nodes` shows that one as down",
            );
        }
        if let Ok(machine) = self.boot.machines.find(&name) {
            return refuse(&format!(
                "{name} is the machine {} that boots from the network: give this one another --name",
                machine.mac
            ));
        }
        self.certify(&name, key)
    }

    /// Makes a machine the node of this name.
    pub(super) fn certify(&mut self, name: &str, key: &[u8]) -> ToAgent {
        let refuse = |reason: &str| ToAgent::Refused {
            reason: reason.to_owned(),
        };
        let virtual_nodes = &self.virtual_nodes;
        let enrolled = self.reactor.nodes_mut().enrol(name).map(|node| {
            // A machine that takes the name of a virtual node of old is none.
            node.is_virtual = virtual_nodes.contains_key(&node.id);
            node.clone()
        });
        let node = match enrolled {
            Ok(node) => node,
            Err(error) => return refuse(&error.to_string()),
        };
        if let Err(error) = self.store.put_node(&node) {
            return refuse(&error.to_string());
        }
        let certificate = match self.authority.certify(Role::Node(node.id), key) {
            Ok(certificate) => certificate.to_vec(),
            Err(error) => return refuse(&error.to_string()),
        };
        if let Err(error) = self.store.put_certificate(node.id, &certificate) {
            return refuse(&error.to_string());
        }
        ToAgent::Certificate {
            certificate,
            authority: self.authority.certificate().to_vec(),
        }
    }

    pub(super) fn agent_ready(&mut self, node: NodeId, ready: Ready) {
        if ready.writable {
            self.flush_agent(node);
        }
        if !ready.readable {
            return;
        }
        let Some(agent) = self.agents.get_mut(&node) else {
            return;
        };
        let (_, ended) = is_over(agent.link.receive());
        self.agent_frames(node);
        if let Some(error) = ended {
            self.agent_lost(node, &error);
        }
    }

    fn agent_frames(&mut self, node: NodeId) {
        loop {
            let Some(agent) = self.agents.get_mut(&node) else {
                return;
            };
            match agent.link.next_frame() {
                Ok(Some(Frame::Message(message))) => self.event(Event::FromNode(node, message)),
                Ok(Some(Frame::Data(..))) => return self.agent_lost(node, &LinkError::Closed),
                Ok(None) => return,
                Err(error) => return self.agent_lost(node, &error),
            }
        }
    }

    fn agent_lost(&mut self, node: NodeId, error: &LinkError) {
        let name = self.reactor.nodes().name(node);
        log(&format!("{name}: {error}"));
        self.drop_agent(node);
    }

    pub(super) fn drop_agent(&mut self, node: NodeId) {
        if let Some(mut agent) = self.agents.remove(&node) {
            // What was queued last may be the reason.
            let _ = agent.link.flush();
            let _ = self.poll.remove(&agent.link);
            self.event(Event::NodeLost(node));
        }
    }

    pub(super) fn tell_agent(&mut self, node: NodeId, message: &ToAgent) {
        let Some(agent) = self.agents.get_mut(&node) else {
            return;
        };
        match agent.link.queue(message) {
            Ok(()) => {
                self.dirty.insert(token(Kind::Node, u64::from(node.0)));
            }
            Err(error) => self.agent_lost(node, &error),
        }
    }

    pub(super) fn flush_agent(&mut self, node: NodeId) {
        let Some(agent) = self.agents.get_mut(&node) else {
            return;
        };
        if let Err(error) = agent.link.flush() {
            return self.agent_lost(node, &error);
        }
        let Agent { link, awaits_room } = agent;
        let watched = token(Kind::Node, u64::from(node.0));
        let wanted = link.wants_write();
        await_room(&self.poll, &*link, watched, awaits_room, wanted);
    }

    /// From the rack: the pidfd of a virtual node's agent.
    pub(super) fn virtual_node(&mut self, number: u64, name: &str) -> Result<(), LinkError> {
        let Some(client) = self.clients.get_mut(&number) else {
            return Ok(());
        };
        let pidfd = client.channel.descriptors().take()?;
        let caller = client.caller.clone();
        if caller.credential.uid != self.reactor.policy().own_uid {
            let reply = refused("only the head's own user holds virtual nodes".into());
            self.reply(caller.client, &reply, Vec::new());
            return Ok(());
        }
        let enrolled = self.reactor.nodes_mut().enrol(name).map(|node| {
            node.is_virtual = true;
            node.clone()
        });
        match enrolled {
            Ok(node) => {
                let watched = token(Kind::VirtualNode, u64::from(node.id.0));
                if let Some(old) = self.virtual_nodes.remove(&node.id) {
                    let _ = self.poll.remove(&old);
                }
                self.poll.add(&pidfd, watched, Interest::Read)?;
                self.virtual_nodes.insert(node.id, pidfd);
                let _ = self.store.put_node(&node);
                self.reply(caller.client, &Reply::Done, Vec::new());
            }
            Err(error) => self.reply(caller.client, &refused(error.to_string()), Vec::new()),
        }
        Ok(())
    }

    pub(super) fn virtual_node_died(&mut self, node: NodeId) {
        if let Some(pidfd) = self.virtual_nodes.remove(&node) {
            let _ = self.poll.remove(&pidfd);
            self.event(Event::NodeProvenDead(node));
        }
    }
}
