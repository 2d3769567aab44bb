#![forbid(unsafe_code)]
//! What the keeper's tests run: the keeper, and a stand-in for the command that becomes a ghost.
//!
//! `keeper SOCKET [SERVICE_UID]`, `launch SOCKET COMMAND…`, `hang SOCKET` (asks for a ghost and
//! never becomes one).

use std::ffi::{CString, OsString};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, socketpair,
};
use wiglaf_link::Channel;
use wiglaf_linux::ghost::{GhostRequest, exec_ghost};
use wiglaf_process::keeper::{self, KeeperConfig, Outfit};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{JobId, TaskId};
use wiglaf_wire::marks::{Look, MAX_PACKET_BYTES, Marked};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    let socket = args.next().ok_or("a socket is missing")?;
    match verb.to_str() {
        Some("keeper") => {
            let service = args.next().and_then(|uid| uid.to_str()?.parse().ok());
            let service = service.map(|uid| (uid, uid));
            Ok(keeper::run(KeeperConfig {
                socket: socket.into(),
                service,
                deputy,
                hidden: Vec::new(),
            })?)
        }
        Some("launch") => {
            let control = ask_for_ghost(&socket)?;
            let words: Result<Vec<_>, _> = args.map(|word| CString::new(word.into_vec())).collect();
            Err(become_ghost(&control, &words?))
        }
        Some("hang") => {
            let _control = ask_for_ghost(&socket)?;
            std::thread::sleep(Duration::from_secs(3600));
            Ok(())
        }
        _ => Err("unknown verb".into()),
    }
}

/// Tells the test who wants a ghost, with the keeper's end of the control socket, and waits until
/// it is seized.
fn ask_for_ghost(socket: &OsString) -> Result<OwnedFd, Failure> {
    let (ours, keepers) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut head: Channel<String, (i32, u32, u64)> =
        Channel::new(UnixStream::connect(socket)?.into())?;
    wiglaf_linux::process::set_ptracer_any(true)?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let start_time = wiglaf_linux::status::start_time(pid)?;
    head.send(
        &(pid, rustix::process::getuid().as_raw(), start_time),
        vec![keepers],
    )?;
    head.wait_message()?;
    Ok(ours)
}

fn become_ghost(control: &OwnedFd, argv: &[CString]) -> Failure {
    let request = GhostRequest {
        argv,
        env: &[],
        control: control.as_fd(),
        stdin: None,
        stdin_pipe: None,
        stderr: Some(rustix::stdio::stderr()),
        group: None,
        dies_with_parent: false,
    };
    Box::new(std::io::Error::from(exec_ghost(&request)))
}

/// A deputy that only says that it is there, on each channel that it is given, and what it
/// watches: as many tasks as file systems, in the job whose number is that of its question to the
/// keeper.
fn deputy(outfit: Outfit) -> ! {
    let mut channels: Vec<Channel<ToDeputy, FromDeputy>> = Vec::new();
    let mut number = 0;
    while let Some(socket) = next_channel(&outfit.control) {
        let mut watched = outfit
            .marks
            .as_ref()
            .map_or(0, |marks| marks.file_systems.len());
        if let Some(marks) = outfit.marks.as_ref().filter(|_| number > 0) {
            watched = look(&marks.keeper, number).unwrap_or(0);
        }
        let tasks = (0..u32::try_from(watched).unwrap_or(0))
            .map(|index| TaskId {
                job: JobId(number),
                index,
            })
            .collect();
        number += 1;
        if let Ok(mut channel) = Channel::new(socket) {
            let _ = channel.send(&FromDeputy::Ready { tasks }, vec![]);
            channels.push(channel);
        }
    }
    std::process::exit(0)
}

/// Has the keeper look at the mount table again.
fn look(keeper: &OwnedFd, number: u64) -> Result<usize, Failure> {
    let packet = postcard::to_allocvec(&Look {
        number,
        watched: Vec::new(),
    })?;
    rustix::net::send(keeper, &packet, SendFlags::empty())?;
    let mut packet = vec![0; MAX_PACKET_BYTES];
    let (length, _) = rustix::net::recv(keeper, &mut packet[..], RecvFlags::empty())?;
    let marked: Marked = postcard::from_bytes(&packet[..length])?;
    if marked.number != number {
        return Err("an answer to something else".into());
    }
    Ok(marked.file_systems.len())
}

fn next_channel(control: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(control, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    })
}
