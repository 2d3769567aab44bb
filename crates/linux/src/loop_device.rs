//! Loop devices: a file as a block device, which is what a file system is mounted from.

use crate::arch::{checked, int};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";
/// linux/loop.h.
const LOOP_CTL_GET_FREE: usize = 0x4C82;
const LOOP_CONFIGURE: usize = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others may take the free device before we do.
const ATTEMPTS: usize = 16;

/// `struct loop_config`, with the `struct loop_info64` that is in it.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [[u64; 8]; 2],
    key: [u64; 4],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Config>() == 304);

/// A device that shows a file's bytes, read-only. It goes when it is neither open nor mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// Where it is mounted from.
    pub path: PathBuf,
    _open: OwnedFd,
}

impl LoopDevice {
    /// Takes a free device for this file.
    ///
    /// # Errors
    /// `ENOENT`: the kernel has no loop devices. `EPERM`, `EACCES`: they are not for us.
    pub fn attach(file: BorrowedFd<'_>) -> Result<LoopDevice, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::open(CONTROL, flags, Mode::empty())?;
        let mut taken = Errno::BUSY;
        for _ in 0..ATTEMPTS {
            let args = [int(control.as_raw_fd()), LOOP_CTL_GET_FREE, 0];
            // SAFETY: this request takes no argument.
            let number = unsafe { checked(libc::SYS_ioctl, args) }?;
            let path = Path::new("/dev").join(format!("loop{number}"));
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let device = rustix::fs::open(&path, flags, Mode::empty())?;
            match configure(&device, file) {
                Ok(()) => {
                    return Ok(LoopDevice {
                        path,
                        _open: device,
                    });
                }
                Err(errno @ Errno::BUSY) => taken = errno,
                Err(errno) => return Err(errno),
            }
        }
        Err(taken)
    }
}

fn configure(device: &OwnedFd, file: BorrowedFd<'_>) -> Result<(), Errno> {
    let config = Config {
        file: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        numbers: [0; 5],
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        names: [[0; 8]; 2],
        key: [0; 4],
        init: [0; 2],
        reserved: [0; 8],
    };
    let args = [
        int(device.as_raw_fd()),
        LOOP_CONFIGURE,
        std::ptr::from_ref(&config).expose_provenance(),
    ];
    // SAFETY: the kernel only reads the struct, whose size is asserted above.
    unsafe { checked(libc::SYS_ioctl, args) }.map(|_| ())
}
