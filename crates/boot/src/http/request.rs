//! What a client asks (RFC 9112), as far as boot ROMs, init and curl need it.

/// Most bytes of a request before its body (S1).
pub const MAX_HEAD_BYTES: usize = 8 << 10;
/// Most bytes of a body.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// Most header fields.
const MAX_FIELDS: usize = 64;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Send it.
    Get,
    /// Send all but the body.
    Head,
    /// Take the body.
    Post,
}

/// A part of a file, as asked for (RFC 9110, section 14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// From a byte to a byte, the last one included, or to the end.
    From(u64, Option<u64>),
    /// This many at the end.
    Last(u64),
}

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub method: Method,
    /// Of what: the path, without a query, never decoded: no name here needs that.
    pub path: String,
    /// What came after `?`.
    pub query: String,
    /// Only a part.
    pub range: Option<Range>,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// The connection stays.
    pub keeps: bool,
    /// It sends its body only when told to go on.
    pub awaits_continue: bool,
}

/// Why a request is refused; the connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no HTTP.
    #[error("bad request")]
    Bad,
    /// Its head is longer than [`MAX_HEAD_BYTES`].
    #[error("too many header bytes")]
    LongHead,
    /// Its body is longer than [`MAX_BODY_BYTES`].
    #[error("the body is too long")]
    LongBody,
    /// A method that is not here.
    #[error("only GET, HEAD and POST")]
    Method,
    /// A body without a length, or in parts.
    #[error("a body must say its length")]
    Length,
    /// HTTP/2 or so.
    #[error("only HTTP/1")]
    Version,
}

impl Refusal {
    /// The status that says so.
    pub fn status(self) -> u16 {
        match self {
            Refusal::Bad => 400,
            Refusal::LongHead => 431,
            Refusal::LongBody => 413,
            Refusal::Method => 501,
            Refusal::Length => 411,
            Refusal::Version => 505,
        }
    }
}

/// Reads a request, and says how many bytes it took. `None`: more bytes are needed.
///
/// # Errors
/// It is none, or one that is not served.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    // Lines between requests are to be skipped (RFC 9112, section 2.2).
    let skipped = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let Some(end) = head_end(&bytes[skipped..]) else {
        if bytes.len() > MAX_HEAD_BYTES {
            return Err(Refusal::LongHead);
        }
        return Ok(None);
    };
    if skipped + end > MAX_HEAD_BYTES {
        return Err(Refusal::LongHead);
    }
    let head = std::str::from_utf8(&bytes[skipped..skipped + end]).map_err(|_| Refusal::Bad)?;
    parse_head(head).map(|request| Some((request, skipped + end)))
}

/// Where the empty line ends; bare line feeds count as lines' ends, too.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    loop {
        let length = bytes[start..].iter().position(|byte| *byte == b'\n')?;
        let line = &bytes[start..start + length];
        start += length + 1;
        if line.is_empty() || line == b"\r" {
            return Some(start);
        }
    }
}

fn parse_head(head: &str) -> Result<Request, Refusal> {
    let mut lines = head
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line));
    let mut words = lines.next().ok_or(Refusal::Bad)?.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Bad);
    };
    let keeps = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        other if other.starts_with("HTTP/") => return Err(Refusal::Version),
        _ => return Err(Refusal::Bad),
    };
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        _ => return Err(Refusal::Method),
    };
    let target = path_of(target).ok_or(Refusal::Bad)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        range: None,
        body_bytes: 0,
        keeps,
        awaits_continue: false,
    };
    let mut length = None;
    for (index, line) in lines.take_while(|line| !line.is_empty()).enumerate() {
        if index == MAX_FIELDS {
            return Err(Refusal::LongHead);
        }
        let (name, value) = line.split_once(':').ok_or(Refusal::Bad)?;
        if name.is_empty() || name.contains([' ', '\t']) {
            return Err(Refusal::Bad);
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let said: u64 = digits(value).ok_or(Refusal::Bad)?;
                // Two lengths are how requests are smuggled.
                if length.replace(said).is_some_and(|before| before != said) {
                    return Err(Refusal::Bad);
                }
            }
            "transfer-encoding" => return Err(Refusal::Length),
            "connection" => {
                let says = |word: &str| {
                    let mut options = value.split(',').map(str::trim);
                    options.any(|option| option.eq_ignore_ascii_case(word))
                };
                request.keeps = !says("close") && (request.keeps || says("keep-alive"));
            }
            "range" => request.range = parse_range(value),
            "expect" => {
                request.awaits_continue = value.eq_ignore_ascii_case("100-continue");
            }
            _ => {}
        }
    }
    let length = match (method, length) {
        (Method::Post, None) => return Err(Refusal::Length),
        (_, length) => length.unwrap_or(0),
    };
    request.body_bytes = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_BODY_BYTES)
        .ok_or(Refusal::LongBody)?;
    Ok(request)
}

/// Proxies' clients write whole URLs.
fn path_of(target: &str) -> Option<&str> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    (path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())).then_some(path)
}

/// A single range; others are ignored, as any server may (RFC 9110, section 14.2).
fn parse_range(value: &str) -> Option<Range> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    match (start, end) {
        ("", last) => digits(last).map(Range::Last),
        (start, "") => digits(start).map(|start| Range::From(start, None)),
        (start, end) => {
            let (start, end) = (digits(start)?, digits(end)?);
            (start <= end).then_some(Range::From(start, Some(end)))
        }
    }
}

