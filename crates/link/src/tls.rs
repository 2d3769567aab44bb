//! Framed messages and bulk data over TLS 1.3 on a TCP socket.

use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wiglaf_wire::frame::{self, DataHeader, Frame};

use crate::inbox::{Inbox, READ_BYTES};
use crate::{LinkError, MAX_QUEUED_BYTES};

/// Longest ClientHello that is looked at before a connection is given up.
const MAX_HELLO_BYTES: usize = 16 << 10;

/// One end of a TLS conversation that receives `In` and sends `Out`.
pub struct TlsLink<In, Out> {
    socket: OwnedFd,
    tls: Connection,
    inbox: Inbox,
    /// Messages that wait to be encrypted together.
    plain: Vec<u8>,
    /// Ciphertext that the socket has not taken yet.
    cipher: Vec<u8>,
    cipher_sent: usize,
    scratch: Vec<u8>,
    conversation: PhantomData<fn(Out) -> In>,
}

impl<In, Out> std::fmt::Debug for TlsLink<In, Out> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsLink").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<In: DeserializeOwned, Out: Serialize> TlsLink<In, Out> {
    /// The side that dialled. The handshake runs as the link is flushed and read.
    ///
    /// # Errors
    /// The configuration or the socket is unusable.
    pub fn client(
        socket: OwnedFd,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, LinkError> {
        Self::new(socket, ClientConnection::new(config, name)?.into())
    }

    /// The side that was dialled.
    ///
    /// # Errors
    /// The configuration or the socket is unusable.
    pub fn server(socket: OwnedFd, config: Arc<ServerConfig>) -> Result<Self, LinkError> {
        Self::new(socket, ServerConnection::new(config)?.into())
    }

    fn new(socket: OwnedFd, mut tls: Connection) -> Result<Self, LinkError> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        // The bound on what is queued is this module's own, over plain and cipher text.
        tls.set_buffer_limit(None);
        Ok(TlsLink {
            socket,
            tls,
            inbox: Inbox::default(),
            plain: Vec::new(),
            cipher: Vec::new(),
            cipher_sent: 0,
            scratch: Vec::new(),
            conversation: PhantomData,
        })
    }

    /// Whether the handshake is still under way.
    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// The peer's certificates, once the handshake is over and if it has shown any.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        if self.is_handshaking() { None } else { self.tls.peer_certificates() }
    }

    /// Queues a message for the next [`TlsLink::flush`]. Many small messages share one record.
    ///
    /// # Errors
    /// The message is too long, or the peer does not read.
    pub fn queue(&mut self, message: &Out) -> Result<(), LinkError> {
        frame::put_message(&mut self.plain, message)?;
        self.check_bound()
    }

    /// Queues bulk data.
    ///
    /// # Errors
    /// The peer does not read.
    pub fn queue_data(&mut self, header: DataHeader, data: &[u8]) -> Result<(), LinkError> {
        self.plain.extend_from_slice(&frame::data_prefix(header, data.len()));
        self.plain.extend_from_slice(data);
        self.check_bound()
    }

    /// Sends a message, or queues what the socket does not take at once.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send(&mut self, message: &Out) -> Result<(), LinkError> {
        self.queue(message)?;
        self.flush()
    }

    fn check_bound(&self) -> Result<(), LinkError> {
        if self.queued_bytes() > MAX_QUEUED_BYTES { Err(LinkError::NotReading) } else { Ok(()) }
    }

    /// Bytes that wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.plain.len() + self.cipher.len() - self.cipher_sent
    }

    /// Whether the loop should wait for room to write.
    pub fn wants_write(&self) -> bool {
        self.cipher_sent < self.cipher.len() || self.tls.wants_write()
    }

    /// Encrypts what is queued and writes as much as the socket takes.
    ///
    /// # Errors
    /// The connection is over.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        if !self.tls.is_handshaking() && !self.plain.is_empty() {
            self.tls.writer().write_all(&self.plain).map_err(|_| LinkError::Closed)?;
            self.plain.clear();
            if self.plain.capacity() > READ_BYTES * 2 {
                self.plain = Vec::new();
            }
        }
        loop {
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.cipher).map_err(|_| LinkError::Closed)?;
            }
            if self.cipher_sent == self.cipher.len() {
                self.cipher.clear();
                self.cipher_sent = 0;
                if self.cipher.capacity() > READ_BYTES * 2 {
                    self.cipher = Vec::new();
                }
                return Ok(());
            }
            let rest = &self.cipher[self.cipher_sent..];
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => self.cipher_sent += sent,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads what there is, once. Returns whether there was anything.
    ///
    /// # Errors
    /// The connection is over; frames that came before can still be taken.
    pub fn receive(&mut self) -> Result<bool, LinkError> {
        if self.scratch.is_empty() {
            self.scratch = vec![0; READ_BYTES];
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.receive_into(&mut scratch);
        // Kept only while data flows in large pieces, so that an idle link costs nothing.
        if matches!(result, Ok(read) if read > READ_BYTES / 4) {
            self.scratch = scratch;
        }
        result.map(|read| read > 0)
    }

    fn receive_into(&mut self, scratch: &mut [u8]) -> Result<usize, LinkError> {
        let read = match rustix::net::recv(&self.socket, &mut *scratch, RecvFlags::empty()) {
            Ok((0, _)) => return Err(LinkError::Closed),
            Ok((read, _)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(Errno::CONNRESET) => return Err(LinkError::Closed),
            Err(errno) => return Err(errno.into()),
        };
        let was_handshaking = self.tls.is_handshaking();
        let mut rest = &scratch[..read];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest).map_err(|_| LinkError::Closed)?;
            let state = self.tls.process_new_packets();
            if state.is_err() {
                // The alert that says why is worth sending; the connection ends all the same.
                let _ = self.flush();
            }
            let mut plain = state?.plaintext_bytes_to_read();
            while plain > 0 {
                plain = plain.saturating_sub(self.take_plain()?);
            }
        }
        if was_handshaking || self.tls.wants_write() {
            self.flush()?;
        }
        Ok(read)
    }

    fn take_plain(&mut self) -> Result<usize, LinkError> {
        use std::io::BufRead;
        let mut reader = self.tls.reader();
        let taken = match reader.fill_buf() {
            Ok(bytes) => {
                self.inbox.extend(bytes);
                bytes.len()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(usize::MAX),
            Err(_) => return Err(LinkError::Closed),
        };
        if taken == 0 {
            return Ok(usize::MAX);
        }
        reader.consume(taken);
        Ok(taken)
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_, In>>, LinkError> {
        Ok(self.inbox.next()?)
    }
}

impl<In, Out> AsFd for TlsLink<In, Out> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Looks at a connection's ClientHello without taking it off the socket, so that the process
/// that the name belongs to can be handed the untouched connection. `Ok(None)`: not all of it has
/// arrived yet.
///
/// # Errors
/// The peer does not speak TLS, or names nobody.
pub fn peek_server_name(socket: impl AsFd) -> Result<Option<String>, LinkError> {
    let mut bytes = vec![0; MAX_HELLO_BYTES];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let seen = match rustix::net::recv(socket, &mut bytes[..], flags) {
        Ok((0, _)) => return Err(LinkError::Closed),
        Ok((seen, _)) => seen,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut acceptor = Acceptor::default();
    let mut rest: &[u8] = &bytes[..seen];
    while !rest.is_empty() {
        let before = rest.len();
        acceptor.read_tls(&mut (&mut rest as &mut dyn Read)).map_err(|_| LinkError::Closed)?;
        if rest.len() == before {
            break;
        }
    }
    match acceptor.accept() {
        Ok(Some(accepted)) => {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            name.map(Some).ok_or(LinkError::Closed)
        }
        Ok(None) if seen == MAX_HELLO_BYTES => Err(LinkError::Closed),
        Ok(None) => Ok(None),
        Err((error, _)) => Err(error.into()),
    }
}
