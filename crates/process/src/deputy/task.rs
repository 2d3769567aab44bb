//! The tasks of a deputy, with the user's descriptors.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use wiglaf_link::{Poll, Token};
use wiglaf_wire::deputy::FromDeputy;
use wiglaf_wire::id::{NodeId, TaskId};
use wiglaf_wire::launch::{StdioKind, WindowSize};
use wiglaf_wire::stream::{Relay, Stream};

use super::links::LinkId;
use super::{Deputy, Target};
use crate::relay::buffers::Buffers;
use crate::relay::carrier::Carrier;
use crate::relay::flow::FlowError;
use crate::relay::port::Port;
use crate::relay::streams::{AtEnd, Sink, Source, Streams};

/// Most sentences that wait to be written for one task; the head sends one.
const MAX_SENTENCES: usize = 16;

/// One task.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) node: NodeId,
    pub(super) streams: Streams,
    pub(super) has_terminal: bool,
    /// The link that its agent attached by.
    pub(super) link: Option<LinkId>,
    sentences: VecDeque<Sentence>,
    /// A write error has been told to the user.
    told_error: bool,
    /// Outputs that are regular files, which nodes may see by the view too.
    output_files: Vec<OutputFile>,
}

/// A file that a task's output goes to.
#[derive(Debug)]
struct OutputFile {
    stream: Stream,
    /// Open with `O_PATH`: the sink closes its own when it is done.
    path: OwnedFd,
    /// How much of the output the view knows of.
    noted: u64,
}

impl OutputFile {
    fn of(stream: Stream, fd: BorrowedFd<'_>) -> Option<OutputFile> {
        let mode = rustix::fs::fstat(fd).ok()?.st_mode;
        if !FileType::from_raw_mode(mode).is_file() {
            return None;
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        Some(OutputFile {
            stream,
            path,
            noted: 0,
        })
    }
}

/// Words of the cluster's that wait for the output before them.
#[derive(Debug)]
struct Sentence {
    words: Vec<u8>,
    /// How much of standard output and standard error has to be written first.
    after: [u64; 2],
    /// The head asked for it, and is told when it is done.
    for_head: bool,
}

impl Task {
    pub(super) fn is_speaking(&self) -> bool {
        !self.sentences.is_empty()
    }

    fn sink(&mut self, stream: Stream) -> Option<&mut Sink> {
        self.streams.sinks[stream.index()].as_mut()
    }

    fn add_sentence(&mut self, text: &str, for_head: bool) {
        if self.sentences.len() == MAX_SENTENCES {
            return;
        }
        let arrived = |sink: Option<&mut Sink>| sink.map_or(0, |sink| sink.received());
        let after = [
            arrived(self.sink(Stream::Output)),
            arrived(self.sink(Stream::Error)),
        ];
        let words = format!("wiglaf: {text}\n").into_bytes();
        self.sentences.push_back(Sentence {
            words,
            after,
            for_head,
        });
    }

