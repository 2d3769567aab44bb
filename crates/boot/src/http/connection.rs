//! One client's connection: bytes in, requests out, and what is left of an answer. The sockets
//! are elsewhere.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::request::{self, MAX_BODY_BYTES, MAX_HEAD_BYTES, Method, Refusal, Request};

/// A connection without a request is closed after this.
const IDLE_MS: u64 = 30_000;
/// A request must be there this long after its first byte, body and all.
const REQUEST_MS: u64 = 15_000;
/// A client that takes nothing of an answer for so long is cut off.
const STALL_MS: u64 = 60_000;
/// No answer takes longer: an image at 10 Mb/s with a hundred others takes less.
const ANSWER_MS: u64 = 60 * 60 * 1000;

/// What is sent after an answer's head.
#[derive(Debug)]
pub enum Body {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Of a file, which may have any number of readers.
    File {
        /// The file.
        file: Rc<OwnedFd>,
        /// Which parts of it, one after the other, are what was asked for.
        parts: Vec<Range<u64>>,
        /// Which bytes of these.
        part: Range<u64>,
    },
}

impl Body {
    /// Nothing.
    pub fn none() -> Body {
        Body::Bytes(Vec::new())
    }

    fn length(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { part, .. } => part.end.saturating_sub(part.start),
        }
    }
}

/// What a client is answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// What the body is.
    pub kind: &'static str,
    /// The body.
    pub body: Body,
}

impl Answer {
    /// A line of text.
    pub fn text(status: u16, text: &str) -> Answer {
        Answer {
            status,
            kind: "text/plain",
            body: Body::Bytes(format!("{text}\n").into_bytes()),
        }
    }
}

