//! Commands at the head's Unix socket.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use wiglaf_link::{Interest, JoinToken, LinkError, Ready};
use wiglaf_wire::PROTOCOL_VERSION;
use wiglaf_wire::client::{HeadStatus, Reply, Request};
use wiglaf_wire::id::{Pid, TaskId};
use wiglaf_wire::keeper::GhostMode;
use wiglaf_wire::status::EXIT_CLUSTER_FAILED;

use super::{
    CONNECTIONS, Client, Daemon, Kind, MAX_CLIENTS, Parcel, accept, await_room, is_over, log,
    token, wall_clock_s,
};
use crate::caller::{check_ghost, identify};
use crate::jobs::ClientId;
use crate::reactor::Event;

impl Daemon {
    pub(super) fn accept_commands(&mut self) {
        while let Some(socket) = accept(&self.commands) {
            if self.clients.len() >= MAX_CLIENTS {
                continue;
            }
            let number = self.number();
            let caller = identify(&socket, ClientId(number), self.outside.as_ref());
            let Ok(mut channel) = super::ClientChannel::new(socket) else {
                continue;
            };
            match caller {
                Ok(caller) => {
                    let added =
                        self.poll
                            .add(&channel, token(Kind::Client, number), Interest::Read);
                    if added.is_ok() {
                        let client = Client {
                            channel,
                            caller,
                            greeted: false,
                            awaits_room: false,
                            is_rack: false,
                        };
                        self.clients.insert(number, client);
                    }
                }
                Err(error) => {
                    let reply = refused(error.to_string());
                    // Best effort: a caller that is refused is not waited for.
                    let _ = channel.send(&reply, Vec::new());
                }
            }
        }
    }

    pub(super) fn client_ready(&mut self, number: u64, ready: Ready) {
        if ready.writable {
            self.flush_client(number);
        }
        if !ready.readable {
            return;
        }
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let (_, ended) = is_over(client.channel.receive());
        loop {
            let Some(client) = self.clients.get_mut(&number) else {
                return;
            };
            match client.channel.next_message() {
                Ok(Some(request)) => {
                    if let Err(error) = self.client_request(number, request) {
                        log(&format!("a command broke the protocol: {error}"));
                        return self.drop_client(number);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    log(&format!("a command broke the protocol: {error}"));
                    return self.drop_client(number);
                }
            }
        }
        if ended.is_some() {
            self.drop_client(number);
        }
    }

    fn client_request(&mut self, number: u64, request: Request) -> Result<(), LinkError> {
        let Some(client) = self.clients.get_mut(&number) else {
            return Ok(());
        };
        let caller = client.caller.clone();
        match request {
            Request::Hello { version } if version != PROTOCOL_VERSION => {
                let reply = refused(format!(
                    "this command speaks protocol {version} and the running head \
                     {PROTOCOL_VERSION}: restart the head with this version (`wiglaf down`, then \
                     `wiglaf up`)"
                ));
                self.reply(caller.client, &reply, Vec::new());
            }
            Request::Hello { .. } => {
                client.greeted = true;
                self.event(Event::Request(caller, request));
            }
            _ if !client.greeted => return Err(LinkError::Closed),
            Request::Ghost { index, pid, mode } => self.ghost_named(number, index, pid, mode)?,
            Request::Boot(request) => self.boot_request(&caller, request),
            Request::Disk(request) => self.disk_request(&caller, &request),
            Request::VirtualNode { name } => self.virtual_node(number, &name)?,
            Request::Listener => {
                let listener = client.channel.descriptors().take()?;
                if caller.credential.uid == self.reactor.policy().own_uid {
                    rustix::io::ioctl_fionbio(&listener, true)?;
                    let _ = self.poll.add(&listener, CONNECTIONS, Interest::Read);
                    self.listeners.push((Some(number), listener));
                    if let Some(client) = self.clients.get_mut(&number) {
                        client.is_rack = true;
                    }
                    self.reply(caller.client, &Reply::Done, Vec::new());
                }
            }
            other => self.event(Event::Request(caller, other)),
        }
        Ok(())
    }

    /// Takes the descriptors of a ghost into its parcel, then lets the reactor decide.
    fn ghost_named(
        &mut self,
        number: u64,
        index: u32,
        pid: Pid,
        mode: GhostMode,
    ) -> Result<(), LinkError> {
        let Some(job) = self.reactor.job_of(ClientId(number)) else {
            // A command that was launching when the head was restarted brings the same again.
            return self.ghost_resumed(number, index, pid, mode);
        };
        let (task, detached) = (TaskId { job: job.id, index }, job.detached);
        let streams = job
            .spec
            .stdio
            .iter()
            .filter(|kind| kind.has_descriptor())
            .count();
        let Some(client) = self.clients.get_mut(&number) else {
            return Ok(());
        };
        let caller = client.caller.clone();
        let control = client.channel.descriptors().take()?;
        let stdio = if detached {
            self.log_files(task).map_err(|_| LinkError::Descriptors)?
        } else {
            let descriptors = client.channel.descriptors();
            (0..streams)
                .map(|_| descriptors.take())
                .collect::<Result<Vec<_>, _>>()?
        };
        match check_ghost(&caller, pid) {
            Ok(start_time) => {
                let parcel = Parcel {
                    control: Some(control),
                    stdio: Some(stdio),
                };
                self.parcels.insert(task, parcel);
                self.event(Event::Ghost {
                    caller,
                    index,
                    pid,
                    start_time,
                    mode,
                });
            }
            Err(reason) => self.reply(caller.client, &refused(reason.into()), Vec::new()),
        }
        Ok(())
    }

    fn ghost_resumed(
        &mut self,
        number: u64,
        index: u32,
        pid: Pid,
        mode: GhostMode,
    ) -> Result<(), LinkError> {
        let Some(client) = self.clients.get_mut(&number) else {
            return Ok(());
        };
        let caller = client.caller.clone();
        let Some((task, streams)) = self.reactor.resumable(&caller, index) else {
            let reply = refused("this command has no job; run it again".into());
            self.reply(caller.client, &reply, Vec::new());
            return Ok(());
        };
        // The keeper has the ghost's control socket already.
        drop(client.channel.descriptors().take()?);
        let descriptors = client.channel.descriptors();
        let stdio = (0..streams)
            .map(|_| descriptors.take())
            .collect::<Result<Vec<_>, _>>()?;
        self.parcels.insert(
            task,
            Parcel {
                control: None,
                stdio: Some(stdio),
            },
        );
        let start_time = caller.start_time;
        self.event(Event::Ghost {
            caller,
            index,
            pid,
            start_time,
            mode,
        });
        Ok(())
    }

    fn log_files(&self, task: TaskId) -> std::io::Result<Vec<OwnedFd>> {
        let directory = self.job_directory(task.job);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let open = |stream: &str| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(directory.join(format!("{}.{stream}", task.index)))
                .map(OwnedFd::from)
        };
        Ok(vec![open("out")?, open("err")?])
    }

