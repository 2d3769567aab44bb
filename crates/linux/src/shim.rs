//! The shim program (`shim/` beside `src/`), and what it and the broker tell each other.
//!
//! A shim stands in the place of a shell or a compiler (see [`crate::shimmed`]). It connects to
//! the broker's socket (`SOCK_SEQPACKET`, one message a packet), passes the standard descriptors
//! that it has, and does as the broker's [`Verdict`] says. It never changes its arguments,
//! environment, umask, limits or signal actions, and inherited descriptors stay as they are, so
//! that `/proc/PID` tells the broker all about the command.
//!
//! | packet | from | meaning |
//! |---|---|---|
//! | `C`, 1, mask, number (`u32`, little end first), with descriptors | shim | a command: which of 0, 1 and 2 are open and come along; the number of this socket in the shim, which the command does not have |
//! | `S`, signal, 1 if by the kernel | shim | somebody sent it HUP, INT, QUIT, USR1, USR2 or TERM while it waits |
//! | `L`, perhaps with a descriptor | broker | execute the real program, by this descriptor |
//! | `W` | broker | wait |
//! | `X`, code | broker | exit |
//! | `K`, signal | broker | die of it |
//!
//! At end of file a shim executes the real program: a build outlives its broker.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest path that a build's directory can have, so that a socket's address holds it.
pub const MAX_DIRECTORY: usize = 100;

/// The program: a static ELF for this architecture that does not know its broker yet.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim"));
/// What the places to fill in lie behind (`shim/calls.rs`).
const MARK: &[u8] = b"wiglaf-shim-for:";
/// `struct sockaddr_un`.
const ADDRESS_BYTES: usize = 110;
const REAL_BYTES: usize = 130;
const SOCKET: &str = "socket";
/// Below the build's directory, inside the private space only: the real programs.
pub(crate) const REAL: &str = "space/real";

const VERSION: u8 = 1;
/// The longest packet is that of a call.
const MAX_PACKET: usize = 16;
const STDIO: usize = 3;
/// How many shims may have connected and not been taken; the next one waits.
const BACKLOG: i32 = 4096;

/// Why there is no shim for a directory.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("{} can't be the directory of a build: its path {reason}", directory.display())]
pub struct BadDirectory {
    /// The directory.
    pub directory: PathBuf,
    reason: &'static str,
}

/// The shim whose broker listens at [`socket_in`] this directory.
///
/// # Errors
/// The path is not absolute, holds a zero, or is longer than [`MAX_DIRECTORY`].
pub fn shim_for(directory: &Path) -> Result<Vec<u8>, BadDirectory> {
    let bytes = directory.as_os_str().as_bytes();
    let bad = |reason| {
        Err(BadDirectory {
            directory: directory.to_owned(),
            reason,
        })
    };
    if !bytes.starts_with(b"/") {
        return bad("is not absolute");
    }
    if bytes.contains(&0) {
        return bad("holds a zero");
    }
    if bytes.len() > MAX_DIRECTORY {
        return bad("is too long");
    }
    let family = u16::try_from(libc::AF_UNIX).unwrap_or(0).to_ne_bytes();
    let socket = socket_in(directory);
    let real = directory.join(REAL);
    let mut place = vec![0; ADDRESS_BYTES + REAL_BYTES];
    put(&mut place, 0, &family);
    put(&mut place, family.len(), socket.as_os_str().as_bytes());
    put(&mut place, ADDRESS_BYTES, real.as_os_str().as_bytes());
    let mut shim = SHIM.to_vec();
    let mark = shim.windows(MARK.len()).position(|window| window == MARK);
    // A test sees that there is one.
    let at = mark.map_or(shim.len(), |mark| mark + MARK.len());
    put(&mut shim, at, &place);
    Ok(shim)
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = to.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// Where the shims for this directory seek their broker.
#[must_use]
pub fn socket_in(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// The broker's socket for the shims of this directory, non-blocking, for our user alone: what
/// runs as somebody else is executed here.
///
/// # Errors
/// As `bind`.
pub fn listen(directory: &Path) -> Result<OwnedFd, Errno> {
    use rustix::net::{bind, listen, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let path = socket_in(directory);
    bind(&socket, &SocketAddrUnix::new(&path)?)?;
    rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// What a shim says.
#[derive(Debug)]
pub enum FromShim {
    /// First of all.
    Call(ShimCall),
    /// A signal that it would have got as the command.
    Signal {
        /// Its number.
        signal: u8,
        /// The kernel sent it: a key of the terminal, which the whole group heard.
        by_kernel: bool,
    },
}

/// A command that a shim stands for; the rest of it is in `/proc`.
#[derive(Debug)]
pub struct ShimCall {
    /// Its standard descriptors; `None` where it has none.
    pub stdio: [Option<OwnedFd>; STDIO],
    /// The one descriptor in the shim that is not the command's.
    pub socket: RawFd,
}

/// Why a shim is not understood.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShimError {
    /// The connection is broken.
    #[error("can't read from a shim: {0}")]
    Socket(#[from] Errno),
    /// No shim of ours sent it.
    #[error("a shim sent a packet that has no meaning")]
    Packet,
}

/// The next packet of a shim; `None` when it is gone.
///
/// # Errors
/// [`ShimError`]; with `EAGAIN` there is none yet.
pub fn receive(socket: impl AsFd) -> Result<Option<FromShim>, ShimError> {
    let mut packet = [0_u8; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STDIO))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut packet)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    });
    let received = match received {
        // It was killed before it read its verdict.
        Err(Errno::CONNRESET) => return Ok(None),
        result => result?,
    };
    let mut fds = Vec::with_capacity(STDIO);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    match packet.get(..received.bytes) {
        None | Some([]) => Ok(None),
        Some(packet) => decode(packet, fds).map(Some).ok_or(ShimError::Packet),
    }
}

