//! The system's file comes from the head. It is checked as it comes: what is mounted and executed
//! later is what the image was built with.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ring::digest::{Context, SHA256};
use rustix::io::Errno;

use super::{SystemError, Wanted, keep_address, step};
use crate::init::http::{self, HttpError};
use crate::init::journal::Journal;
use crate::init::network::{Home, Network};
use crate::init::now_ms;
use crate::init::power::{self, Next};
use crate::init::report::greet;

/// How often a long transfer tells how far it is.
const PROGRESS_MS: u64 = 5_000;

/// Fetches it to `path`, while the address is renewed.
pub(super) fn fetch(
    wanted: &Wanted,
    path: &Path,
    network: &mut Network,
    home: &mut Home,
    journal: &mut Journal,
) -> Result<File, SystemError> {
    let boot = home.boot.ok_or(SystemError::NoService)?;
    let script = power::fetch_script(boot, home.mac, None)?;
    // Whoever asks for a script counts as one that has just been switched on.
    greet(boot, home.mac)?;
    let next = Next::parse(&script).ok_or(SystemError::NoImage)?;
    let image = next.image().ok_or(SystemError::NoImage)?.to_owned();
    let url = format!("/image/{image}/system");
    journal.say(format_args!(
        "fetching the system of {image}, {}",
        megabytes(wanted.size)
    ));
    let keep = |error: io::Error| {
        step("keep the system in memory")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    let mut sink = Sink {
        file: File::create_new(path).map_err(keep)?,
        hash: Context::new(&SHA256),
        got: &AtomicU64::new(0),
    };
    let got = sink.got;
    let began = now_ms();
    let result = thread::scope(|scope| {
        // PID 1 must not wait for a server, or nobody would keep the machine's address.
        let worker = scope.spawn(|| transfer(boot, &url, wanted.size, &mut sink));
        while !worker.is_finished() {
            let until = now_ms() + PROGRESS_MS;
            keep_address(network, home, journal, until, &|| worker.is_finished());
            if !worker.is_finished() {
                let got = got.load(Ordering::Relaxed);
                let percent = got * 100 / wanted.size.max(1);
                journal.say(format_args!("the system: {} ({percent} %)", megabytes(got)));
            }
        }
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    check(wanted, &image, result, sink.hash)?;
    // A machine may join for some minutes after it was heard of; on a slow wire they are over.
    greet(home.boot.unwrap_or(boot), home.mac)?;
    let took = now_ms().saturating_sub(began);
    journal.say(format_args!(
        "the system is here after {}.{} s, and is what this image was built with",
        took / 1000,
        took / 100 % 10
    ));
    drop(sink.file);
    File::open(path).map_err(keep)
}

/// Whether what has come is what the image was built with.
fn check(
    wanted: &Wanted,
    image: &str,
    transfer: Result<(), HttpError>,
    hash: Context,
) -> Result<(), SystemError> {
    let another = || SystemError::Another {
        image: image.to_owned(),
    };
    match transfer {
        Err(HttpError::TooLarge(..)) => return Err(another()),
        result => result?,
    }
    let digest = hash.finish();
    let digest: String = (digest.as_ref().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest != wanted.sha256 {
        return Err(another());
    }
    Ok(())
}

fn transfer(
    boot: SocketAddrV4,
    url: &str,
    most_bytes: u64,
    sink: &mut Sink<'_>,
) -> Result<(), HttpError> {
    http::get(boot, url, most_bytes, sink).map(|_| ())
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

struct Sink<'a> {
    file: File,
    hash: Context,
    got: &'a AtomicU64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        let count = u64::try_from(written).unwrap_or(0);
        self.got.fetch_add(count, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};

    const SYSTEM: &[u8] = b"a full system";
    const IMAGE: &str = "default-0123456789ab";

    /// Fetches from a server that promises so many bytes, sends these, and is gone.
    fn fetch_from(promised: usize, body: &'static [u8]) -> Result<Vec<u8>, SystemError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /image/x/system "));
            let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {promised}\r\n\r\n");
            stream.write_all(header.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
        });
        let digest = ring::digest::digest(&SHA256, SYSTEM);
        let wanted = Wanted {
            sha256: (digest.as_ref().iter())
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            size: SYSTEM.len() as u64,
            init: None,
            has_tasks: false,
        };
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("system");
        let mut sink = Sink {
            file: File::create_new(&path).unwrap(),
            hash: Context::new(&SHA256),
            got: &AtomicU64::new(0),
        };
        let boot = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let result = transfer(boot, "/image/x/system", wanted.size, &mut sink);
        server.join().unwrap();
        check(&wanted, IMAGE, result, sink.hash)?;
        Ok(std::fs::read(&path).unwrap())
    }

    #[test]
    fn only_what_the_image_was_built_with_is_taken() {
        assert_eq!(fetch_from(SYSTEM.len(), SYSTEM).unwrap(), SYSTEM);
        let others: [&[u8]; 4] = [b"a fuul system", b"a full syste", b"", b"a full system!"];
        for other in others {
            let error = fetch_from(other.len(), other).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, SystemError::Another { .. }), "{text}");
            assert!(
                text.contains(IMAGE) && text.contains("wiglaf image build"),
                "{text}"
            );
        }
        // This one may be whole the next time.
        let error = fetch_from(SYSTEM.len(), b"a full").unwrap_err();
        assert!(matches!(error, SystemError::Fetch(_)), "{error}");
    }
}
