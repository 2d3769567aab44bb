//! Framed messages with descriptors over a Unix stream socket.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wiglaf_wire::frame::{self, Frame, FrameError};

use crate::inbox::Inbox;
use crate::{LinkError, MAX_QUEUED_BYTES};

/// Most descriptors that one message may carry, and that may wait for their message.
const MAX_DESCRIPTORS: usize = 16;
/// Bytes of one read: commands are small, and a head may have thousands of callers.
const READ_BYTES: usize = 32 << 10;

/// Descriptors that came with messages, in their order.
#[derive(Debug, Default)]
pub struct Descriptors(VecDeque<OwnedFd>);

impl Descriptors {
    /// The next one.
    ///
    /// # Errors
    /// [`LinkError::Descriptors`]: the message came without it.
    pub fn take(&mut self) -> Result<OwnedFd, LinkError> {
        self.0.pop_front().ok_or(LinkError::Descriptors)
    }
}

/// One end of a conversation that receives `In` and sends `Out`.
#[derive(Debug)]
pub struct Channel<In, Out> {
    socket: OwnedFd,
    inbox: Inbox,
    descriptors: Descriptors,
    outbox: VecDeque<Segment>,
    queued: usize,
    conversation: PhantomData<fn(Out) -> In>,
}

/// Bytes to be sent; the descriptors go with the first of them.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl<In: DeserializeOwned, Out: Serialize> Channel<In, Out> {
    /// Takes a connected socket, and makes it non-blocking.
    ///
    /// # Errors
    /// The descriptor can't be changed.
    pub fn new(socket: OwnedFd) -> Result<Self, LinkError> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Channel {
            socket,
            inbox: Inbox::default(),
            descriptors: Descriptors::default(),
            outbox: VecDeque::new(),
            queued: 0,
            conversation: PhantomData,
        })
    }

    /// Sends a message, or queues what the socket does not take at once.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send(&mut self, message: &Out, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        self.queue(message, descriptors)?;
        self.flush()
    }

    /// Queues a message for the next [`Channel::flush`].
    ///
    /// # Errors
    /// The message is too long, or the peer does not read.
    pub fn queue(&mut self, message: &Out, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(LinkError::Descriptors);
        }
        let fresh = !descriptors.is_empty() || self.outbox.back().is_none_or(|last| last.sent > 0);
        if fresh {
            self.outbox.push_back(Segment {
                descriptors,
                ..Segment::default()
            });
        }
        let Some(segment) = self.outbox.back_mut() else {
            return Ok(());
        };
        let before = segment.bytes.len();
        frame::put_message(&mut segment.bytes, message)?;
        self.queued += segment.bytes.len() - before;
        if self.queued > MAX_QUEUED_BYTES {
            return Err(LinkError::NotReading);
        }
        Ok(())
    }

    /// Writes what is queued, as far as the socket takes it.
    ///
    /// # Errors
    /// The connection is over.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(segment) = self.outbox.front_mut() {
            if segment.bytes.len() == segment.sent {
                self.outbox.pop_front();
                continue;
            }
            match send_segment(self.socket.as_fd(), segment) {
                Ok(sent) => {
                    segment.sent += sent;
                    segment.descriptors.clear();
                    self.queued -= sent;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Whether the loop should wait for room to write.
    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Reads what there is, once. Returns whether there was anything.
    ///
    /// # Errors
    /// The connection is over; messages that came before can still be taken.
    pub fn receive(&mut self) -> Result<bool, LinkError> {
        let mut bytes = [0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = loop {
            match rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(message) => break message.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptors.0.extend(rights);
            }
        }
        if self.descriptors.0.len() > MAX_DESCRIPTORS * 4 {
            return Err(LinkError::Descriptors);
        }
        if read == 0 {
            return Err(LinkError::Closed);
        }
        self.inbox.extend(&bytes[..read]);
        Ok(true)
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn next_message(&mut self) -> Result<Option<In>, LinkError> {
        match self.inbox.next()? {
            Some(Frame::Message(message)) => Ok(Some(message)),
            Some(Frame::Data(..)) => Err(FrameError::BadDataHeader.into()),
            None => Ok(None),
        }
    }

    /// Waits for the next message: for commands, which have nothing else to do.
    ///
    /// # Errors
    /// The connection is over.
    pub fn wait_message(&mut self) -> Result<In, LinkError> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            self.wait_ready()?;
            // A peer that hung up may have said why: what it sent comes before its end.
            let flushed = self.flush();
            if !self.receive()? {
                flushed?;
            }
        }
    }

    /// Blocks until all that is queued is written.
    ///
    /// # Errors
    /// The connection is over.
    pub fn wait_flushed(&mut self) -> Result<(), LinkError> {
        self.flush()?;
        while self.wants_write() {
            self.wait_ready()?;
            self.flush()?;
        }
        Ok(())
    }

    fn wait_ready(&self) -> Result<(), LinkError> {
        use rustix::event::{PollFd, PollFlags, poll};
        // Room to write is waited for only while something is queued: else this would spin.
        let flags = if self.wants_write() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        match poll(&mut [PollFd::new(&self.socket, flags)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The descriptors that came with the messages taken so far.
    pub fn descriptors(&mut self) -> &mut Descriptors {
        &mut self.descriptors
    }
}

impl<In, Out> AsFd for Channel<In, Out> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_segment(socket: BorrowedFd<'_>, segment: &Segment) -> Result<usize, Errno> {
    let bytes = [IoSlice::new(&segment.bytes[segment.sent..])];
    let borrowed: Vec<_> = segment.descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    rustix::net::sendmsg(
        socket,
        &bytes,
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Channel<String, String>, Channel<String, String>) {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Channel::new(a).unwrap(), Channel::new(b).unwrap())
    }

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (mut a, mut b) = pair();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send(&"plain".into(), vec![]).unwrap();
        a.send(&"with".into(), vec![write]).unwrap();
        assert_eq!(b.wait_message().unwrap(), "plain");
        assert_eq!(b.wait_message().unwrap(), "with");
        let write = b.descriptors().take().unwrap();
        rustix::io::write(&write, b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(&read, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(matches!(
            b.descriptors().take(),
            Err(LinkError::Descriptors)
        ));
    }

    #[test]
    fn long_messages_cross_in_pieces() {
        let (mut a, mut b) = pair();
        let long = "y".repeat(3 << 20);
        let copy = long.clone();
        let writer = std::thread::spawn(move || {
            a.send(&copy, vec![]).unwrap();
            a.wait_flushed().unwrap();
        });
        assert_eq!(b.wait_message().unwrap(), long);
        writer.join().unwrap();
        assert!(matches!(b.wait_message(), Err(LinkError::Closed)));
    }

    #[test]
    fn a_peer_that_never_reads_is_cut_off() {
        let (mut a, _b) = pair();
        let long = "z".repeat(3 << 20);
        let error = (0..100).find_map(|_| a.send(&long, vec![]).err());
        assert!(matches!(error, Some(LinkError::NotReading)));
    }
}