fn decode(packet: &[u8], fds: Vec<OwnedFd>) -> Option<FromShim> {
    match *packet {
        [b'C', VERSION, mask, n0, n1, n2, n3] => {
            let mut fds = fds.into_iter();
            let mut stdio = [const { None }; STDIO];
            for (place, stdio) in stdio.iter_mut().enumerate() {
                if mask & 1 << place != 0 {
                    *stdio = Some(fds.next()?);
                }
            }
            let socket = RawFd::from_le_bytes([n0, n1, n2, n3]);
            (mask < 1 << STDIO && fds.next().is_none() && socket >= 0)
                .then_some(FromShim::Call(ShimCall { stdio, socket }))
        }
        [b'S', signal @ 1..=64, by_kernel @ 0..=1] if fds.is_empty() => Some(FromShim::Signal {
            signal,
            by_kernel: by_kernel == 1,
        }),
        _ => None,
    }
}

/// What a shim is to do.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// Execute the real program, by this descriptor ([`open_real`]) if there is one: then
    /// `/proc/self/exe` is the program's own path and not one in the build's directory. Also
    /// after [`Verdict::Wait`]; a signal that was passed on is not delivered again.
    Here(Option<BorrowedFd<'a>>),
    /// Stay, and pass signals on.
    Wait,
    /// Exit with this code.
    Exit(u8),
    /// Die of this signal, without a core file; if it does not kill, exit with 128 + signal.
    Signal(u8),
}

impl Verdict<'_> {
    /// The packet without the descriptor.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Verdict::Here(_) => vec![b'L'],
            Verdict::Wait => vec![b'W'],
            Verdict::Exit(code) => vec![b'X', code],
            Verdict::Signal(signal) => vec![b'K', signal],
        }
    }
}

/// Tells a shim what to do.
///
/// # Errors
/// It is gone (`EPIPE`, `ECONNRESET`).
pub fn answer(socket: impl AsFd, verdict: Verdict<'_>) -> Result<(), Errno> {
    let packet = verdict.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let program = match verdict {
        Verdict::Here(Some(program)) => Some([program]),
        _ => None,
    };
    if let Some(program) = &program {
        ancillary.push(SendAncillaryMessage::ScmRights(program));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(&packet)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// The real program that a shim stands for, for [`Verdict::Here`]. `path` is the shim's
/// `/proc/PID/exe`; the caller is outside the private space.
///
/// # Errors
/// As `open`.
pub fn open_real(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// With its directory it has to fit a page of memory.
    const MAX_BYTES: usize = 4096;

    #[test]
    fn the_shim_is_a_small_static_program_with_one_place_to_fill_in() {
        assert_eq!(&SHIM[..4], b"\x7fELF");
        assert!(SHIM.len() <= MAX_BYTES, "{} bytes", SHIM.len());
        let marks = SHIM.windows(MARK.len()).filter(|window| *window == MARK);
        assert_eq!(marks.count(), 1);
        let at = SHIM.windows(MARK.len()).position(|window| window == MARK);
        let place = &SHIM[at.expect("a mark") + MARK.len()..][..ADDRESS_BYTES + REAL_BYTES];
        assert!(place.iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn a_shim_knows_its_directory() {
        let longest = format!("/{}", "x".repeat(MAX_DIRECTORY - 1));
        for directory in ["/run/wiglaf-build-1", &longest] {
            let shim = shim_for(Path::new(directory)).expect("a directory");
            assert_eq!(shim.len(), SHIM.len());
            for text in ["/socket\0", "/space/real\0"] {
                let text = format!("{directory}{text}");
                let found = shim
                    .windows(text.len())
                    .filter(|window| *window == text.as_bytes());
                assert_eq!(found.count(), 1, "{text}");
            }
        }
        for bad in ["", "run", "/a\0b", &format!("{longest}x")] {
            let error = shim_for(Path::new(bad)).expect_err("no directory");
            assert!(error.to_string().contains("can't be the directory"));
        }
    }

    #[test]
    fn verdicts_are_packets() {
        assert_eq!(Verdict::Here(None).encode(), b"L");
        assert_eq!(Verdict::Wait.encode(), b"W");
        assert_eq!(Verdict::Exit(7).encode(), b"X\x07");
        assert_eq!(Verdict::Signal(15).encode(), b"K\x0f");
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null")
            .expect("a descriptor")
            .into()
    }

    #[test]
    fn a_call_brings_the_descriptors_that_are_open() {
        let packet = [b'C', 1, 0b110, 0, 1, 0, 0];
        let Some(FromShim::Call(call)) = decode(&packet, vec![null(), null()]) else {
            panic!("a call");
        };
        assert_eq!(call.socket, 256);
        assert_eq!(call.stdio.map(|fd| fd.is_some()), [false, true, true]);
        assert!(decode(&packet, vec![null()]).is_none(), "one is missing");
        let many = vec![null(), null(), null()];
        assert!(decode(&packet, many).is_none(), "one too many");
        let signal = decode(b"S\x0f\x01", Vec::new());
        assert!(matches!(
            signal,
            Some(FromShim::Signal {
                signal: 15,
                by_kernel: true
            })
        ));
    }

    proptest! {
        #[test]
        fn any_packet_is_understood_or_not(packet: Vec<u8>, fds in 0..4_usize) {
            let fds = (0..fds).map(|_| null()).collect();
            if let Some(FromShim::Signal { signal, .. }) = decode(&packet, fds) {
                prop_assert!((1..=64).contains(&signal));
            }
        }
    }
}
