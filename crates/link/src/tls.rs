//! Framed messages and bulk data over TLS 1.3 on a TCP socket.
//!
//! rustls' unbuffered interface: records are made and opened in our own buffers, since its
//! buffered one moves bulk data through three more.

use std::io::Read;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{Acceptor, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, ServerConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wiglaf_linux::tcp;
use wiglaf_wire::frame::{self, Compression, DataHeader, Frame};

use crate::inbox::{Inbox, READ_BYTES, Wear};
use crate::zip::{Gauge, Kind, Way, Zipper};
use crate::{LinkError, MAX_QUEUED_BYTES};

/// Longest ClientHello that is looked at before a connection is given up.
const MAX_HELLO_BYTES: usize = 16 << 10;
/// Longest TLS 1.3 record with its header (RFC 8446, 5.2).
const MAX_RECORD_BYTES: usize = 5 + (16 << 10) + 256;
/// Most plain text in one record.
const RECORD_PLAIN_BYTES: usize = 16 << 10;
/// Room for what TLS puts around each record's plain text.
const RECORD_EXTRA_BYTES: usize = 64;
/// Bytes that are encrypted at once.
const ENCRYPT_BYTES: usize = 128 << 10;
/// A list of messages that grew beyond this is not kept.
const KEEP_BYTES: usize = 32 << 10;
/// Room for a read where the one before did not fill its own: most links carry little, and making
/// room for bulk data again and again costs more than reading it.
const FIRST_READ_BYTES: usize = 32 << 10;

/// One end of a TLS conversation that receives `In` and sends `Out`.
pub struct TlsLink<In, Out> {
    socket: OwnedFd,
    session: Session,
    inbox: Inbox,
    /// Messages that wait to be encrypted together.
    plain: Vec<u8>,
    /// Ciphertext that the socket has not taken yet.
    outgoing: Buffer,
    /// Ciphertext that is not yet a whole record.
    incoming: Buffer,
    zipper: Zipper,
    gauge: Gauge,
    traffic: Traffic,
    /// The last read had no room for more.
    is_busy: bool,
    peer_closed: bool,
    conversation: PhantomData<fn(Out) -> In>,
}

/// What has gone over a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames that were sent, as if none had been compressed.
    pub sent_content_bytes: u64,
    /// What the socket took for them: compressed, encrypted, with the handshake.
    pub sent_wire_bytes: u64,
    /// Frames that have arrived, as if none had been compressed.
    pub received_content_bytes: u64,
    /// What came from the socket for them.
    pub received_wire_bytes: u64,
}

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl Session {
    fn state(&self) -> &CommonState {
        match self {
            Session::Client(session) => session,
            Session::Server(session) => session,
        }
    }
}