    pub(super) fn reply_logs(&mut self, client: ClientId, task: TaskId, running: bool) {
        let directory = self.job_directory(task.job);
        let open = |stream: &str| {
            File::open(directory.join(format!("{}.{stream}", task.index))).map(OwnedFd::from)
        };
        match (open("out"), open("err")) {
            (Ok(out), Ok(err)) => self.reply(client, &Reply::Logs { running }, vec![out, err]),
            _ => {
                let text =
                    format!("task {task} has no log: only jobs started with --detach have one");
                self.reply(client, &refused(text), Vec::new());
            }
        }
    }

    pub(super) fn reply(&mut self, client: ClientId, reply: &Reply, descriptors: Vec<OwnedFd>) {
        let Some(connected) = self.clients.get_mut(&client.0) else {
            return;
        };
        if let Err(error) = connected.channel.queue(reply, descriptors) {
            log(&format!("a command can't be answered: {error}"));
            return self.drop_client(client.0);
        }
        self.dirty.insert(token(Kind::Client, client.0));
    }

    pub(super) fn flush_client(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.channel.flush().is_err() {
            return self.drop_client(number);
        }
        let Client {
            channel,
            awaits_room,
            ..
        } = client;
        let wanted = channel.wants_write();
        await_room(
            &self.poll,
            &*channel,
            token(Kind::Client, number),
            awaits_room,
            wanted,
        );
    }

    fn drop_client(&mut self, number: u64) {
        if let Some(client) = self.clients.remove(&number) {
            let _ = self.poll.remove(&client.channel);
            for (_, listener) in self.listeners.extract_if(.., |(of, _)| *of == Some(number)) {
                let _ = self.poll.remove(&listener);
            }
            self.event(Event::ClientGone(ClientId(number)));
        }
    }

    pub(super) fn make_token(&mut self, client: ClientId, valid_ms: u64) {
        let until = wall_clock_s() + i64::try_from(valid_ms / 1000).unwrap_or(0);
        let made = JoinToken::create(self.authority.fingerprint())
            .ok()
            .and_then(|token| {
                let hash = JoinToken::secret_hash(&token.secret);
                self.store.put_token(&hash, until).ok().map(|()| token)
            });
        let reply = match made {
            Some(token) => Reply::Token(token.reveal()),
            None => refused("the token can't be stored; is the disk full?".into()),
        };
        self.reply(client, &reply, Vec::new());
    }

    pub(super) fn reply_head_status(&mut self, client: ClientId) {
        let peer_pid = |fd: std::os::fd::BorrowedFd<'_>| {
            rustix::net::sockopt::socket_peercred(fd)
                .map_or(0, |peer| peer.pid.as_raw_nonzero().get())
        };
        let rack = self.clients.values().find(|client| client.is_rack);
        let listeners = self.listeners.iter().map(|(_, socket)| socket);
        let addresses = listeners.chain(self.boot.listeners()).filter_map(|socket| {
            let address = rustix::net::getsockname(socket).ok()?;
            std::net::SocketAddr::try_from(address)
                .ok()
                .map(|address| address.to_string())
        });
        let addresses: Vec<_> = addresses.collect();
        let listening = (!addresses.is_empty()).then(|| addresses.join(", "));
        let status = HeadStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            keeper_pid: self
                .keeper
                .as_ref()
                .map_or(0, |keeper| peer_pid(keeper.channel.as_fd())),
            rack_pid: rack.map(|rack| rack.caller.pid.0),
            deputy_pids: self
                .deputies
                .values()
                .map(|d| peer_pid(d.channel.as_fd()))
                .collect(),
            listening,
            cluster: self.cluster.clone(),
        };
        self.reply(client, &Reply::HeadStatus(status), Vec::new());
    }
}

pub(super) fn refused(message: String) -> Reply {
    Reply::Refused {
        code: EXIT_CLUSTER_FAILED,
        message,
        hint: None,
    }
}
