//! The deputies: forked here, so that they outlive the head as the ghosts do.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    socketpair,
};
use wiglaf_link::Token;
use wiglaf_linux::creds;
use wiglaf_linux::detach::take_signals_back;
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::keeper::FromKeeper;
use wiglaf_wire::launch::Credential;

use super::daemon::{log, set_title};
use super::marking::{self, Marker, Unmarked};
use super::marks::Marks;
use super::{Keeper, Watched};

/// Exit code of a deputy that could not take its user's rights, and so had none at all.
const EXIT_NO_RIGHTS: i32 = 77;
/// Exit code of one that panicked.
const EXIT_PANICKED: i32 = 70;
/// Most deputies that watch the head's files. The kernel gives each user, also root, 128 groups
/// (`/proc/sys/fs/fanotify/max_user_groups`), and others of root's programs want some.
const MAX_WATCHING: usize = 96;
/// How often deputies that were asked to end are looked at.
const END_POLL: Duration = Duration::from_millis(10);
/// The one byte that a channel's descriptor travels with.
const CHANNEL_BYTE: u8 = b'C';

struct Deputy {
    credential: Credential,
    pid: i32,
    pidfd: OwnedFd,
    control: OwnedFd,
    token: Token,
    marker: Option<Marker>,
}

/// All that live.
#[derive(Default)]
pub(super) struct Deputies(BTreeMap<DeputyId, Deputy>);

impl Deputies {
    pub(super) fn list(&self) -> Vec<(DeputyId, Credential)> {
        self.0
            .iter()
            .map(|(number, deputy)| (*number, deputy.credential.clone()))
            .collect()
    }

    /// What the deputy's file systems are marked with, if they are.
    pub(super) fn marker(&mut self, number: DeputyId) -> Option<&mut Marker> {
        self.0.get_mut(&number)?.marker.as_mut()
    }

    pub(super) fn numbers(&self) -> Vec<DeputyId> {
        self.0.keys().copied().collect()
    }

    /// Asks all to end, and kills those that do not in `grace`.
    pub(super) fn end_all(&mut self, grace: Duration) {
        self.kill_all(SIGTERM);
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline && !self.reap_ended() {
            std::thread::sleep(END_POLL);
        }
        self.kill_all(SIGKILL);
        self.0.clear();
    }

    fn kill_all(&self, signal: i32) {
        for deputy in self.0.values() {
            let _ = process::pidfd_send_signal(&deputy.pidfd, signal);
        }
    }

    fn reap_ended(&mut self) -> bool {
        self.0
            .retain(|_, deputy| matches!(process::wait(deputy.pid, true), Ok(None)));
        self.0.is_empty()
    }
}

const SIGTERM: i32 = 15;
pub(super) const SIGKILL: i32 = 9;

impl Keeper {
    /// Forks; what is returned is for the child, which has to leave the keeper's code at once.
    pub(super) fn start_deputy(
        &mut self,
        number: DeputyId,
        credential: Credential,
    ) -> Option<Newborn> {
        if self.deputies.0.contains_key(&number) {
            log(&format!("deputy {number} is asked for twice"));
            return None;
        }
        match self.fork_deputy(number, credential) {
            Ok(Some(newborn)) => return Some(newborn),
            Ok(None) => self.give_channel(number),
            Err(errno) => {
                let how = format!("it could not be started: {errno}");
                log(&format!("deputy {number}: {how}"));
                self.tell(
                    &FromKeeper::DeputyGone {
                        deputy: number,
                        how,
                    },
                    vec![],
                );
            }
        }
        None
    }

