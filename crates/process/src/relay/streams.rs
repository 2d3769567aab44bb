//! A task's streams at one end: descriptors joined with what is agreed on the wire.

use rustix::io::Errno;
use wiglaf_link::{Interest, Poll, Token};
use wiglaf_wire::frame::DataHeader;
use wiglaf_wire::id::TaskId;
use wiglaf_wire::stream::{Relay, Stream};

use super::buffers::{Buffers, PIECE_BYTES};
use super::carrier::Carrier;
use super::flow::{FlowError, Receiver, Sender};
use super::port::Port;

/// Reads of one source before others have their turn.
const READS_PER_TURN: usize = 4;
/// A read shorter than this has probably emptied the pipe.
const SHORT_READ_BYTES: usize = 16 << 10;
/// Size of a pipe of ours once much flows through it.
const LARGE_PIPE_BYTES: usize = 256 << 10;
/// Until then it has the kernel's default size; a read of so much says that it is full.
const FULL_PIPE_BYTES: usize = 60 << 10;

/// What is read here and sent to the other end.
#[derive(Debug)]
pub(crate) struct Source {
    port: Option<Port>,
    token: Token,
    armed: bool,
    stalled: bool,
    /// A pipe of our own, still of the default size.
    small_pipe: bool,
    /// The end is where nothing more can be read now.
    cut: bool,
    flow: Sender,
}

impl Source {
    pub(crate) fn new(port: Port, token: Token, small_pipe: bool) -> Source {
        let flow = Sender::default();
        Source {
            port: Some(port),
            token,
            armed: false,
            stalled: false,
            small_pipe,
            cut: false,
            flow,
        }
    }

    /// Reads, sends, and waits for what has to be waited for.
    fn pump(
        &mut self,
        poll: &Poll,
        (task, stream): (TaskId, Stream),
        carrier: &mut Carrier,
        buffers: &mut Buffers,
    ) {
        let mut reads = 0;
        loop {
            while !carrier.is_congested()
                && let Some((offset, piece)) = self.flow.next_piece()
            {
                carrier.data(
                    DataHeader {
                        task,
                        stream,
                        offset,
                    },
                    piece,
                );
            }
            if carrier.is_congested() {
                if !self.stalled {
                    self.stalled = true;
                    carrier.stalled.push_back((task, stream));
                }
                break;
            }
            let room = self.flow.room().min(PIECE_BYTES);
            let Some(port) = &mut self.port else { break };
            let always_ready = port.waitable().is_none();
            if room == 0 || (reads == READS_PER_TURN && !always_ready && !self.cut) {
                break;
            }
            let mut piece = buffers.take();
            let result = port.read(&mut piece, room);
            reads += 1;
            match result {
                Ok(read) if read > 0 => {
                    if self.small_pipe && read >= FULL_PIPE_BYTES {
                        self.small_pipe = false;
                        // A user's quota of pipe pages may refuse it; then it stays small.
                        let _ =
                            rustix::pipe::fcntl_setpipe_size(port.descriptor(), LARGE_PIPE_BYTES);
                    }
                    self.flow.push(&mut piece);
                    if read < SHORT_READ_BYTES && !always_ready && !self.cut {
                        reads = READS_PER_TURN;
                    }
                }
                Err(Errno::AGAIN) if !self.cut => {
                    buffers.give_back(piece);
                    break;
                }
                // The end of a terminal is an error (EIO), and so is any other that ends it.
                Ok(_) | Err(_) => self.end(poll),
            }
            buffers.give_back(piece);
        }
        if let Some(offset) = self.flow.next_end() {
            carrier.say(&Relay::End {
                task,
                stream,
                offset,
            });
        }
        self.arm(poll);
    }

    fn arm(&mut self, poll: &Poll) {
        let Some(port) = self.port.as_ref().and_then(Port::waitable) else {
            return;
        };
        let wanted = self.flow.room() > 0 && !self.stalled;
        if wanted != self.armed {
            // Out of the set rather than without interest: a hang-up would be told for ever.
            let result = match wanted {
                true => poll.add(port, self.token, Interest::Read),
                false => poll.remove(port),
            };
            match result {
                Ok(()) => self.armed = wanted,
                // It can't be waited for, so that no more can come of it.
                Err(_) => self.end(poll),
            }
        }
    }

