//! As much of HTTP/1.1 (RFC 9112) as it takes to talk to the head's boot service.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// A server that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 8 << 10;
const CHUNK_BYTES: usize = 64 << 10;
/// The head's clock, in nanoseconds since the Epoch.
const TIME_HEADER: &str = "x-wiglaf-time";

/// Why there is no answer, or not the right one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The connection.
    #[error("http://{0}{1}: {2}")]
    Io(SocketAddrV4, String, #[source] io::Error),
    /// What came is no HTTP.
    #[error("http://{0}{1}: the answer makes no sense")]
    Broken(SocketAddrV4, String),
    /// The server does not want to.
    #[error("http://{0}{1}: refused with status {2}")]
    Status(SocketAddrV4, String, u16),
    /// It is larger than it can be.
    #[error("http://{0}{1}: larger than {2} bytes")]
    TooLarge(SocketAddrV4, String, u64),
}

/// The head's clock as an answer told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadTime {
    pub(super) unix_ns: u64,
    /// From our question to its answer.
    pub(super) trip: Duration,
}

/// Fetches a file into `sink`.
pub(crate) fn get(
    server: SocketAddrV4,
    path: &str,
    most_bytes: u64,
    sink: &mut dyn Write,
) -> Result<Option<HeadTime>, HttpError> {
    exchange(server, "GET", path, None, most_bytes, sink)
}

/// Posts a text.
pub(super) fn post(
    server: SocketAddrV4,
    path: &str,
    text: &str,
) -> Result<Option<HeadTime>, HttpError> {
    let mut answer = io::sink();
    exchange(server, "POST", path, Some(text), 1 << 16, &mut answer)
}

fn exchange(
    server: SocketAddrV4,
    method: &str,
    path: &str,
    body: Option<&str>,
    most_bytes: u64,
    sink: &mut dyn Write,
) -> Result<Option<HeadTime>, HttpError> {
    let failed = |error| HttpError::Io(server, path.to_owned(), error);
    let mut stream = TcpStream::connect_timeout(&server.into(), CONNECT_WAIT).map_err(failed)?;
    stream.set_read_timeout(Some(SILENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(SILENCE)).map_err(failed)?;
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    if let Some(body) = body {
        request += "Content-Type: text/plain; charset=utf-8\r\n";
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
    } else {
        request += "\r\n";
    }
    let asked = Instant::now();
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let (header, first) = read_header(&mut stream)
        .map_err(failed)?
        .ok_or_else(|| HttpError::Broken(server, path.to_owned()))?;
    let trip = asked.elapsed();
    let header =
        Header::parse(&header).ok_or_else(|| HttpError::Broken(server, path.to_owned()))?;
    if !(200..300).contains(&header.status) {
        return Err(HttpError::Status(server, path.to_owned(), header.status));
    }
    // A server that does not say ends by closing.
    const NO_CONTENT: u16 = 204;
    let unsaid = if header.status == NO_CONTENT {
        0
    } else {
        most_bytes
    };
    let length = header.length.unwrap_or(unsaid);
    if length > most_bytes {
        return Err(HttpError::TooLarge(server, path.to_owned(), most_bytes));
    }
    let mut body = io::Cursor::new(first).chain(stream).take(length);
    let mut got = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = body.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        got += u64::try_from(read).unwrap_or(u64::MAX);
        sink.write_all(&buffer[..read]).map_err(failed)?;
    }
    if header.length.is_some_and(|length| got < length) {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(header.unix_ns.map(|unix_ns| HeadTime { unix_ns, trip }))
}

/// The header, and what came after it.
fn read_header(stream: &mut impl Read) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            let rest = bytes.split_off(at + END.len());
            return Ok(Some((bytes, rest)));
        }
        if bytes.len() > MAX_HEADER_BYTES {
            return Ok(None);
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    status: u16,
    length: Option<u64>,
    unix_ns: Option<u64>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Header> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        if !words.next()?.starts_with("HTTP/1.") {
            return None;
        }
        let mut header = Header {
            status: words.next()?.parse().ok()?,
            length: None,
            unix_ns: None,
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                header.length = Some(value.parse().ok()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                // Our server never uses one.
                return None;
            } else if name.eq_ignore_ascii_case(TIME_HEADER) {
                header.unix_ns = value.parse().ok();
            }
        }
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    /// Answers one request with this, and gives back what was asked.
    fn server(answer: &'static [u8]) -> (SocketAddrV4, thread::JoinHandle<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let life = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).unwrap();
            stream.write_all(answer).unwrap();
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        });
        (SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), life)
    }

    #[test]
    fn a_file_and_the_heads_time_are_fetched() {
        let (address, life) = server(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Wiglaf-Time: 17\r\n\r\nhello and more",
        );
        let mut file = Vec::new();
        let time = get(address, "/script/x", 100, &mut file).unwrap().unwrap();
        assert_eq!((file.as_slice(), time.unix_ns), (&b"hello"[..], 17));
        assert!(
            life.join()
                .unwrap()
                .starts_with("GET /script/x HTTP/1.1\r\n")
        );
    }

    #[test]
    fn lines_are_posted() {
        let (address, life) = server(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(post(address, "/lines/m", "stage init\n").unwrap(), None);
        let request = life.join().unwrap();
        assert!(request.contains("Content-Length: 11\r\n") && request.ends_with("stage init\n"));
    }

    #[test]
    fn what_is_cut_short_too_large_or_refused_is_an_error() {
        let cases: [(&[u8], &str); 5] = [
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
                "unexpected end",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhello",
                "larger than",
            ),
            (
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
                "status 403",
            ),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "makes no sense"),
            (b"HTTP/1.1 200 OK\r\n", "makes no sense"),
        ];
        for (answer, expected) in cases {
            let (address, life) = server(answer);
            let error = get(address, "/", 100, &mut io::sink()).unwrap_err();
            let text = format!("{error}").to_lowercase();
            assert!(text.contains(expected), "{text}");
            life.join().unwrap();
        }
    }
}