/// What is next to be sent.
#[derive(Debug)]
pub enum Next<'a> {
    /// Bytes, and whether a file's follow.
    Bytes(&'a [u8], bool),
    /// A part of a file.
    File(&'a OwnedFd, Range<u64>),
    /// Nothing: the answer is out, or there is none.
    Nothing,
}

/// The state of a connection.
#[derive(Debug)]
pub struct Connection {
    inbox: Vec<u8>,
    /// A request whose body has not arrived yet.
    pending: Option<Request>,
    answer: Option<Sending>,
    /// No request is read any more.
    closes: bool,
    /// When it was opened, or its last answer was out.
    idle_since_ms: u64,
    request_since_ms: Option<u64>,
}

#[derive(Debug)]
struct Sending {
    head: Vec<u8>,
    sent: usize,
    /// Never without a part, and none is empty.
    body: Option<(Rc<OwnedFd>, VecDeque<Range<u64>>)>,
    since_ms: u64,
    moved_ms: u64,
}

impl Connection {
    /// A new one.
    pub fn new(now_ms: u64) -> Connection {
        Connection {
            inbox: Vec::new(),
            pending: None,
            answer: None,
            closes: false,
            idle_since_ms: now_ms,
            request_since_ms: None,
        }
    }

    /// Whether more bytes are wanted: not while an answer is on its way, and never more than a
    /// request may have. What a client sends ahead waits in its own socket.
    pub fn wants_bytes(&self) -> bool {
        !self.closes && self.answer.is_none() && self.inbox.len() <= MAX_HEAD_BYTES + MAX_BODY_BYTES
    }

    /// Bytes came.
    pub fn received(&mut self, now_ms: u64, bytes: &[u8]) {
        self.request_since_ms.get_or_insert(now_ms);
        self.inbox.extend_from_slice(bytes);
    }

    /// The next request with its body, if it is there and the last one is answered.
    ///
    /// # Errors
    /// It is to be answered by this, and is the last.
    pub fn next_request(&mut self, now_ms: u64) -> Result<Option<(Request, Vec<u8>)>, Refusal> {
        if self.answer.is_some() || self.closes {
            return Ok(None);
        }
        let request = match self.pending.take() {
            Some(request) => request,
            None => {
                let parsed = request::parse(&self.inbox);
                match parsed.inspect_err(|_| self.closes = true)? {
                    Some((request, taken)) => {
                        self.inbox.drain(..taken);
                        request
                    }
                    None => return Ok(None),
                }
            }
        };
        if self.inbox.len() < request.body_bytes {
            if request.awaits_continue {
                self.start(now_ms, b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), None);
            }
            self.pending = Some(Request {
                awaits_continue: false,
                ..request
            });
            return Ok(None);
        }
        let body = self.inbox.drain(..request.body_bytes).collect();
        self.inbox.shrink_to(MAX_HEAD_BYTES);
        self.closes = !request.keeps;
        Ok(Some((request, body)))
    }

    /// Answers what [`Connection::next_request`] returned. `unix_ns` is the time of day.
    pub fn answer(&mut self, now_ms: u64, unix_ns: u128, method: Method, answer: Answer) {
        let reason = reason(answer.status);
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", answer.status);
        let _ = write!(
            head,
            "Server: Wiglaf\r\nX-Wiglaf-Time: {unix_ns}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
            answer.kind,
            answer.body.length(),
        );
        if let Body::File { part, parts, .. } = &answer.body {
            let whole = length_of(parts);
            head.push_str("Accept-Ranges: bytes\r\n");
            if answer.status == 206 {
                let (start, last) = (part.start, part.end.saturating_sub(1));
                let _ = write!(head, "Content-Range: bytes {start}-{last}/{whole}\r\n");
            } else if answer.status == 416 {
                let _ = write!(head, "Content-Range: bytes */{whole}\r\n");
            }
        }
        head.push_str(if self.closes {
            "Connection: close\r\n\r\n"
        } else {
            "Connection: keep-alive\r\n\r\n"
        });
        let mut head = head.into_bytes();
        let mut file = None;
        if method != Method::Head {
            match answer.body {
                Body::Bytes(bytes) => head.extend(bytes),
                Body::File {
                    file: from,
                    parts,
                    part,
                } => {
                    let parts = cut(&parts, &part);
                    file = (!parts.is_empty()).then_some((from, parts));
                }
            }
        }
        self.start(now_ms, head, file);
    }

    fn start(
        &mut self,
        now_ms: u64,
        head: Vec<u8>,
        body: Option<(Rc<OwnedFd>, VecDeque<Range<u64>>)>,
    ) {
        self.answer = Some(Sending {
            head,
            sent: 0,
            body,
            since_ms: now_ms,
            moved_ms: now_ms,
        });
    }

    /// What to send next.
    pub fn next(&self) -> Next<'_> {
        match &self.answer {
            Some(sending) if sending.sent < sending.head.len() => {
                Next::Bytes(&sending.head[sending.sent..], sending.body.is_some())
            }
            Some(Sending {
                body: Some((file, parts)),
                ..
            }) => match parts.front() {
                Some(part) => Next::File(file, part.clone()),
                None => Next::Nothing,
            },
            _ => Next::Nothing,
        }
    }

    /// The socket took so many bytes of what was next. Returns whether the answer is out.
    pub fn sent(&mut self, now_ms: u64, count: usize) -> bool {
        let Some(sending) = &mut self.answer else {
            return false;
        };
        sending.moved_ms = now_ms;
        if sending.sent < sending.head.len() {
            sending.sent += count;
        } else if let Some((_, parts)) = &mut sending.body {
            if let Some(part) = parts.front_mut() {
                part.start += count as u64;
                if part.start >= part.end {
                    parts.pop_front();
                }
            }
            if parts.is_empty() {
                sending.body = None;
            }
        }
        let is_out = sending.sent >= sending.head.len() && sending.body.is_none();
        if is_out {
            self.answer = None;
            self.idle_since_ms = now_ms;
            self.request_since_ms = if self.inbox.is_empty() && self.pending.is_none() {
                None
            } else {
                Some(now_ms)
            };
        }
        is_out
    }

    /// Whether there is something to send.
    pub fn is_sending(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether the last answer is out and no other follows.
    pub fn is_over(&self) -> bool {
        self.closes && self.answer.is_none()
    }

    /// Whether it has been waiting for a request; since when.
    pub fn idle_since(&self) -> Option<u64> {
        self.answer.is_none().then_some(self.idle_since_ms)
    }

    /// When it is cut off unless something happens.
    pub fn deadline_ms(&self) -> u64 {
        match (&self.answer, self.request_since_ms) {
            (Some(sending), _) => (sending.moved_ms + STALL_MS).min(sending.since_ms + ANSWER_MS),
            (None, Some(since_ms)) => since_ms + REQUEST_MS,
            (None, None) => self.idle_since_ms + IDLE_MS,
        }
    }
}

/// Bytes of all parts.
pub fn length_of(parts: &[Range<u64>]) -> u64 {
    parts.iter().map(|part| part.end - part.start).sum()
}