    fn end(&mut self, poll: &Poll) {
        self.flow.end();
        self.close(poll);
    }

    fn close(&mut self, poll: &Poll) {
        if let Some(port) = self.port.take() {
            disarm(poll, &port, &mut self.armed);
        }
    }

    pub(crate) fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.port.as_ref().map(Port::descriptor)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.flow.is_done()
    }
}

/// What a sink does when its stream has ended and all of it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtEnd {
    /// It closes the descriptor.
    Close,
    /// It keeps it, for words of the cluster's own.
    Keep,
    /// It types the terminal's end-of-file character.
    TypeEndOfFile,
}

/// What comes from the other end and is written here.
#[derive(Debug)]
pub(crate) struct Sink {
    port: Option<Port>,
    token: Token,
    armed: bool,
    at_end: AtEnd,
    finished: bool,
    /// Words of the cluster's own, written between the stream's bytes.
    words: Vec<u8>,
    words_begun: bool,
    broken: Option<Errno>,
    broken_told: bool,
    small_pipe: bool,
    flow: Receiver,
}

impl Sink {
    pub(crate) fn new(port: Port, token: Token, at_end: AtEnd, small_pipe: bool) -> Sink {
        Sink {
            port: Some(port),
            token,
            armed: false,
            at_end,
            finished: false,
            words: Vec::new(),
            words_begun: false,
            broken: None,
            broken_told: false,
            small_pipe,
            flow: Receiver::default(),
        }
    }

    fn deliver(&mut self, poll: &Poll, offset: u64, bytes: &[u8]) -> Result<(), FlowError> {
        let mut rest = self.flow.accept(offset, bytes)?;
        let at_once = self.flow.pending().is_empty() && self.words.is_empty();
        while at_once && !rest.is_empty() {
            let Some(port) = &mut self.port else { break };
            match port.write(rest) {
                Ok(written) => {
                    self.flow.wrote(written);
                    rest = &rest[written..];
                    if !rest.is_empty() && self.small_pipe {
                        self.small_pipe = false;
                        let _ =
                            rustix::pipe::fcntl_setpipe_size(port.descriptor(), LARGE_PIPE_BYTES);
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    self.break_off(poll, errno);
                    return Ok(());
                }
            }
        }
        if !rest.is_empty() {
            self.flow.keep(rest);
            self.arm(poll, true);
        }
        Ok(())
    }

    /// Writes what waits, and ends when all is written.
    fn flush(&mut self, poll: &Poll) {
        loop {
            let Some(port) = &mut self.port else { return };
            // A write that is under way in a thread has to be finished first.
            let words = !self.words.is_empty() && (self.words_begun || !port.is_busy());
            let bytes = if words {
                &self.words
            } else {
                self.flow.pending()
            };
            if bytes.is_empty() {
                break;
            }
            self.words_begun = words;
            match port.write(bytes) {
                Ok(written) if words => {
                    self.words.drain(..written);
                    self.words_begun = false;
                }
                Ok(written) => self.flow.wrote_pending(written),
                Err(Errno::AGAIN) => return self.arm(poll, true),
                Err(errno) => return self.break_off(poll, errno),
            }
        }
        self.arm(poll, false);
        if self.flow.is_done() && !self.finished {
            self.finished = true;
            match (self.at_end, &mut self.port) {
                (AtEnd::TypeEndOfFile, Some(port)) => type_end_of_file(port),
                (AtEnd::Close, _) => self.close(poll),
                _ => {}
            }
        }
    }

    fn arm(&mut self, poll: &Poll, wanted: bool) {
        let Some(port) = &self.port else { return };
        let Some(fd) = port.waitable() else { return };
        if wanted != self.armed {
            let interest = Interest::of(port.waits_by_reading(), !port.waits_by_reading());
            let result = match wanted {
                true => poll.add(fd, self.token, interest),
                false => poll.remove(fd),
            };
            match result {
                Ok(()) => self.armed = wanted,
                Err(errno) => self.break_off(poll, errno),
            }
        }
    }

    fn break_off(&mut self, poll: &Poll, errno: Errno) {
        self.flow.break_off();
        self.words = Vec::new();
        self.broken = self.broken.or(Some(errno));
        self.close(poll);
    }

    fn close(&mut self, poll: &Poll) {
        if let Some(port) = self.port.take() {
            disarm(poll, &port, &mut self.armed);
        }
    }

    /// What the sender has to know now.
    fn report(&mut self, (task, stream): (TaskId, Stream), carrier: &mut Carrier) {
        match self.broken {
            Some(errno) if !self.broken_told => {
                self.broken_told = true;
                let errno = errno.raw_os_error();
                carrier.say(&Relay::Broken {
                    task,
                    stream,
                    errno,
                });
            }
            _ => {
                if let Some(offset) = self.flow.next_report() {
                    carrier.say(&Relay::Passed {
                        task,
                        stream,
                        offset,
                    });
                }
            }
        }
    }

    /// Writes a sentence after what has been written.
    pub(crate) fn speak(&mut self, poll: &Poll, words: &[u8]) {
        if self.port.is_some() {
            self.words.extend_from_slice(words);
            self.flush(poll);
        }
    }

    /// Whether [`Sink::speak`] is done, or can't be.
    pub(crate) fn has_spoken(&self) -> bool {
        self.words.is_empty()
    }

    /// How many bytes have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.flow.received()
    }

