//! A thousand clients that fetch what they boot, in one process, from their machines' addresses.
//!
//! Its standard input says what to fetch, one [`Order`] of lines; its standard output says how
//! each fared.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, getrlimit, setrlimit};

/// What its process is called among the benchmarks.
pub(in crate::bench) const NAME: &str = "fetch";
const TIMEOUT: Duration = Duration::from_secs(240);
const POLL_S: i64 = 1;
const READ_BYTES: usize = 256 << 10;
/// About iPXE's window. With Linux' own a thousand receivers at once use up the TCP memory that
/// they share with the server, which a thousand machines don't.
const WINDOW_BYTES: usize = 208 << 10;
/// Reads of one machine before it is the next one's turn.
const READS_PER_TURN: usize = 2;
const MAX_HEADER_BYTES: usize = 8 << 10;
const MAX_SCRIPT_BYTES: usize = 16 << 10;
/// What a script begins with, and what it must lead to.
const SCRIPT_BEGIN: &[u8] = b"#!ipxe\n";
const SCRIPT_KERNEL: &[u8] = b"/kernel";

/// What is fetched, in this order, by one connection each.
pub(super) struct Order {
    pub(super) server: SocketAddrV4,
    /// What the paths of both files begin with.
    pub(super) folder: String,
    pub(super) kernel: String,
    pub(super) initramfs: String,
    pub(super) clients: Vec<(String, Ipv4Addr)>,
}

impl Order {
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{}\n{}\n{}\n{}\n",
            self.server, self.folder, self.kernel, self.initramfs
        );
        for (mac, address) in &self.clients {
            text.push_str(&format!("{mac} {address}\n"));
        }
        text
    }

    fn read(text: &str) -> Result<Order> {
        let mut lines = text.lines();
        let mut next = || lines.next().context("the order is too short");
        let server = next()?.parse()?;
        let (folder, kernel, initramfs) = (next()?.into(), next()?.into(), next()?.into());
        let machines = lines.map(|line| {
            let (mac, address) = line
                .split_once(' ')
                .context("a machine is mac and address")?;
            Ok((mac.to_owned(), address.parse()?))
        });
        Ok(Order {
            server,
            folder,
            kernel,
            initramfs,
            clients: machines.collect::<Result<_>>()?,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Script,
    Kernel,
    Initramfs,
}

struct Machine {
    socket: TcpStream,
    mac: String,
    step: Step,
    /// Still to be sent.
    request: Vec<u8>,
    /// It is told when it can send.
    awaits_room: bool,
    /// The answer's header, or the script, as far as it has come.
    head: Vec<u8>,
    /// None while the header is not complete.
    body: Option<usize>,
    length: usize,
    took: Option<Duration>,
    failure: Option<String>,
}

/// The part's own main function.
pub(in crate::bench) fn run(_: &[String]) -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let order = Order::read(&text)?;
    let read = |path: &str| std::fs::read(path).with_context(|| path.to_owned());
    let files = [read(&order.kernel)?, read(&order.initramfs)?];
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let started = Instant::now();
    let mut machines = Vec::new();
    for (mac, address) in &order.clients {
        let socket = connect(*address, order.server)?;
        let data = epoll::EventData::new_u64(machines.len() as u64);
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(&poll, &socket, data, events)?;
        let mut machine = Machine {
            socket,
            mac: mac.clone(),
            step: Step::Script,
            request: Vec::new(),
            awaits_room: true,
            head: Vec::new(),
            body: None,
            length: 0,
            took: None,
            failure: None,
        };
        machine.ask(&order);
        machines.push(machine);
    }
    let mut left = machines.len();
    let mut bytes = 0_u64;
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Vec::with_capacity(256);
    let second = rustix::event::Timespec {
        tv_sec: POLL_S,
        tv_nsec: 0,
    };
    while left > 0 && started.elapsed() < TIMEOUT {
        events.clear();
        match epoll::wait(
            &poll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&second),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => bail!("epoll_wait: {errno}"),
        }
        for event in &events {
            let index = usize::try_from(event.data.u64())?;
            let machine = &mut machines[index];
            if machine.took.is_some() || machine.failure.is_some() {
                continue;
            }
            match machine.proceed(&order, &files, &mut buffer, &mut bytes) {
                Ok(false) => {
                    let awaits_room = !machine.request.is_empty();
                    if machine.awaits_room != awaits_room {
                        machine.awaits_room = awaits_room;
                        let data = epoll::EventData::new_u64(index as u64);
                        let mut wanted = epoll::EventFlags::IN;
                        wanted.set(epoll::EventFlags::OUT, awaits_room);
                        epoll::modify(&poll, &machine.socket, data, wanted)?;
                    }
                    continue;
                }
                Ok(true) => machine.took = Some(started.elapsed()),
                Err(error) => machine.failure = Some(format!("{error:#}")),
            }
            epoll::delete(&poll, &machine.socket)?;
            left -= 1;
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} {bytes}", started.elapsed().as_micros())?;
    for machine in &machines {
        match (&machine.took, &machine.failure) {
            (Some(took), _) => writeln!(out, "ok {}", took.as_micros())?,
            (None, Some(failure)) => writeln!(out, "failed {}: {failure}", machine.mac)?,
            (None, None) => writeln!(out, "failed {}: not in time", machine.mac)?,
        }
    }
    Ok(())
}

fn connect(from: Ipv4Addr, to: SocketAddrV4) -> Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, WINDOW_BYTES)?;
    let own = SocketAddrV4::new(from, 0);
    rustix::net::bind(&socket, &own).with_context(|| format!("can't be {from}"))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(errno) => bail!("can't connect {from} to {to}: {errno}"),
    }
}

