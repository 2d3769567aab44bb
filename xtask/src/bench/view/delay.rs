//! A delay on a cable: the kernel keeps a namespace's incoming packets in a queue (NFQUEUE) and
//! tells this process of each; it says when they may go on. Of the packets only their numbers come
//! here, and those of large segments that the kernel has not cut come as one.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket, sockopt,
};

/// What its process is called among the benchmarks.
pub(in crate::bench) const NAME: &str = "delay";
pub(super) const QUEUE: u16 = 7;
/// Packets that the kernel keeps for us at most.
const QUEUE_LENGTH: u32 = 65_536;
const SOCKET_BYTES: usize = 8 << 20;
const BUFFER_BYTES: usize = 1 << 16;

// linux/netfilter/nfnetlink.h and nfnetlink_queue.h.
const SUBSYSTEM: u16 = 3 << 8;
const MESSAGE_PACKET: u16 = SUBSYSTEM;
const MESSAGE_CONFIG: u16 = SUBSYSTEM | 2;
const MESSAGE_VERDICT_BATCH: u16 = SUBSYSTEM | 3;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMETERS: u16 = 2;
const CONFIG_LENGTH: u16 = 3;
const CONFIG_MASK: u16 = 4;
const CONFIG_FLAGS: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COPY_META: u8 = 1;
const FLAG_UNCUT: u32 = 4;
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const ACCEPT: u32 = 1;
const PROTOCOL_IP: u16 = 2;
const HEADER_BYTES: usize = 16;
const ATTRIBUTES_AT: usize = HEADER_BYTES + 4;
const IS_REQUEST: u16 = 1;

/// `bench delay MICROSECONDS`, in the namespace; says `ready` when it is.
pub(in crate::bench) fn run(args: &[String]) -> Result<()> {
    let microseconds = args.first().context("how many microseconds?")?.parse()?;
    let delay = Duration::from_micros(microseconds);
    let queue = socket(
        AddressFamily::NETLINK,
        SocketType::RAW,
        Some(netlink::NETFILTER),
    )
    .context("netlink")?;
    sockopt::set_socket_recv_buffer_size_force(&queue, SOCKET_BYTES)?;
    bind(&queue).context("the packet queue")?;
    println!("ready");
    std::io::stdout().flush()?;
    hold_and_release(&queue, delay)
}

fn bind(queue: &OwnedFd) -> Result<()> {
    let [high, low] = PROTOCOL_IP.to_be_bytes();
    let command = attribute(CONFIG_COMMAND, &[COMMAND_BIND, 0, high, low]);
    send_message(queue, MESSAGE_CONFIG, &command)?;
    let mut options = attribute(CONFIG_PARAMETERS, &[0, 0, 0, 0, COPY_META]);
    options.extend(attribute(CONFIG_LENGTH, &QUEUE_LENGTH.to_be_bytes()));
    options.extend(attribute(CONFIG_MASK, &FLAG_UNCUT.to_be_bytes()));
    options.extend(attribute(CONFIG_FLAGS, &FLAG_UNCUT.to_be_bytes()));
    send_message(queue, MESSAGE_CONFIG, &options)
}

fn hold_and_release(queue: &OwnedFd, delay: Duration) -> Result<()> {
    let mut held: VecDeque<(u32, Instant)> = VecDeque::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let now = Instant::now();
        let due = held.iter().take_while(|(_, due)| *due <= now).count();
        if let Some((last, _)) = held.drain(..due).next_back() {
            release(queue, last)?;
        }
        let wait = held
            .front()
            .map(|(_, due)| Timespec::try_from(due.saturating_duration_since(now)))
            .transpose()
            .context("a time to wait")?;
        let mut fds = [PollFd::new(queue, PollFlags::IN)];
        match poll(&mut fds, wait.as_ref()) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let due = Instant::now() + delay;
        loop {
            match recv(queue, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => note(&buffer[..length], due, &mut held)?,
                Err(Errno::AGAIN) => break,
                // The kernel has dropped a notice, and with it the packet.
                Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(error) => return Err(error).context("recv"),
            }
        }
    }
}

/// Notes the packets that these messages tell of.
fn note(mut messages: &[u8], due: Instant, held: &mut VecDeque<(u32, Instant)>) -> Result<()> {
    while messages.len() >= HEADER_BYTES {
        let length = u32::from_ne_bytes(bytes_at(messages, 0)?) as usize;
        let kind = u16::from_ne_bytes(bytes_at(messages, 4)?);
        if length < HEADER_BYTES || length > messages.len() {
            bail!("a netlink message of {length} bytes");
        }
        if kind == MESSAGE_PACKET {
            held.push_back((packet_number(&messages[..length])?, due));
        }
        messages = &messages[aligned(length).min(messages.len())..];
    }
    Ok(())
}

fn packet_number(message: &[u8]) -> Result<u32> {
    let mut at = ATTRIBUTES_AT;
    while at + 4 <= message.len() {
        let length = usize::from(u16::from_ne_bytes(bytes_at(message, at)?));
        if u16::from_ne_bytes(bytes_at(message, at + 2)?) == PACKET_HEADER {
            return Ok(u32::from_be_bytes(bytes_at(message, at + 4)?));
        }
        at += aligned(length.max(4));
    }
    bail!("a packet without a number")
}

/// Lets all up to this one go on.
fn release(queue: &OwnedFd, last: u32) -> Result<()> {
    let mut verdict = ACCEPT.to_be_bytes().to_vec();
    verdict.extend(last.to_be_bytes());
    send_message(
        queue,
        MESSAGE_VERDICT_BATCH,
        &attribute(VERDICT_HEADER, &verdict),
    )
}

fn send_message(queue: &OwnedFd, kind: u16, attributes: &[u8]) -> Result<()> {
    let length = u32::try_from(ATTRIBUTES_AT + attributes.len())?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(IS_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    // Any family, version 0, and the queue.
    message.extend([0, 0]);
    message.extend(QUEUE.to_be_bytes());
    message.extend(attributes);
    send(queue, &message, SendFlags::empty()).context("send")?;
    Ok(())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let found = bytes
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok());
    found.context("a netlink message that ends early")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(number: u32) -> Vec<u8> {
        let mut attributes = attribute(9, &[1, 2, 3]);
        let mut header = number.to_be_bytes().to_vec();
        header.extend([8, 0, 1]);
        attributes.extend(attribute(PACKET_HEADER, &header));
        let length = u32::try_from(ATTRIBUTES_AT + attributes.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(MESSAGE_PACKET.to_ne_bytes());
        message.extend([0; ATTRIBUTES_AT - 6]);
        message.extend(attributes);
        message
    }

    #[test]
    fn packets_are_held_in_their_order() {
        let messages = [packet(5), packet(6)].concat();
        let (mut held, due) = (VecDeque::new(), Instant::now());
        note(&messages, due, &mut held).unwrap();
        assert_eq!(held, [(5, due), (6, due)]);
        assert!(note(&messages[..30], due, &mut held).is_err());
    }
}
