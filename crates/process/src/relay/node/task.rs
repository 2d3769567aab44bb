//! A task's streams on its node.

use std::os::fd::OwnedFd;

use wiglaf_link::{Poll, Token};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::stream::Stream;

use super::super::streams::Streams;
use super::RelayEvent;

#[derive(Debug)]
pub(super) struct Task {
    pub(super) deputy: DeputyId,
    pub(super) streams: Streams,
    /// The terminal's other side, to set its size.
    pub(super) terminal: Option<OwnedFd>,
    /// The stream that its output goes by.
    pub(super) terminal_output: Option<Stream>,
    /// A terminal whose output nobody wants is read all the same, or its programs would block.
    pub(super) discard: Option<(OwnedFd, Token)>,
    pub(super) main_ended: bool,
    /// [`RelayEvent::Drained`] or [`RelayEvent::Lost`] is told.
    pub(super) settled: bool,
}

impl Task {
    /// The deputy takes no more of an output: the program gets its SIGPIPE, or hang-up.
    pub(super) fn broken(&mut self, poll: &Poll, stream: Stream) {
        self.streams.broken(poll, stream);
        if self.terminal_output == Some(stream) {
            self.streams.break_sink(poll, Stream::Input, None);
            self.terminal = None;
        }
    }

    pub(super) fn lose(&mut self, poll: &Poll, reason: &str, events: &mut Vec<RelayEvent>) {
        self.streams.close(poll);
        if !self.settled {
            self.settled = true;
            events.push(RelayEvent::Lost(self.streams.task, reason.to_owned()));
        }
    }
}