impl Machine {
    fn ask(&mut self, order: &Order) {
        let path = match self.step {
            Step::Script => format!("/script/{}", self.mac.replace(':', "-")),
            Step::Kernel => format!("{}/kernel", order.folder),
            Step::Initramfs => format!("{}/initramfs", order.folder),
        };
        let host = order.server;
        self.request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
        self.head.clear();
        self.body = None;
    }

    /// Whether it has everything.
    fn proceed(
        &mut self,
        order: &Order,
        files: &[Vec<u8>; 2],
        buffer: &mut [u8],
        bytes: &mut u64,
    ) -> Result<bool> {
        self.send()?;
        for _ in 0..READS_PER_TURN {
            let count = match self.socket.read(buffer) {
                Ok(0) => bail!("the server has hung up"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                // Not connected yet.
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            *bytes += count as u64;
            if !self.take(&buffer[..count], files)? {
                continue;
            }
            self.step = match self.step {
                Step::Script => Step::Kernel,
                Step::Kernel => Step::Initramfs,
                Step::Initramfs => return Ok(true),
            };
            self.ask(order);
            self.send()?;
        }
        Ok(false)
    }

    fn send(&mut self) -> Result<()> {
        while !self.request.is_empty() {
            match self.socket.write(&self.request) {
                Ok(count) => drop(self.request.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the answer is complete; an error if it is not what it should be.
    fn take(&mut self, mut part: &[u8], files: &[Vec<u8>; 2]) -> Result<bool> {
        let at = match self.body {
            Some(at) => at,
            None => {
                let before = self.head.len();
                self.head.extend_from_slice(part);
                let Some(end) = end_of_header(&self.head) else {
                    if self.head.len() > MAX_HEADER_BYTES {
                        bail!("the answer's header does not end");
                    }
                    return Ok(false);
                };
                part = &part[end - before..];
                self.head.truncate(end);
                self.length = length_of(&self.head)?;
                self.head.clear();
                0
            }
        };
        let end = at + part.len();
        if end > self.length {
            bail!("the answer is longer than it says");
        }
        let file = match self.step {
            Step::Script => {
                self.head.extend_from_slice(part);
                if self.head.len() > MAX_SCRIPT_BYTES {
                    bail!("its script is too long");
                }
                None
            }
            Step::Kernel => Some(&files[0]),
            Step::Initramfs => Some(&files[1]),
        };
        if let Some(file) = file
            && (self.length != file.len() || file[at..end] != *part)
        {
            bail!("wrong bytes between {at} and {end}");
        }
        self.body = Some(end);
        let is_complete = end == self.length;
        if is_complete && self.step == Step::Script && !is_script(&self.head) {
            bail!("its script boots nothing");
        }
        Ok(is_complete)
    }
}

fn is_script(text: &[u8]) -> bool {
    text.starts_with(SCRIPT_BEGIN)
        && text
            .windows(SCRIPT_KERNEL.len())
            .any(|window| window == SCRIPT_KERNEL)
}

fn end_of_header(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(at + 4)
}

fn length_of(header: &[u8]) -> Result<usize> {
    let header = std::str::from_utf8(header)?;
    let mut lines = header.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("the answer is {status:?}");
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse().ok())
        .context("the answer does not tell its length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_being_written() {
        let order = Order {
            server: "10.77.0.1:7495".parse().expect("an address"),
            folder: "/image/a".into(),
            kernel: "/k".into(),
            initramfs: "/i".into(),
            clients: vec![("02:00:00:00:00:01".into(), Ipv4Addr::new(10, 77, 0, 2))],
        };
        let read = Order::read(&order.text()).expect("it was written so");
        assert_eq!(read.server, order.server);
        assert_eq!(read.clients, order.clients);
        assert_eq!(read.initramfs, "/i");
        assert!(Order::read("10.77.0.1:80\n").is_err());
    }

    #[test]
    fn only_a_good_answer_has_a_length() {
        let header = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 12\r\n\r\n";
        assert_eq!(end_of_header(header), Some(header.len()));
        assert_eq!(length_of(header).ok(), Some(12));
        assert!(length_of(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\n").is_err());
        assert!(is_script(b"#!ipxe\nkernel http://h/image/a/kernel\n"));
        assert!(!is_script(b"#!ipxe\nsleep 5\n"));
    }
}