    /// How many bytes have been written.
    pub(crate) fn written(&self) -> u64 {
        self.flow.passed()
    }

    /// Whether everything before `offset` is written, or can't be.
    pub(crate) fn has_written(&self, offset: u64) -> bool {
        self.flow.is_broken() || self.flow.passed() >= offset
    }

    /// The error that ended it.
    pub(crate) fn broken(&self) -> Option<Errno> {
        self.broken
    }

    pub(crate) fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.port.as_ref().map(Port::descriptor)
    }
}

/// Out of the set before it is closed: others hold the same description, and would keep it there.
fn disarm(poll: &Poll, port: &Port, armed: &mut bool) {
    if *armed && let Some(fd) = port.waitable() {
        // Fails only for a set that is broken itself.
        let _ = poll.remove(fd);
        *armed = false;
    }
}

/// As `script(1)` does when its standard input ends: a program that reads lines from the terminal
/// sees the end; one that has the terminal raw is not disturbed.
fn type_end_of_file(port: &mut Port) {
    use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
    if let Ok(settings) = tcgetattr(port.descriptor())
        && settings.local_modes.contains(LocalModes::ICANON)
    {
        // A terminal that takes no more input can't be told, as if nobody had typed it.
        let _ = port.write(&[settings.special_codes[SpecialCodeIndex::VEOF]]);
    }
}

/// The streams of one task at one end.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) task: TaskId,
    pub(crate) sources: [Option<Source>; 3],
    pub(crate) sinks: [Option<Sink>; 3],
}

impl Streams {
    pub(crate) fn new(task: TaskId) -> Streams {
        Streams {
            task,
            sources: [const { None }; 3],
            sinks: [const { None }; 3],
        }
    }

    /// A new link: each sink says where its stream goes on.
    pub(crate) fn link(&mut self, carrier: &mut Carrier) {
        let task = self.task;
        for stream in Stream::ALL {
            if let Some(source) = &mut self.sources[stream.index()] {
                source.flow.unlink();
                source.stalled = false;
            }
            if let Some(sink) = &mut self.sinks[stream.index()] {
                let offset = sink.flow.relink();
                carrier.say(&Relay::Passed {
                    task,
                    stream,
                    offset,
                });
                sink.broken_told = false;
                sink.report((task, stream), carrier);
            }
        }
    }

    /// The link is gone: nothing is read until there is a new one.
    pub(crate) fn unlink(&mut self, poll: &Poll) {
        for source in self.sources.iter_mut().flatten() {
            source.flow.unlink();
            source.stalled = false;
            source.arm(poll);
        }
    }

    /// Bytes from the link. [`Streams::report`] is due afterwards.
    pub(crate) fn data(
        &mut self,
        poll: &Poll,
        header: DataHeader,
        bytes: &[u8],
    ) -> Result<(), FlowError> {
        match &mut self.sinks[header.stream.index()] {
            Some(sink) => sink.deliver(poll, header.offset, bytes),
            None => Ok(()),
        }
    }

    /// Tells the sender of a stream what it has to know.
    pub(crate) fn report(&mut self, stream: Stream, carrier: &mut Carrier) {
        if let Some(sink) = &mut self.sinks[stream.index()] {
            sink.report((self.task, stream), carrier);
        }
    }

