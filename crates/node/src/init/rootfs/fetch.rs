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
    let script = power::fetch_script(boot, home.mac)?;
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
    let another = || SystemError::Another {
        image: image.clone(),
    };
    match result {
        Err(HttpError::TooLarge(..)) => return Err(another()),
        result => result?,
    }
    let digest = sink.hash.finish();
    let digest: String = (digest.as_ref().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest != wanted.sha256 {
        return Err(another());
    }
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
