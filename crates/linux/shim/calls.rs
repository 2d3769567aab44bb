//! The system calls that only the shim needs.

use crate::sys::{EINTR, SET_BYTES, arch, read, syscall5};
use crate::{Command, STDIO};
use core::mem::MaybeUninit;

const AF_UNIX: usize = 1;
const SOCK_SEQPACKET: usize = 5;
const SOCK_CLOEXEC: usize = 0o2_000_000;
const MSG_NOSIGNAL: usize = 0x4000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const F_GETFD: usize = 1;
const AT_FDCWD: usize = -100_isize as usize;
const AT_EMPTY_PATH: usize = 0x1000;
const O_PATH_CLOEXEC: usize = 0o10_000_000 | 0o2_000_000;
const SFD_CLOEXEC_NONBLOCK: usize = 0o2_000_000 | 0o4_000;
const PR_SET_DUMPABLE: usize = 4;
const SI_KERNEL: i32 = 0x80;
/// `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// `struct signalfd_siginfo`, in words.
const SIGNAL_WORDS: usize = 32;
const HEADER_BYTES: usize = 16;

/// What `shim_for` in `src/shim.rs` fills in, where it finds the mark.
#[repr(C)]
pub(crate) struct Place {
    mark: [u8; 16],
    address: [u8; ADDRESS_BYTES],
    real: [u8; REAL_BYTES],
}

/// `struct sockaddr_un`.
const ADDRESS_BYTES: usize = 110;
const REAL_BYTES: usize = 130;

impl Place {
    pub(crate) const MARKED: Place = Place {
        mark: *b"wiglaf-shim-for:",
        address: [0xff; ADDRESS_BYTES],
        real: [0xff; REAL_BYTES],
    };
}

/// `struct msghdr`.
#[repr(C)]
struct Message {
    name: usize,
    name_bytes: usize,
    parts: usize,
    part_count: usize,
    control: usize,
    control_bytes: usize,
    flags: usize,
}

/// `struct cmsghdr` with descriptors behind it.
#[repr(C)]
struct Control {
    bytes: usize,
    level: u32,
    kind: u32,
    fds: [u32; STDIO],
    padding: u32,
}

pub(crate) fn socket() -> Option<usize> {
    let kind = SOCK_SEQPACKET | SOCK_CLOEXEC;
    // SAFETY: no pointer is passed.
    let socket = unsafe { syscall5(arch::SOCKET, AF_UNIX, kind, 0, 0, 0) };
    (socket >= 0).then_some(socket as usize)
}

/// Waits while the broker has many callers to take.
pub(crate) fn connect(socket: usize, place: &'static Place) -> bool {
    let address = &raw const place.address as usize;
    loop {
        // SAFETY: an address of this length, which ends with a zero.
        let result = unsafe { syscall5(arch::CONNECT, socket, address, ADDRESS_BYTES, 0, 0) };
        if result != -EINTR {
            return result == 0;
        }
    }
}

pub(crate) fn is_open(fd: usize) -> bool {
    // SAFETY: no pointer is passed.
    unsafe { syscall5(arch::FCNTL, fd, F_GETFD, 0, 0, 0) >= 0 }
}

/// Sends one packet with the first `count` of the descriptors.
#[inline(never)]
pub(crate) fn send(socket: usize, packet: &[u8], fds: &[u32; STDIO], count: usize) -> bool {
    let part = [packet.as_ptr() as usize, packet.len()];
    let control = Control {
        bytes: HEADER_BYTES + count * 4,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: *fds,
        padding: 0,
    };
    let message = Message {
        name: 0,
        name_bytes: 0,
        parts: &raw const part as usize,
        part_count: 1,
        control: &raw const control as usize,
        control_bytes: if count == 0 {
            0
        } else {
            (HEADER_BYTES + count * 4).next_multiple_of(8)
        },
        flags: 0,
    };
    let address = &raw const message as usize;
    loop {
        // SAFETY: the message points to locals of the sizes said.
        let result = unsafe { syscall5(arch::SENDMSG, socket, address, MSG_NOSIGNAL, 0, 0) };
        if result != -EINTR {
            return result >= 0;
        }
    }
}

