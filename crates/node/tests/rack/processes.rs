//! The other processes: the rack and, in it, the agents.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::{fs, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use wiglaf_linux::namespace::{NamespaceFlags, setns, unshare};
use wiglaf_node::rack::{NodePlace, Rack, RackConfig, VirtualFiles, VirtualNode};
use wiglaf_node::root::{Files, TaskRoot};

use crate::{ECHO_PORT, MAX_MESSAGE, NODES};

/// The other process: the rack, whose head is on the socket that is its standard input.
#[expect(
    clippy::print_stderr,
    reason = "a rack's error is what one of the tests looks at"
)]
pub(crate) fn be_rack(tag: &str, rootless: bool, hidden: &str) -> ExitCode {
    let config = RackConfig {
        tag: tag.into(),
        nodes: NODES.map(String::from).into(),
        rootless,
        hidden: vec![hidden.into()],
        files: VirtualFiles::Disk,
    };
    let mut rack = match Rack::set_up(&config) {
        Ok(rack) => rack,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let control = std::io::stdin();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [rack.listener.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(
        &control,
        &[IoSlice::new(b"listener")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .expect("sendmsg");

    let start = |rack: &mut Rack, index| rack.start(index, be_agent).expect("start");
    let mut nodes: Vec<VirtualNode> = (0..NODES.len()).map(|i| start(&mut rack, i)).collect();
    loop {
        let mut watched = vec![PollFd::new(&control, PollFlags::IN)];
        watched.extend((nodes.iter()).map(|node| PollFd::new(&node.pidfd, PollFlags::IN)));
        poll(&mut watched, None).expect("poll");
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        if let Some(index) = ready[1..].iter().position(|&ready| ready) {
            let node = nodes.remove(index);
            let notice = format!("died {} {:?}", node.name, node.wait());
            let notice = notice.replace("Ok(", "");
            rustix::net::send(&control, notice.as_bytes(), SendFlags::NOSIGNAL).expect("send");
        } else if ready[0] {
            let mut buffer = vec![0; MAX_MESSAGE];
            let (length, _) =
                rustix::net::recv(&control, &mut buffer[..], RecvFlags::empty()).expect("recv");
            let order = String::from_utf8_lossy(&buffer[..length]).into_owned();
            match order.split_once(' ') {
                Some(("kill", name)) => {
                    let node = nodes.iter().find(|node| node.name == name);
                    node.expect("a node").kill().expect("kill");
                }
                Some(("start", index)) => {
                    nodes.push(start(&mut rack, index.parse().expect("index")))
                }
                _ => return ExitCode::SUCCESS,
            }
        }
    }
}

/// The agent of a node: does what the head says.
fn be_agent(place: NodePlace) {
    let echo = TcpListener::bind((place.address, ECHO_PORT)).expect("bind");
    let name = place.name.clone();
    thread::spawn(move || {
        for stream in echo.incoming() {
            let _ = write!(stream.expect("accept"), "this is {name}");
        }
    });
    let stream = TcpStream::connect(place.head).expect("the head's address");
    let mut stream = BufReader::new(stream);
    writeln!(stream.get_mut(), "{} {}", place.name, place.address).expect("greet");
    let mut line = String::new();
    while stream.read_line(&mut line).expect("read") > 0 {
        let answer = match line.trim_end().split_once(' ') {
            Some(("dial", address)) => dial(address),
            Some(("steer", pid)) => {
                fs::write("/proc/sys/kernel/ns_last_pid", pid).expect("ns_last_pid");
                Vec::new()
            }
            Some(("agent", command)) => shell(command),
            Some(("task", command)) => in_root(disk(&place), command),
            _ => Vec::new(),
        };
        let length = u32::try_from(answer.len()).expect("length").to_be_bytes();
        stream.get_mut().write_all(&length).expect("answer");
        stream.get_mut().write_all(&answer).expect("answer");
        line.clear();
    }
}

fn disk(place: &NodePlace) -> &TaskRoot {
    match &place.files {
        Files::Disk(root) => root,
        Files::View { .. } => panic!("nobody asked for the view"),
    }
}

fn in_root(root: &TaskRoot, command: &str) -> Vec<u8> {
    thread::scope(|scope| {
        let shell_there = || {
            unshare(NamespaceFlags::FS).expect("unshare");
            setns(root.mount_ns.as_fd(), NamespaceFlags::NEWNS).expect("setns");
            shell(command)
        };
        scope.spawn(shell_there).join().expect("join")
    })
}

fn dial(address: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    TcpStream::connect(address)
        .and_then(|mut stream| stream.read_to_end(&mut answer))
        .expect("dial");
    answer
}

fn shell(command: &str) -> Vec<u8> {
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .output()
        .expect("sh");
    let mut answer = output.stdout;
    answer.extend(output.stderr);
    answer
}