impl<In, Out> std::fmt::Debug for TlsLink<In, Out> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsLink")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
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
        Self::new(
            socket,
            Session::Client(UnbufferedClientConnection::new(config, name)?),
        )
    }

    /// The side that was dialled.
    ///
    /// # Errors
    /// The configuration or the socket is unusable.
    pub fn server(socket: OwnedFd, config: Arc<ServerConfig>) -> Result<Self, LinkError> {
        Self::new(
            socket,
            Session::Server(UnbufferedServerConnection::new(config)?),
        )
    }

    fn new(socket: OwnedFd, session: Session) -> Result<Self, LinkError> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(TlsLink {
            socket,
            session,
            inbox: Inbox::default(),
            plain: Vec::new(),
            outgoing: Buffer::default(),
            incoming: Buffer::default(),
            is_busy: false,
            zipper: Zipper::default(),
            gauge: Gauge::default(),
            traffic: Traffic::default(),
            peer_closed: false,
            conversation: PhantomData,
        })
    }

    /// Whether the handshake is still under way.
    pub fn is_handshaking(&self) -> bool {
        self.session.state().is_handshaking()
    }

    /// The peer's certificates, once the handshake is over and if it has shown any.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        let state = self.session.state();
        if state.is_handshaking() {
            None
        } else {
            state.peer_certificates()
        }
    }

    /// Says when both sides shall compress what they send: the side that dialled knows its wire.
    /// The other one must heed it ([`TlsLink::heed_compression`]).
    pub fn offer_compression(&mut self, compression: Compression) {
        self.inbox.set_compression(compression);
        self.plain
            .extend_from_slice(&frame::compression_frame(compression));
    }

    /// Lets the side that dialled say whether frames are compressed, and takes them then. Only
    /// for peers that have to show a certificate: what is compressed costs more to read (S1).
    pub fn heed_compression(&mut self) {
        self.inbox.heed_offer();
    }

    /// What has gone over it so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            received_content_bytes: self.inbox.content_bytes(),
            ..self.traffic
        }
    }

    /// Queues a message for the next [`TlsLink::flush`]. Many small messages share one record.
    ///
    /// # Errors
    /// The message is too long, or the peer does not read.
    pub fn queue(&mut self, message: &Out) -> Result<(), LinkError> {
        let start = self.plain.len();
        frame::put_message(&mut self.plain, message)?;
        self.traffic.sent_content_bytes += (self.plain.len() - start) as u64;
        let content = &self.plain[start + frame::MESSAGE_PREFIX_BYTES..];
        let length = content.len();
        let how = (self.inbox.compression(), Kind::Message);
        let waiting = start + self.outgoing.filled().len();
        let way = || way(&self.socket, &mut self.gauge, waiting);
        if self.zipper.zip(how, content, way) {
            let zipped = self.zipper.zipped();
            self.plain.truncate(start);
            let prefix = frame::zipped_message_prefix(length, zipped.len());
            self.plain.extend_from_slice(&prefix);
            self.plain.extend_from_slice(zipped);
        }
        self.check_bound()
    }

    /// Queues bulk data.
    ///
    /// # Errors
    /// The peer does not read, or the connection is over.
    pub fn queue_data(&mut self, header: DataHeader, data: &[u8]) -> Result<(), LinkError> {
        let prefix = frame::data_prefix(header, data.len());
        self.traffic.sent_content_bytes += (prefix.len() + data.len()) as u64;
        let how = (self.inbox.compression(), Kind::Data);
        let waiting = self.queued_bytes();
        let mut zipper = std::mem::take(&mut self.zipper);
        let result = if zipper.zip(how, data, || way(&self.socket, &mut self.gauge, waiting)) {
            let prefix = frame::zipped_data_prefix(header, data.len(), zipper.zipped().len());
            self.put(&prefix, zipper.zipped())
        } else {
            self.put(&prefix, data)
        };
        self.zipper = zipper;
        result?;
        self.check_bound()
    }

    fn put(&mut self, prefix: &[u8], bytes: &[u8]) -> Result<(), LinkError> {
        self.plain.extend_from_slice(prefix);
        if bytes.len() < RECORD_PLAIN_BYTES || self.is_handshaking() {
            self.plain.extend_from_slice(bytes);
            return Ok(());
        }
        // Full records are made from where the bytes are; what is left over shares its record
        // with what comes next.
        let fill = RECORD_PLAIN_BYTES.saturating_sub(self.plain.len() % RECORD_PLAIN_BYTES);
        let (first, rest) = bytes.split_at(fill.min(bytes.len()));
        self.plain.extend_from_slice(first);
        self.encrypt_plain()?;
        let whole = rest.len() - rest.len() % RECORD_PLAIN_BYTES;
        for piece in rest[..whole].chunks(ENCRYPT_BYTES) {
            self.turn(piece)?;
        }
        self.plain.extend_from_slice(&rest[whole..]);
        Ok(())
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
        if self.queued_bytes() > MAX_QUEUED_BYTES {
            Err(LinkError::NotReading)
        } else {
            Ok(())
        }
    }

    /// Bytes that wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.plain.len() + self.outgoing.filled().len()
    }

    /// Whether the loop should wait for room to write.
    pub fn wants_write(&self) -> bool {
        !self.outgoing.filled().is_empty()
    }

    /// Encrypts what is queued and writes as much as the socket takes.
    ///
    /// # Errors
    /// The connection is over.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        if self.is_handshaking() {
            self.turn(&[])?;
        }
        if !self.is_handshaking() {
            self.encrypt_plain()?;
        }
        self.write_outgoing()
    }

    fn encrypt_plain(&mut self) -> Result<(), LinkError> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let mut plain = std::mem::take(&mut self.plain);
        for piece in plain.chunks(ENCRYPT_BYTES) {
            self.turn(piece)?;
        }
        if plain.capacity() <= KEEP_BYTES {
            plain.clear();
            self.plain = plain;
        }
        Ok(())
    }

    fn write_outgoing(&mut self) -> Result<(), LinkError> {
        while !self.outgoing.filled().is_empty() {
            match rustix::net::send(&self.socket, self.outgoing.filled(), SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.outgoing.take(sent);
                    self.traffic.sent_wire_bytes += sent as u64;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Reads what there is, once. Returns whether there was anything.
    ///
    /// # Errors
    /// The connection is over; frames that came before can still be taken.
    pub fn receive(&mut self) -> Result<bool, LinkError> {
        if self.peer_closed {
            return Err(LinkError::Closed);
        }
        let size = if self.is_busy {
            READ_BYTES
        } else {
            FIRST_READ_BYTES
        };
        self.is_busy = false;
        let room = self.incoming.room(size);
        let read = match rustix::net::recv(&self.socket, room, RecvFlags::empty()) {
            Ok((0, _)) => return Err(LinkError::Closed),
            Ok((read, _)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(Errno::CONNRESET) => return Err(LinkError::Closed),
            Err(errno) => return Err(errno.into()),
        };
        self.incoming.fill(read);
        self.is_busy = read == size;
        self.traffic.received_wire_bytes += read as u64;
        let was_handshaking = self.is_handshaking();
        let turned = self.turn(&[]);
        if turned.is_err() {
            // The alert that says why is worth sending; the connection ends all the same.
            let _ = self.turn(&[]);
            let _ = self.write_outgoing();
        }
        turned?;
        if self.incoming.filled().len() > MAX_RECORD_BYTES && !self.is_handshaking() {
            return Err(LinkError::Closed);
        }
        if was_handshaking || self.wants_write() {
            self.flush()?;
        }
        Ok(true)
    }

    /// Whether the last read may have left something behind.
    pub fn may_have_more(&self) -> bool {
        self.is_busy
    }

    /// Lets TLS go on: opens the records that have arrived, makes those that it wants to send,
    /// and encrypts `plain` (only given once the handshake is over).
    fn turn(&mut self, plain: &[u8]) -> Result<(), LinkError> {
        loop {
            let incoming = self.incoming.filled_mut();
            let (discard, done) = match &mut self.session {
                Session::Client(session) => {
                    let status = session.process_tls_records(incoming);
                    step(
                        status,
                        plain,
                        &mut self.outgoing,
                        &mut self.inbox,
                        &mut self.peer_closed,
                    )
                }
                Session::Server(session) => {
                    let status = session.process_tls_records(incoming);
                    step(
                        status,
                        plain,
                        &mut self.outgoing,
                        &mut self.inbox,
                        &mut self.peer_closed,
                    )
                }
            };
            self.incoming.take(discard);
            if done? {
                return Ok(());
            }
        }
    }

    /// The next whole frame, or piece of bulk data, if there is one.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_, In>>, LinkError> {
        Ok(self.inbox.next()?)
    }
}

/// What lies before a frame that is queued behind `waiting` bytes here.
fn way(socket: &OwnedFd, gauge: &mut Gauge, waiting: usize) -> Way {
    // A socket that can't be asked is one of a test.
    let way = tcp::way(socket).unwrap_or_default();
    Way {
        bytes_per_s: gauge.read(way),
        waiting_bytes: way.unsent_bytes + waiting as u64,
    }
}

/// One state of rustls: how many bytes it has done with, and whether it waits for the peer.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &[u8],
    outgoing: &mut Buffer,
    inbox: &mut Inbox,
    peer_closed: &mut bool,
) -> (usize, Result<bool, LinkError>) {
    let UnbufferedStatus { mut discard, state } = status;
    let state = match state {
        Ok(state) => state,
        Err(error) => return (discard, Err(error.into())),
    };
    let result = match state {
        ConnectionState::ReadTraffic(mut traffic) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    inbox.extend(record.payload);
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(false),
            }
        },
        ConnectionState::EncodeTlsData(mut data) => {
            let mut size = RECORD_PLAIN_BYTES;
            loop {
                match data.encode(outgoing.room(size)) {
                    Ok(written) => {
                        outgoing.fill(written);
                        break Ok(false);
                    }
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                        size = required_size;
                    }
                    Err(EncodeError::AlreadyEncoded) => break Ok(false),
                }
            }
        }
        ConnectionState::TransmitTlsData(data) => {
            // The socket gets it with all else that is outgoing.
            data.done();
            Ok(false)
        }
        ConnectionState::WriteTraffic(mut traffic) if !plain.is_empty() => {
            let records = plain.len().div_ceil(RECORD_PLAIN_BYTES);
            let mut size = plain.len() + records * RECORD_EXTRA_BYTES;
            loop {
                match traffic.encrypt(plain, outgoing.room(size)) {
                    Ok(written) => {
                        outgoing.fill(written);
                        break Ok(true);
                    }
                    Err(EncryptError::InsufficientSize(InsufficientSizeError {
                        required_size,
                    })) => size = required_size,
                    Err(EncryptError::EncryptExhausted) => break Err(LinkError::Closed),
                }
            }
        }
        ConnectionState::PeerClosed => {
            *peer_closed = true;
            Ok(false)
        }
        ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake => Ok(true),
        // Early data is never offered; a state that is not known can't be served.
        _ => Err(LinkError::Closed),
    };
    (discard, result)
}

/// Bytes that come in at the end and leave at the front. Its memory is made once and reused.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Most bytes that it has held since it was empty.
    peak: usize,
    wear: Wear,
}

impl Buffer {
    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Room for `size` bytes behind those that are there.
    fn room(&mut self, size: usize) -> &mut [u8] {
        if self.end + size > self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end + size > self.bytes.len() {
            self.bytes.resize(self.end + size, 0);
        }
        &mut self.bytes[self.end..self.end + size]
    }

    fn fill(&mut self, count: usize) {
        self.end += count;
        self.peak = self.peak.max(self.end - self.start);
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end && self.start > 0 {
            if self.wear.is_too_large(self.bytes.len(), self.peak) {
                self.bytes = Vec::new();
            }
            (self.start, self.end, self.peak) = (0, 0, 0);
        }
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
        acceptor
            .read_tls(&mut (&mut rest as &mut dyn Read))
            .map_err(|_| LinkError::Closed)?;
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