/// A verdict; `what` is 0 at the end of the connection.
pub(crate) struct Received {
    pub(crate) what: u8,
    pub(crate) number: u8,
    pub(crate) program: Option<usize>,
}

#[inline(never)]
pub(crate) fn receive(socket: usize) -> Received {
    let mut packet = [0_u8; 2];
    let mut control = Control {
        bytes: 0,
        level: 0,
        kind: 0,
        fds: [0; STDIO],
        padding: 0,
    };
    let part = [&raw mut packet as usize, packet.len()];
    let mut message = Message {
        name: 0,
        name_bytes: 0,
        parts: &raw const part as usize,
        part_count: 1,
        control: &raw mut control as usize,
        control_bytes: size_of::<Control>(),
        flags: 0,
    };
    let address = &raw mut message as usize;
    let result = loop {
        // SAFETY: the message points to locals of the sizes said.
        let result = unsafe { syscall5(arch::RECVMSG, socket, address, MSG_CMSG_CLOEXEC, 0, 0) };
        if result != -EINTR {
            break result;
        }
    };
    // SAFETY: locals that the kernel may have written.
    let (packet, control) = unsafe {
        (
            (&raw const packet).read_volatile(),
            (&raw const control).read_volatile(),
        )
    };
    let [what, number] = packet;
    Received {
        what: if result > 0 { what } else { 0 },
        number,
        program: (control.bytes >= HEADER_BYTES + 4 && control.kind == SCM_RIGHTS)
            .then_some(control.fds[0] as usize),
    }
}

/// A descriptor to read these signals from, or an error that `poll` leaves out as it is.
pub(crate) fn signals(set: u64) -> isize {
    let address = &raw const set as usize;
    // SAFETY: the set has the size said.
    unsafe {
        syscall5(
            arch::SIGNALFD,
            usize::MAX,
            address,
            SET_BYTES,
            SFD_CLOEXEC_NONBLOCK,
            0,
        )
    }
}

/// The next signal, and whether the kernel sent it (a key of the terminal).
#[inline(never)]
pub(crate) fn next_signal(from: usize) -> Option<(u8, bool)> {
    let mut info = MaybeUninit::<[i32; SIGNAL_WORDS]>::uninit();
    let words: *mut i32 = info.as_mut_ptr().cast();
    if read(from, words.cast(), SIGNAL_WORDS * 4) <= 0 {
        return None;
    }
    // SAFETY: the kernel wrote a whole struct: number, errno, code.
    unsafe { Some((*words as u8, *words.add(2) == SI_KERNEL)) }
}

pub(crate) fn never_dump() {
    // SAFETY: no pointer is passed.
    unsafe { syscall5(arch::PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Returns only if that failed.
pub(crate) fn execute(directory: usize, path: usize, command: &Command, empty: bool) -> isize {
    let flags = if empty { AT_EMPTY_PATH } else { 0 };
    let (argv, environment) = (command.argv, command.environment);
    // SAFETY: a C string, and the arrays that the kernel gave us.
    unsafe { syscall5(arch::EXECVEAT, directory, path, argv, environment, flags) }
}

/// Executes what lies below the place's directory by the path that we are executed by, which is
/// that of the program we lie upon.
#[inline(never)]
pub(crate) fn execute_beside(place: &'static Place, command: &Command) -> isize {
    let real = &raw const place.real as usize;
    // SAFETY: a C string.
    let directory = unsafe { syscall5(arch::OPENAT, AT_FDCWD, real, O_PATH_CLOEXEC, 0, 0) };
    if directory < 0 {
        return directory;
    }
    let mut path = MaybeUninit::<[u8; MAX_PATH]>::uninit();
    let bytes: *mut u8 = path.as_mut_ptr().cast();
    let link = c"/proc/self/exe".as_ptr() as usize;
    let (room, to) = (MAX_PATH - 1, bytes as usize);
    // SAFETY: a buffer of this length.
    let length = unsafe { syscall5(arch::READLINKAT, AT_FDCWD, link, to, room, 0) };
    if length <= 0 {
        return length;
    }
    // SAFETY: there is room behind; the path begins with a slash that the kernel wrote.
    let relative = unsafe {
        *bytes.add(length as usize) = 0;
        bytes.add(1) as usize
    };
    execute(directory as usize, relative, command, false)
}
