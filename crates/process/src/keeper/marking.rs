//! Looking at the mount table for a deputy, at its birth and whenever it asks.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use wiglaf_link::Token;
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_linux::process::{self, Fork};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::marks::{Look, MAX_PACKET_BYTES, Marked};

use super::daemon::{log, set_title};
use super::deputies::SIGKILL;
use super::marks::{self, Marks};
use super::{Keeper, Watched};

/// A group without marks, and the deputy's end of the socket, for a child that is not born yet.
pub(super) struct Unmarked {
    group: OwnedFd,
    socket: OwnedFd,
}

/// The keeper's part of it: the group and its end of the socket.
pub(super) type Kept = (OwnedFd, OwnedFd);

/// Makes a group for a deputy, and the way to ask for more marks.
pub(super) fn prepare() -> Result<(Kept, Unmarked), Errno> {
    let group = OwnedFd::from(Group::new(Queue::Unlimited)?);
    let (type_, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, socket) = socketpair(AddressFamily::UNIX, type_, flags, None)?;
    let kept = (rustix::io::fcntl_dupfd_cloexec(&group, 0)?, ours);
    Ok((kept, Unmarked { group, socket }))
}

impl Unmarked {
    /// In the child, while it is still root.
    pub(super) fn mark(self) -> Option<Marks> {
        let group = Group::from(self.group);
        let marks = marks::open_mounts().and_then(|mounts| {
            let say = |what| log(&format!("not watched: {what}"));
            let file_systems = marks::mark_all(&group, &BTreeSet::new(), say)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Ok(Marks {
                group: group.into(),
                mounts,
                keeper: self.socket,
                file_systems,
            })
        });
        marks
            .inspect_err(|errno| log(&format!("a deputy watches no files: {errno}")))
            .ok()
    }
}

/// A deputy's group and questions, in the keeper.
pub(super) struct Marker {
    group: OwnedFd,
    socket: OwnedFd,
    token: Token,
    /// The last question, until it has its fork.
    asked: Option<Look>,
    /// A fork looks now.
    is_busy: bool,
}

impl Marker {
    pub(super) fn new(group: OwnedFd, socket: OwnedFd, token: Token) -> Marker {
        Marker {
            group,
            socket,
            token,
            asked: None,
            is_busy: false,
        }
    }
}

/// A fork of the keeper that looks at the mount table. It may hang, as the keeper must not.
pub(super) struct Marking {
    group: Group,
    socket: OwnedFd,
    look: Look,
}

impl Marking {
    /// Does it, and ends.
    pub(super) fn mark(self) -> ! {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            set_title("wiglaf: keeper: looking at mounts");
            let Look { number, watched } = self.look;
            let watched = watched.into_iter().collect();
            let marked = marks::mark_all(&self.group, &watched, |_| {});
            let answer = marked.map(|file_systems| Marked {
                number,
                file_systems,
            });
            let answer = answer
                .map_err(|error| error.to_string())
                .and_then(|answer| {
                    let packet =
                        postcard::to_allocvec(&answer).map_err(|error| error.to_string())?;
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    send(&self.socket, &packet, flags).map_err(|errno| errno.to_string())
                });
            answer
                .inspect_err(|error| log(&format!("the mount table can't be told: {error}")))
                .is_ok()
        }));
        std::process::exit(i32::from(!matches!(done, Ok(true))))
    }
}

impl Keeper {
    /// Its socket is readable.
    pub(super) fn deputy_asks_to_look(&mut self, number: DeputyId) {
        let Some(marker) = self.deputies.marker(number) else {
            return;
        };
        let mut packet = vec![0; MAX_PACKET_BYTES];
        loop {
            match recv(&marker.socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((length @ 1.., _)) => {
                    let look = postcard::from_bytes(&packet[..length]);
                    marker.asked = look.ok().or(marker.asked.take());
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Ok(_) | Err(_) => {
                    // It has ended, which its pidfd tells too.
                    self.watched.remove(&marker.token);
                    let _ = self.poll.remove(&marker.socket);
                    return;
                }
            }
        }
        self.want_marks(number);
    }

    fn want_marks(&mut self, number: DeputyId) {
        if let Some(marker) = self.deputies.marker(number)
            && marker.asked.is_some()
            && !marker.is_busy
            && !self.wanted_marks.contains(&number)
        {
            self.wanted_marks.push_back(number);
        }
    }

    /// Forks; what is returned is for the child.
    pub(super) fn start_marking(&mut self, number: DeputyId) -> Option<Marking> {
        self.fork_marking(number)
            .inspect_err(|errno| log(&format!("deputy {number} watches nothing new: {errno}")))
            .ok()
            .flatten()
    }

    fn fork_marking(&mut self, number: DeputyId) -> Result<Option<Marking>, Errno> {
        let Some(marker) = self.deputies.marker(number) else {
            return Ok(None);
        };
        let Some(look) = marker.asked.take() else {
            return Ok(None);
        };
        let group = rustix::io::fcntl_dupfd_cloexec(&marker.group, 0)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(&marker.socket, 0)?;
        let (pid, pidfd) = match process::fork()? {
            Fork::Parent { pid, pidfd } => (pid, pidfd),
            Fork::Child => {
                return Ok(Some(Marking {
                    group: group.into(),
                    socket,
                    look,
                }));
            }
        };
        marker.is_busy = true;
        self.watch(&pidfd, Watched::Marking(number, pid))
            .inspect_err(|_| {
                let _ = process::pidfd_send_signal(&pidfd, SIGKILL);
            })?;
        self.markings.insert(pid, pidfd);
        Ok(None)
    }

    /// Its pidfd is readable: it has answered, or never will.
    pub(super) fn marking_ended(&mut self, token: Token, number: DeputyId, pid: i32) {
        self.watched.remove(&token);
        if let Some(pidfd) = self.markings.remove(&pid) {
            let _ = self.poll.remove(&pidfd);
        }
        let _ = process::wait(pid, true);
        if let Some(marker) = self.deputies.marker(number) {
            marker.is_busy = false;
            // The mount table may have changed once more meanwhile.
            self.want_marks(number);
        }
    }

    /// The deputy is gone.
    pub(super) fn forget_marker(&mut self, marker: &Marker) {
        self.watched.remove(&marker.token);
        let _ = self.poll.remove(&marker.socket);
    }

    pub(super) fn kill_markings(&self) {
        for pidfd in self.markings.values() {
            let _ = process::pidfd_send_signal(pidfd, SIGKILL);
        }
    }
}
