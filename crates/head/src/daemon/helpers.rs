//! The keeper and the deputies: processes of ours that outlive the daemon.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;

use wiglaf_link::{Channel, Interest, LinkError, Ready, Role};
use wiglaf_wire::deputy::ToDeputy;
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::keeper::{FromKeeper, ToKeeper};

use super::beside::{Beside, Reached};
use super::{Daemon, DaemonError, Deputy, KEEPER, Keeper, Kind, await_room, is_over, log, token};
use crate::config::{Config, Layout};
use crate::reactor::Event;

/// Most messages that wait for a deputy that is being started.
const MAX_DEPUTY_QUEUE: usize = 100_000;

/// What nodes must not see, but for the sockets' directory, which the keeper knows.
fn hide_arguments<'a>(layout: &'a Layout, config: &'a Config) -> impl Iterator<Item = &'a OsStr> {
    let hidden = std::iter::once(&layout.state).chain(&config.view.hidden);
    hidden.flat_map(|path| [OsStr::new("--hide"), path.as_os_str()])
}

impl Daemon {
    /// Finds the keeper of an earlier head, or starts one.
    pub(super) fn connect_keeper(&mut self) -> Result<(), DaemonError> {
        let keeper = Beside {
            name: "keeper",
            socket: self.layout.keeper_socket(),
            command: "keeper",
            arguments: hide_arguments(&self.layout, &self.config)
                .map(OsString::from)
                .collect(),
            is_dispensable: false,
        };
        let Reached { socket, was_there } =
            keeper.reach(&self.layout).map_err(DaemonError::Keeper)?;
        let channel =
            Channel::new(socket).map_err(|error| DaemonError::Keeper(error.to_string()))?;
        self.poll.add(&channel, KEEPER, Interest::Read)?;
        self.keeper = Some(Keeper {
            channel,
            awaits_room: false,
        });
        if was_there {
            self.event(Event::TakenOver);
        }
        Ok(())
    }

    pub(super) fn keeper_ready(&mut self, ready: Ready) {
        if ready.writable {
            self.flush_keeper();
        }
        if !ready.readable {
            return;
        }
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let (_, ended) = is_over(keeper.channel.receive());
        loop {
            let Some(keeper) = &mut self.keeper else {
                return;
            };
            match keeper.channel.next_message() {
                Ok(Some(FromKeeper::Deputy { deputy })) => {
                    match keeper.channel.descriptors().take() {
                        Ok(socket) => self.deputy_connected(deputy, socket),
                        Err(error) => return self.keeper_lost(&error),
                    }
                }
                Ok(Some(message)) => {
                    if let FromKeeper::DeputyGone { deputy, .. } = &message {
                        self.drop_deputy(*deputy);
                        self.deputy_queues.remove(deputy);
                    }
                    self.event(Event::FromKeeper(message));
                }
                Ok(None) => break,
                Err(error) => return self.keeper_lost(&error),
            }
        }
        if let Some(error) = ended {
            self.keeper_lost(&error);
        }
    }

    fn keeper_lost(&mut self, error: &LinkError) {
        self.keeper = None;
        if self.ending_at_ms.is_some() {
            return;
        }
        log(&format!("the keeper: {error}; starting another"));
        let gone: Vec<_> = self.deputies.keys().copied().collect();
        gone.into_iter().for_each(|deputy| self.drop_deputy(deputy));
        self.deputy_queues.clear();
        self.event(Event::KeeperLost);
        if let Err(error) = self.connect_keeper() {
            log(&format!("{error}"));
        }
    }

    pub(super) fn tell_keeper(&mut self, message: &ToKeeper) {
        let mut descriptors = Vec::new();
        if let ToKeeper::Seize { task, .. } = message
            && let Some(control) = self.parcels.get_mut(task).and_then(|p| p.control.take())
        {
            descriptors.push(control);
        }
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        match keeper.channel.queue(message, descriptors) {
            Ok(()) => {}
            // One message that can't be made is no reason to lose all ghosts.
            Err(LinkError::Frame(error)) => log(&format!("to the keeper: {error}")),
            Err(error) => self.keeper_lost(&error),
        }
    }

