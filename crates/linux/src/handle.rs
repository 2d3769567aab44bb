//! File handles: what the kernel calls a file in `fanotify(7)` events.
//!
//! Here they are only compared. Opening a file by its handle takes a capability that nothing of
//! ours has.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arch::{checked, int};
use rustix::io::Errno;

/// `MAX_HANDLE_SZ`.
pub const MAX_HANDLE_BYTES: usize = 128;
/// `AT_HANDLE_FID`: one that is good for comparing, which more file systems have (Linux 6.5).
const HANDLE_FID: i32 = 0x200;

/// The handle of a file on its file system.
#[derive(Clone, Copy)]
pub struct FileHandle {
    kind: i32,
    length: usize,
    bytes: [u8; MAX_HANDLE_BYTES],
}

impl FileHandle {
    /// The file system's name for the form of the bytes.
    #[must_use]
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The handle of an open file, which may be open with `O_PATH` only.
///
/// # Errors
/// `EOPNOTSUPP`: its file system has none.
pub fn handle_of(file: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    handle(file, c"", libc::AT_EMPTY_PATH)
}

/// The handle of what a name in a directory is; of a symbolic link itself.
///
/// # Errors
/// As [`handle_of`]; `ENOENT`.
pub fn handle_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<FileHandle, Errno> {
    handle(directory, name, 0)
}

/// What events call the file system of an open file (`f_fsid`).
///
/// # Errors
/// As `fstatfs(2)`.
pub fn file_system_of(file: BorrowedFd<'_>) -> Result<[u8; 8], Errno> {
    /// As many as the kernel's struct has on all machines of ours.
    const WORDS: usize = 15;
    const FSID_WORD: usize = 7;
    const {
        assert!(size_of::<libc::statfs>() == WORDS * 8);
        assert!(std::mem::offset_of!(libc::statfs, f_fsid) == FSID_WORD * 8);
    };
    let mut words = [0u64; WORDS];
    let args = [int(file.as_raw_fd()), (&raw mut words).expose_provenance()];
    // SAFETY: as much room as the kernel writes.
    unsafe { checked(libc::SYS_fstatfs, args) }?;
    // SAFETY: a local that the kernel wrote; any bytes are valid ones.
    let words = unsafe { std::ptr::read_volatile(&raw const words) };
    Ok(words[FSID_WORD].to_ne_bytes())
}

/// `struct file_handle`.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE_BYTES],
}

fn handle(directory: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<FileHandle, Errno> {
    /// The kernel is older than the flag.
    static WITHOUT_FID: AtomicBool = AtomicBool::new(false);
    if !WITHOUT_FID.load(Ordering::Relaxed) {
        match name_to_handle(directory, name, flags | HANDLE_FID) {
            Err(Errno::INVAL) => {}
            result => return result,
        }
        let result = name_to_handle(directory, name, flags);
        if result.is_ok() {
            WITHOUT_FID.store(true, Ordering::Relaxed);
        }
        return result;
    }
    name_to_handle(directory, name, flags)
}

fn name_to_handle(directory: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<FileHandle, Errno> {
    let mut raw = RawHandle {
        bytes: 128,
        kind: 0,
        handle: [0; MAX_HANDLE_BYTES],
    };
    let mut mount = 0i32;
    let args = [
        int(directory.as_raw_fd()),
        name.as_ptr().expose_provenance(),
        (&raw mut raw).expose_provenance(),
        (&raw mut mount).expose_provenance(),
        int(flags),
    ];
    // SAFETY: a C string, a struct with room for as many bytes as it says, and an int.
    unsafe { checked(libc::SYS_name_to_handle_at, args) }?;
    // SAFETY: a local that the kernel wrote; any bytes are valid ones.
    let raw = unsafe { std::ptr::read_volatile(&raw const raw) };
    let length = usize::try_from(raw.bytes).map_or(MAX_HANDLE_BYTES, |n| n.min(MAX_HANDLE_BYTES));
    Ok(FileHandle {
        kind: raw.kind,
        length,
        bytes: raw.handle,
    })
}
