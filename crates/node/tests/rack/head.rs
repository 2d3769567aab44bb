//! The test in the head's part.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};

use crate::{MAX_MESSAGE, NODES, ORDINARY_USER, PATIENCE};

/// What the head has of a rack.
pub(crate) struct Head {
    pub(crate) rack: Child,
    pub(crate) control: OwnedFd,
    pub(crate) listener: TcpListener,
    pub(crate) agents: BTreeMap<String, BufReader<TcpStream>>,
    pub(crate) addresses: BTreeMap<String, String>,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) mounts_before: String,
}

impl Head {
    pub(crate) fn with_rack(tag: &str, rootless: bool) -> Head {
        let mounts_before = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let directory = tempfile::tempdir().expect("tempdir");
        let open_to_all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), open_to_all).expect("chmod");
        let hidden = directory.path().join("hidden");
        fs::create_dir(&hidden).expect("mkdir");
        fs::write(hidden.join("secret"), "secret").expect("write");
        // Where builds are made an ordinary user may not look.
        let program = directory.path().join("rack");
        fs::copy(env::current_exe().expect("exe"), &program).expect("copy");

        let (control, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair");
        let mut command = Command::new(program);
        command
            .args(["as-rack", tag, if rootless { "true" } else { "false" }])
            .arg(&hidden)
            .stdin(Stdio::from(theirs));
        if rootless && rustix::process::geteuid().is_root() {
            command.uid(ORDINARY_USER).gid(ORDINARY_USER);
        }
        let rack = command.spawn().expect("spawn");
        let (_, listener) = receive(&control);
        let mut head = Head {
            rack,
            control,
            listener: TcpListener::from(listener.expect("no listener")),
            agents: BTreeMap::new(),
            addresses: BTreeMap::new(),
            directory,
            mounts_before,
        };
        for _ in NODES {
            head.meet();
        }
        head
    }

    /// Takes the connection of an agent.
    pub(crate) fn meet(&mut self) {
        let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
        let timeout = Timespec::try_from(PATIENCE).expect("timeout");
        assert_eq!(poll(&mut ready, Some(&timeout)), Ok(1), "no agent dials");
        let (stream, peer) = self.listener.accept().expect("accept");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).expect("greeting");
        let (name, address) = line.trim().split_once(' ').expect("greeting");
        assert_eq!(peer.ip().to_string(), address);
        self.addresses.insert(name.into(), address.into());
        self.agents.insert(name.into(), stream);
    }

    pub(crate) fn task(&mut self, node: &str, command: &str) -> String {
        self.ask(node, &format!("task {command}"))
    }

    pub(crate) fn agent(&mut self, node: &str, command: &str) -> String {
        self.ask(node, &format!("agent {command}"))
    }

    pub(crate) fn ask(&mut self, node: &str, line: &str) -> String {
        let stream = self.agents.get_mut(node).expect("a node");
        writeln!(stream.get_mut(), "{line}").expect("ask");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect(line);
        let length = usize::try_from(u32::from_be_bytes(length)).expect("length");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).expect("answer");
        String::from_utf8(answer).expect("UTF-8")
    }

    pub(crate) fn order(&self, text: &str) {
        rustix::net::send(&self.control, text.as_bytes(), SendFlags::NOSIGNAL).expect("order");
    }

    pub(crate) fn hear(&self) -> String {
        receive(&self.control).0
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        // A test that failed may leave it; one that went well has waited for it already.
        let _ = self.rack.kill();
        let _ = self.rack.wait();
    }
}

fn receive(socket: &OwnedFd) -> (String, Option<OwnedFd>) {
    let mut ready = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec::try_from(PATIENCE).expect("timeout");
    assert_eq!(
        poll(&mut ready, Some(&timeout)),
        Ok(1),
        "the rack is silent"
    );
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; MAX_MESSAGE];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("recvmsg");
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    buffer.truncate(received.bytes);
    (String::from_utf8(buffer).expect("UTF-8"), descriptor)
}