    pub(super) fn flush_keeper(&mut self) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        if !keeper.channel.wants_write() && !keeper.awaits_room {
            return;
        }
        if let Err(error) = keeper.channel.flush() {
            return self.keeper_lost(&error);
        }
        let Keeper {
            channel,
            awaits_room,
        } = keeper;
        let wanted = channel.wants_write();
        await_room(&self.poll, &*channel, KEEPER, awaits_room, wanted);
    }

    fn deputy_connected(&mut self, deputy: DeputyId, socket: OwnedFd) {
        let identity = match self.authority.issue(Role::Deputy(deputy)) {
            Ok(identity) => identity,
            Err(error) => return log(&format!("deputy {deputy}: {error}")),
        };
        let Ok(mut channel) = Channel::new(socket) else {
            return;
        };
        let hello = ToDeputy::Identity {
            certificate: identity.certificate.to_vec(),
            key: identity.key,
            authority: identity.authority.to_vec(),
        };
        if channel.queue(&hello, Vec::new()).is_err() {
            return;
        }
        let watched = token(Kind::Deputy, deputy.0);
        if self.poll.add(&channel, watched, Interest::Read).is_err() {
            return;
        }
        self.dirty.insert(watched);
        self.deputies.insert(
            deputy,
            Deputy {
                channel,
                awaits_room: false,
            },
        );
        for (message, descriptors) in self.deputy_queues.remove(&deputy).unwrap_or_default() {
            self.send_deputy(deputy, message, descriptors);
        }
    }

    /// Adds the descriptors that belong to an `Attach`; without them it would be empty.
    pub(super) fn tell_deputy(&mut self, deputy: DeputyId, message: ToDeputy) {
        let mut descriptors = Vec::new();
        if let ToDeputy::Attach { task, .. } = &message {
            match self
                .parcels
                .get_mut(task)
                .and_then(|parcel| parcel.stdio.take())
            {
                Some(stdio) => descriptors = stdio,
                None => return,
            }
        }
        self.send_deputy(deputy, message, descriptors);
    }

    pub(super) fn send_deputy(
        &mut self,
        deputy: DeputyId,
        message: ToDeputy,
        descriptors: Vec<OwnedFd>,
    ) {
        let Some(connected) = self.deputies.get_mut(&deputy) else {
            let queue = self.deputy_queues.entry(deputy).or_default();
            if queue.len() < MAX_DEPUTY_QUEUE {
                queue.push_back((message, descriptors));
            }
            return;
        };
        match connected.channel.queue(&message, descriptors) {
            Ok(()) => {
                self.dirty.insert(token(Kind::Deputy, deputy.0));
            }
            Err(error) => {
                log(&format!("deputy {deputy}: {error}"));
                self.drop_deputy(deputy);
            }
        }
    }

    pub(super) fn flush_deputy(&mut self, deputy: DeputyId) {
        let Some(connected) = self.deputies.get_mut(&deputy) else {
            return;
        };
        if connected.channel.flush().is_err() {
            return self.drop_deputy(deputy);
        }
        let Deputy {
            channel,
            awaits_room,
        } = connected;
        let wanted = channel.wants_write();
        await_room(
            &self.poll,
            &*channel,
            token(Kind::Deputy, deputy.0),
            awaits_room,
            wanted,
        );
    }

    pub(super) fn deputy_ready(&mut self, deputy: DeputyId, ready: Ready) {
        if ready.writable {
            self.flush_deputy(deputy);
        }
        if !ready.readable {
            return;
        }
        let Some(connected) = self.deputies.get_mut(&deputy) else {
            return;
        };
        let (_, ended) = is_over(connected.channel.receive());
        loop {
            let Some(connected) = self.deputies.get_mut(&deputy) else {
                return;
            };
            match connected.channel.next_message() {
                Ok(Some(message)) => self.event(Event::FromDeputy(deputy, message)),
                Ok(None) => break,
                Err(error) => {
                    log(&format!("deputy {deputy}: {error}"));
                    return self.drop_deputy(deputy);
                }
            }
        }
        // Its end is told by the keeper, which is its parent.
        if ended.is_some() {
            self.drop_deputy(deputy);
        }
    }

    fn drop_deputy(&mut self, deputy: DeputyId) {
        if let Some(connected) = self.deputies.remove(&deputy) {
            let _ = self.poll.remove(&connected.channel);
        }
    }
}