    /// What the agent says of a stream.
    pub(super) fn take(
        &mut self,
        poll: &Poll,
        message: Relay,
        carrier: &mut Carrier,
        buffers: &mut Buffers,
    ) -> Result<(), FlowError> {
        match message {
            Relay::Passed { stream, offset, .. } => {
                self.streams
                    .passed(poll, (stream, offset), carrier, buffers)
            }
            Relay::End { stream, offset, .. } => {
                self.streams.ended(poll, (stream, offset), carrier)
            }
            Relay::Broken { stream, .. } => {
                self.streams.broken(poll, stream);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Starts to say what is due. Returns how many sentences of the head's are done.
    fn speak(&mut self, poll: &Poll) -> usize {
        let mut said = 0;
        while let Some(sentence) = self.sentences.front_mut() {
            let [_, output, error] = &mut self.streams.sinks;
            let [after_output, after_error] = sentence.after;
            let has_written = |sink: &Option<Sink>, after| {
                sink.as_ref().is_none_or(|sink| sink.has_written(after))
            };
            if !has_written(output, after_output) || !has_written(error, after_error) {
                break;
            }
            if let Some(sink) = error.as_mut().or(output.as_mut()) {
                if !sentence.words.is_empty() {
                    sink.speak(poll, &std::mem::take(&mut sentence.words));
                }
                if !sink.has_spoken() {
                    break;
                }
            }
            said += usize::from(sentence.for_head);
            self.sentences.pop_front();
        }
        said
    }

    /// The terminal's size, as the user sees it.
    pub(super) fn window(&self) -> Option<WindowSize> {
        let [input, output, error] = Stream::ALL.map(|stream| {
            let index = stream.index();
            let sink = self.streams.sinks[index]
                .as_ref()
                .and_then(Sink::descriptor);
            sink.or_else(|| {
                self.streams.sources[index]
                    .as_ref()
                    .and_then(Source::descriptor)
            })
        });
        let sizes = [output, error, input].into_iter().flatten();
        let size = sizes.filter_map(|fd| tcgetwinsize(fd).ok()).next()?;
        Some(WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    }
}

impl Deputy {
    /// The head says that a task runs on a node, and with which descriptors.
    pub(super) fn attach(
        &mut self,
        task: TaskId,
        node: NodeId,
        stdio: [StdioKind; 3],
        fds: [Option<OwnedFd>; 3],
    ) {
        if self
            .tasks
            .get(&task)
            .is_some_and(|entry| entry.node == node)
        {
            // A restarted head repeats itself.
            return;
        }
        self.detach(task);
        let mut streams = Streams::new(task);
        let [input, output, error] = fds;
        let tokens = &mut self.tokens;
        let output_files = [(Stream::Output, &output), (Stream::Error, &error)]
            .into_iter()
            .filter_map(|(stream, fd)| OutputFile::of(stream, fd.as_ref()?.as_fd()))
            .collect();
        let mut give = |stream| -> Token { tokens.give(|_| Target::Stream(task, stream)) };
        if let Some(fd) = input {
            let source = Source::new(Port::for_reading(fd), give(Stream::Input), false);
            streams.sources[Stream::Input.index()] = Some(source);
        }
        if let Some(fd) = output {
            let port = Port::for_writing(fd);
            // The cluster's words go there when there is no other stream for them.
            let at_end = if error.is_some() {
                AtEnd::Close
            } else {
                AtEnd::Keep
            };
            let sink = Sink::new(port, give(Stream::Output), at_end, false);
            streams.sinks[Stream::Output.index()] = Some(sink);
        }
        if let Some(fd) = error {
            let port = Port::for_writing(fd);
            let sink = Sink::new(port, give(Stream::Error), AtEnd::Keep, false);
            streams.sinks[Stream::Error.index()] = Some(sink);
        }
        let has_terminal = stdio.contains(&StdioKind::Terminal);
        let entry = Task {
            node,
            streams,
            has_terminal,
            link: None,
            sentences: VecDeque::new(),
            told_error: false,
            output_files,
        };
        self.tasks.insert(task, entry);
        self.bind_waiting(task);
    }

    pub(super) fn stream_ready(&mut self, task: TaskId, stream: Stream) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let link = entry.link;
        let carrier = link
            .and_then(|id| self.links.get_mut(&id))
            .map(|link| &mut link.carrier);
        entry
            .streams
            .ready(&self.poll, stream, carrier, &mut self.buffers);
        self.go_on(task);
        if let Some(link) = link {
            self.settle(link);
        }
    }

    /// Writes what the cluster has to say to the task's user.
    pub(super) fn say(&mut self, task: TaskId, text: &str) {
        match self.tasks.get_mut(&task) {
            Some(entry) => {
                entry.add_sentence(text, true);
                self.go_on(task);
            }
            None => self.tell_head(&FromDeputy::Said { task }),
        }
    }

    /// After something was written: tells of errors, and speaks when it is time.
    pub(super) fn go_on(&mut self, task: TaskId) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        if !entry.told_error
            && let Some(errno) = entry.sink(Stream::Output).and_then(|sink| sink.broken())
            && !matches!(errno, Errno::PIPE | Errno::CONNRESET | Errno::IO)
        {
            entry.told_error = true;
            let error = std::io::Error::from(errno);
            entry.add_sentence(&format!("standard output can't be written: {error}"), false);
        }
        if !entry.is_speaking() {
            return self.note_written(task, false);
        }
        let said = entry.speak(&self.poll);
        // Bytes that waited behind the words may have been written with them.
        if let Some(id) = entry.link
            && let Some(link) = self.links.get_mut(&id)
        {
            entry.streams.report(Stream::Error, &mut link.carrier);
            self.settle(id);
        }
        self.note_written(task, true);
        for _ in 0..said {
            self.tell_head(&FromDeputy::Said { task });
        }
    }

    /// The view is told of what went to files; `spoken`: words of the cluster's too, perhaps.
    fn note_written(&mut self, task: TaskId, spoken: bool) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        for file in &mut entry.output_files {
            let sink = entry.streams.sinks[file.stream.index()].as_ref();
            let written = sink.map_or(file.noted, Sink::written);
            if written != file.noted || (spoken && file.stream == Stream::Error) {
                file.noted = written;
                self.files.wrote(file.path.as_fd());
                self.has_written_files = true;
            }
        }
    }

    /// The user's terminal may have changed its size.
    pub(super) fn window_changed(&mut self, task: TaskId) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let (Some(window), Some(id)) = (entry.window(), entry.link) else {
            return;
        };
        if let Some(link) = self.links.get_mut(&id) {
            link.carrier.say(&Relay::Resize { task, window });
            self.settle(id);
        }
    }
}