/// What is left of the parts if only these of their bytes are wanted.
fn cut(parts: &[Range<u64>], wanted: &Range<u64>) -> VecDeque<Range<u64>> {
    let mut before = 0;
    let mut left = VecDeque::new();
    for part in parts {
        let length = part.end - part.start;
        let from = wanted.start.saturating_sub(before).min(length);
        let to = wanted.end.saturating_sub(before).min(length);
        if from < to {
            left.push_back(part.start + from..part.start + to);
        }
        before += length;
    }
    left
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client gets, until the connection wants bytes again or is over.
    fn drain(connection: &mut Connection) -> String {
        let mut got = Vec::new();
        loop {
            let count = match connection.next() {
                Next::Bytes(bytes, _) => {
                    // A socket that takes little.
                    let part = &bytes[..bytes.len().min(7)];
                    got.extend_from_slice(part);
                    part.len()
                }
                Next::File(..) => panic!("no file here"),
                Next::Nothing => return String::from_utf8(got).unwrap(),
            };
            connection.sent(5, count);
        }
    }

    #[test]
    fn requests_are_answered_one_by_one() {
        let mut connection = Connection::new(0);
        connection.received(
            0,
            b"GET /a HTTP/1.1\r\n\r\nHEAD /b HTTP/1.1\r\nConnection: close\r\n\r\n",
        );
        let (request, _) = connection.next_request(0).unwrap().unwrap();
        assert_eq!(request.path, "/a");
        connection.answer(0, 17, request.method, Answer::text(200, "hello"));
        // The second waits, and nothing more is read.
        assert!(!connection.wants_bytes());
        assert_eq!(connection.next_request(0), Ok(None));
        let got = drain(&mut connection);
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        assert!(got.contains("\r\nX-Wiglaf-Time: 17\r\n"));
        assert!(got.contains("\r\nContent-Length: 6\r\n"));
        assert!(got.ends_with("keep-alive\r\n\r\nhello\n"));
        assert!(!connection.is_over());
        let (request, _) = connection.next_request(0).unwrap().unwrap();
        connection.answer(0, 18, request.method, Answer::text(404, "nothing"));
        let got = drain(&mut connection);
        assert!(
            got.ends_with("Content-Length: 8\r\nConnection: close\r\n\r\n"),
            "{got}"
        );
        assert!(connection.is_over());
    }

    #[test]
    fn files_are_sent_in_parts() {
        let parts = [10..20, 50..55, 90..100];
        let cut = |wanted| Vec::from(cut(&parts, &wanted));
        assert_eq!(length_of(&parts), 25);
        assert_eq!(cut(0..25), parts);
        assert_eq!(cut(12..16), [52..55, 90..91]);
        assert_eq!(cut(10..15), [parts[1].clone()]);
        assert_eq!(cut(24..30).first(), Some(&(99..100)));
        assert_eq!(cut(5..5), []);

        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let mut connection = Connection::new(0);
        let body = Body::File {
            file: Rc::new(file),
            parts: parts.to_vec(),
            part: 8..17,
        };
        let answer = Answer {
            status: 206,
            kind: "x",
            body,
        };
        connection.answer(0, 0, Method::Get, answer);
        let mut head = Vec::new();
        let mut sent = Vec::new();
        loop {
            let count = match connection.next() {
                Next::Bytes(bytes, has_more) => {
                    assert!(has_more);
                    head.extend_from_slice(bytes);
                    bytes.len()
                }
                Next::File(_, part) => {
                    sent.push(part.start);
                    1
                }
                Next::Nothing => panic!("there is more"),
            };
            if connection.sent(1, count) {
                break;
            }
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("\r\nContent-Length: 9\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Range: bytes 8-16/25\r\n"));
        assert_eq!(sent, [18, 19, 50, 51, 52, 53, 54, 90, 91]);
    }

    #[test]
    fn bodies_are_waited_for() {
        let mut connection = Connection::new(0);
        connection.received(
            0,
            b"POST /lines/x HTTP/1.1\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n",
        );
        assert_eq!(connection.next_request(0), Ok(None));
        assert_eq!(drain(&mut connection), "HTTP/1.1 100 Continue\r\n\r\n");
        connection.received(1, b"abc");
        assert_eq!(connection.next_request(1), Ok(None));
        assert!(connection.wants_bytes());
        connection.received(1, b"defGET");
        let (_, body) = connection.next_request(1).unwrap().unwrap();
        assert_eq!(body, b"abcdef");
    }

    #[test]
    fn a_refusal_is_the_last_answer() {
        let mut connection = Connection::new(0);
        connection.received(0, b"BREW /pot HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        let refusal = connection.next_request(0).unwrap_err();
        let answer = Answer::text(refusal.status(), &refusal.to_string());
        connection.answer(0, 0, Method::Get, answer);
        assert!(drain(&mut connection).contains("Connection: close"));
        assert!(connection.is_over());
        assert_eq!(connection.next_request(0), Ok(None));
    }

    #[test]
    fn slow_clients_have_deadlines() {
        let mut connection = Connection::new(1000);
        assert_eq!(connection.deadline_ms(), 1000 + IDLE_MS);
        connection.received(2000, b"GET / HT");
        connection.received(9000, b"T");
        // A byte now and then wins no time.
        assert_eq!(connection.deadline_ms(), 2000 + REQUEST_MS);
        connection.received(9000, b"P/1.1\r\n\r\n");
        let (request, _) = connection.next_request(9000).unwrap().unwrap();
        connection.answer(9000, 0, request.method, Answer::text(200, "x"));
        assert_eq!(connection.deadline_ms(), 9000 + STALL_MS);
        connection.sent(20_000, 1);
        assert_eq!(connection.deadline_ms(), 20_000 + STALL_MS);
        connection.sent(9000 + ANSWER_MS, 1);
        assert_eq!(connection.deadline_ms(), 9000 + ANSWER_MS);
    }
}