    fn fork_deputy(
        &mut self,
        number: DeputyId,
        credential: Credential,
    ) -> Result<Option<Newborn>, Errno> {
        // Packets keep a byte and its descriptor together.
        let (control, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (kept, unmarked) = self.prepare_marks(number).unzip();
        let (pid, pidfd) = match process::fork()? {
            Fork::Parent { pid, pidfd } => (pid, pidfd),
            Fork::Child => {
                return Ok(Some(Newborn {
                    control: theirs,
                    credential,
                    unmarked,
                }));
            }
        };
        let token = self
            .watch(&pidfd, Watched::Deputy(number))
            .inspect_err(|_| {
                let _ = process::pidfd_send_signal(&pidfd, SIGKILL);
                let _ = process::wait(pid, false);
            })?;
        let marker = kept.and_then(|(group, socket)| {
            let token = self.watch(&socket, Watched::Looks(number));
            token.ok().map(|token| Marker::new(group, socket, token))
        });
        self.deputies.0.insert(
            number,
            Deputy {
                credential,
                pid,
                pidfd,
                control,
                token,
                marker,
            },
        );
        Ok(None)
    }

    /// Without, the deputy looks at each file whenever somebody asks.
    fn prepare_marks(&self, number: DeputyId) -> Option<(marking::Kept, Unmarked)> {
        self.config.service?;
        if self.deputies.0.len() >= MAX_WATCHING {
            log(&format!("deputy {number} watches no files: others do"));
            return None;
        }
        marking::prepare()
            .inspect_err(|errno| log(&format!("deputy {number} watches no files: {errno}")))
            .ok()
    }

    /// A fresh socket pair between the head, if there is one, and the deputy.
    pub(super) fn give_channel(&mut self, number: DeputyId) {
        if self.head.is_none() {
            return;
        }
        let Some(deputy) = self.deputies.0.get(&number) else {
            return;
        };
        let given = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .and_then(|(heads, deputys)| {
            pass(deputy.control.as_fd(), deputys.as_fd())?;
            Ok(heads)
        });
        match given {
            Ok(heads) => {
                self.tell(&FromKeeper::Deputy { deputy: number }, vec![heads]);
            }
            Err(errno) => {
                // It has died, which its pidfd tells, or it hangs: then it must not go on.
                log(&format!("deputy {number} does not take a channel: {errno}"));
                let _ = process::pidfd_send_signal(&deputy.pidfd, SIGKILL);
            }
        }
    }

    /// Its pidfd is readable.
    pub(super) fn deputy_ended(&mut self, number: DeputyId) {
        let Some(deputy) = self.deputies.0.remove(&number) else {
            return;
        };
        let _ = self.poll.remove(&deputy.pidfd);
        self.watched.remove(&deputy.token);
        if let Some(marker) = deputy.marker {
            self.forget_marker(&marker);
        }
        let how = match process::wait(deputy.pid, true) {
            Ok(Some(change)) => in_words(change.state),
            Ok(None) => "it ended".to_owned(),
            Err(errno) => format!("it ended, nobody knows how: {errno}"),
        };
        log(&format!(
            "deputy {number} (uid {}): {how}",
            deputy.credential.uid
        ));
        self.tell(
            &FromKeeper::DeputyGone {
                deputy: number,
                how,
            },
            vec![],
        );
    }
}

fn pass(control: BorrowedFd<'_>, channel: BorrowedFd<'_>) -> Result<(), Errno> {
    let rights = [channel];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(
        control,
        &[IoSlice::new(&[CHANNEL_BYTE])],
        &mut ancillary,
        flags,
    )?;
    Ok(())
}

fn in_words(state: ChildState) -> String {
    match state {
        ChildState::Ended(ExitStatus::Exited(EXIT_NO_RIGHTS)) => {
            "it could not take the user's rights; the keeper's log says why".to_owned()
        }
        ChildState::Ended(ExitStatus::Exited(EXIT_PANICKED)) => {
            "it panicked; the keeper's log says where".to_owned()
        }
        ChildState::Ended(ExitStatus::Exited(code)) => format!("it exited with code {code}"),
        ChildState::Ended(ExitStatus::Signaled { signal, .. }) => {
            format!("signal {signal} ended it")
        }
        ChildState::Stopped(_) | ChildState::Continued => "it ended".to_owned(),
    }
}

/// What a deputy has when its life begins.
#[derive(Debug)]
pub struct Outfit {
    /// The keeper's control socket.
    pub control: OwnedFd,
    /// Directories that no node may see.
    pub hidden: Vec<PathBuf>,
    /// What it watches files with, if it can.
    pub marks: Option<Marks>,
}

/// A fork of the keeper that is to be a deputy.
pub(super) struct Newborn {
    control: OwnedFd,
    credential: Credential,
    unmarked: Option<Unmarked>,
}

impl Newborn {
    /// The rest of its life. It must not unwind into what was the keeper's main function.
    pub(super) fn live(
        self,
        service: Option<(u32, u32)>,
        main: fn(Outfit) -> !,
        hidden: Vec<PathBuf>,
    ) -> ! {
        let life = std::panic::AssertUnwindSafe(|| {
            let marks = self.unmarked.and_then(Unmarked::mark);
            if let Err(reason) = take_rights(&self.credential, service) {
                log(&format!(
                    "a deputy for uid {} can't start: {reason}",
                    self.credential.uid
                ));
                std::process::exit(EXIT_NO_RIGHTS);
            }
            main(Outfit {
                control: self.control,
                hidden,
                marks,
            })
        });
        let _ = std::panic::catch_unwind(life);
        std::process::exit(EXIT_PANICKED)
    }
}

fn take_rights(credential: &Credential, service: Option<(u32, u32)>) -> Result<(), String> {
    take_signals_back().map_err(|errno| format!("its signals: {errno}"))?;
    set_title(&format!("wiglaf: deputy {}", credential.uid));
    let Credential {
        uid,
        gid,
        ref groups,
    } = *credential;
    match service {
        Some((service_uid, service_gid)) => {
            creds::become_deputy(service_uid, service_gid, uid, gid, groups)
                .map_err(|error| error.to_string())
        }
        None if rustix::process::getuid().as_raw() == uid => Ok(()),
        None => Err("a rootless cluster has the rights of its own user only".to_owned()),
    }
}