    /// The sender says where its stream ends.
    pub(crate) fn ended(
        &mut self,
        poll: &Poll,
        (stream, offset): (Stream, u64),
        carrier: &mut Carrier,
    ) -> Result<(), FlowError> {
        if let Some(sink) = &mut self.sinks[stream.index()] {
            sink.flow.end_at(offset)?;
            sink.flush(poll);
            sink.report((self.task, stream), carrier);
        }
        Ok(())
    }

    /// The receiver has passed on more.
    pub(crate) fn passed(
        &mut self,
        poll: &Poll,
        (stream, offset): (Stream, u64),
        carrier: &mut Carrier,
        buffers: &mut Buffers,
    ) -> Result<(), FlowError> {
        if let Some(source) = &mut self.sources[stream.index()] {
            source.flow.passed_on(offset, buffers)?;
            source.pump(poll, (self.task, stream), carrier, buffers);
        }
        Ok(())
    }

    /// The receiver wants no more.
    pub(crate) fn broken(&mut self, poll: &Poll, stream: Stream) {
        if let Some(source) = &mut self.sources[stream.index()] {
            source.flow.break_off();
            source.close(poll);
        }
    }

    /// The link has room again for a stream that was stalled.
    pub(crate) fn unstall(
        &mut self,
        poll: &Poll,
        stream: Stream,
        carrier: &mut Carrier,
        buffers: &mut Buffers,
    ) {
        if let Some(source) = &mut self.sources[stream.index()] {
            source.stalled = false;
            source.pump(poll, (self.task, stream), carrier, buffers);
        }
    }

    /// A stream's descriptor is ready.
    pub(crate) fn ready(
        &mut self,
        poll: &Poll,
        stream: Stream,
        carrier: Option<&mut Carrier>,
        buffers: &mut Buffers,
    ) {
        let at = (self.task, stream);
        if let Some(sink) = &mut self.sinks[stream.index()] {
            sink.flush(poll);
            if let Some(carrier) = carrier {
                sink.report(at, carrier);
            }
        } else if let Some(source) = &mut self.sources[stream.index()]
            && let Some(carrier) = carrier
        {
            source.pump(poll, at, carrier, buffers);
        }
    }

    /// Reads what is there, and takes that for the end.
    pub(crate) fn cut_sources(
        &mut self,
        poll: &Poll,
        mut carrier: Option<&mut Carrier>,
        buffers: &mut Buffers,
    ) {
        for stream in Stream::ALL {
            if let Some(source) = &mut self.sources[stream.index()] {
                source.cut = true;
                if let Some(carrier) = carrier.as_deref_mut() {
                    source.pump(poll, (self.task, stream), carrier, buffers);
                }
            }
        }
    }

    /// Nobody reads here any more what comes for a stream.
    pub(crate) fn break_sink(
        &mut self,
        poll: &Poll,
        stream: Stream,
        carrier: Option<&mut Carrier>,
    ) {
        if let Some(sink) = &mut self.sinks[stream.index()] {
            if !sink.finished {
                sink.break_off(poll, Errno::PIPE);
            }
            sink.close(poll);
            if let Some(carrier) = carrier {
                sink.report((self.task, stream), carrier);
            }
        }
    }

    /// Whether every byte that was read here has been passed on at the other end.
    pub(crate) fn sources_are_done(&self) -> bool {
        self.sources.iter().flatten().all(Source::is_done)
    }

    /// Whether nothing more is read for a stream here.
    pub(crate) fn is_closed(&self, stream: Stream) -> bool {
        let source = self.sources[stream.index()].as_ref();
        source.is_some_and(|source| source.port.is_none())
    }

    /// Closes every descriptor.
    pub(crate) fn close(&mut self, poll: &Poll) {
        self.sources
            .iter_mut()
            .flatten()
            .for_each(|source| source.close(poll));
        self.sinks
            .iter_mut()
            .flatten()
            .for_each(|sink| sink.close(poll));
    }

    /// The tokens of its descriptors.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        let sources = self.sources.iter().flatten().map(|source| source.token);
        sources.chain(self.sinks.iter().flatten().map(|sink| sink.token))
    }
}