fn digits(text: &str) -> Option<u64> {
    let only_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    only_digits.then(|| text.parse().ok()).flatten()
}

impl Range {
    /// The bytes that it means of so many; `None`: none.
    pub fn of(self, length: u64) -> Option<std::ops::Range<u64>> {
        let range = match self {
            Range::From(start, None) => start..length,
            Range::From(start, Some(end)) => start..end.saturating_add(1).min(length),
            Range::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<Request>, Refusal> {
        parse(text.as_bytes()).map(|found| found.map(|(request, _)| request))
    }

    #[test]
    fn requests_of_real_clients() {
        // iPXE of 2019.
        let text = "GET /script/52:54:00:12:34:56 HTTP/1.1\r\nConnection: keep-alive\r\n\
                    User-Agent: iPXE/1.0.0+git-20190125.36a4c85-5.1\r\nHost: 10.9.0.1:8069\r\n\r\n";
        let request = read(text).unwrap().unwrap();
        assert_eq!(request.method, Method::Get);
        assert_eq!(request.path, "/script/52:54:00:12:34:56");
        assert!(request.keeps && request.range.is_none() && request.body_bytes == 0);
        // OVMF asks for the size first.
        let request = read("HEAD /loader/snponly.efi HTTP/1.1\r\nHost: 10.9.0.1\r\n\r\n");
        assert_eq!(request.unwrap().unwrap().method, Method::Head);
        let text =
            "POST /lines/x HTTP/1.0\nContent-Length: 12\nExpect: 100-Continue\n\nstage init\n";
        let request = read(text).unwrap().unwrap();
        assert_eq!((request.method, request.body_bytes), (Method::Post, 12));
        assert!(!request.keeps && request.awaits_continue);
        let request = read("GET http://h:1/a?b=c HTTP/1.1\r\nConnection: x, Close\r\n\r\n");
        let request = request.unwrap().unwrap();
        assert_eq!(
            (request.path.as_str(), request.query.as_str()),
            ("/a", "b=c")
        );
        assert!(!request.keeps);
    }

    #[test]
    fn requests_in_pieces_and_in_rows() {
        let one = b"GET /a HTTP/1.1\r\n\r\n".as_slice();
        for end in 0..one.len() {
            assert_eq!(parse(&one[..end]), Ok(None));
        }
        let row = [one, b"\r\nGET /b HTTP/1.1\r\n\r\n"].concat();
        let (_, taken) = parse(&row).unwrap().unwrap();
        assert_eq!(taken, one.len());
        let (second, rest) = parse(&row[taken..]).unwrap().unwrap();
        assert_eq!((second.path.as_str(), taken + rest), ("/b", row.len()));
    }

    #[test]
    fn what_is_not_served() {
        for (text, refusal) in [
            ("GET /a\r\n\r\n", Refusal::Bad),
            ("GET  /a HTTP/1.1\r\n\r\n", Refusal::Bad),
            ("GET a HTTP/1.1\r\n\r\n", Refusal::Bad),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", Refusal::Bad),
            ("GET /a HTTP/1.1\r\nno colon\r\n\r\n", Refusal::Bad),
            ("GET /a HTTP/1.1\r\nHost : a\r\n\r\n", Refusal::Bad),
            ("GET /a HTTP/2\r\n\r\n", Refusal::Version),
            ("DELETE /a HTTP/1.1\r\n\r\n", Refusal::Method),
            ("POST /a HTTP/1.1\r\n\r\n", Refusal::Length),
            (
                "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Refusal::Length,
            ),
            (
                "POST /a HTTP/1.1\r\nContent-Length: 65537\r\n\r\n",
                Refusal::LongBody,
            ),
            (
                "POST /a HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
                Refusal::Bad,
            ),
            (
                "POST /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                Refusal::Bad,
            ),
        ] {
            assert_eq!(read(text), Err(refusal), "{text}");
        }
        let long = format!("GET /a HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD_BYTES));
        assert_eq!(read(&long), Err(Refusal::LongHead));
        let many = format!("GET /a HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(read(&many), Err(Refusal::LongHead));
    }

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes=0-499").unwrap().of(1000), Some(0..500));
        assert_eq!(parse_range("bytes=500-").unwrap().of(1000), Some(500..1000));
        assert_eq!(parse_range("bytes=-300").unwrap().of(1000), Some(700..1000));
        assert_eq!(parse_range("bytes=-3000").unwrap().of(1000), Some(0..1000));
        assert_eq!(
            parse_range("bytes=9-18446744073709551615").unwrap().of(10),
            Some(9..10)
        );
        assert_eq!(parse_range("bytes=1000-").unwrap().of(1000), None);
        assert_eq!(parse_range("bytes=-0").unwrap().of(1000), None);
        assert_eq!(parse_range("bytes=0-").unwrap().of(0), None);
        for text in ["bytes=5-4", "bytes=a-b", "bytes=", "bytes=1-2,4-5", "x=0-1"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
            let _ = parse(&bytes);
            let _ = parse(format!("{text}\r\n\r\n").as_bytes());
            let _ = parse(format!("GET /{text} HTTP/1.1\r\n{text}:{text}\r\n\r\n").as_bytes());
            let _ = parse(format!("GET / HTTP/1.1\r\nRange: bytes={text}\r\n\r\n").as_bytes());
        }
    }
}
