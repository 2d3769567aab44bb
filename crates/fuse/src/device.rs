//! The kernel's end: requests come out of it, replies and notifications go in.

use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::init::READAHEAD_BYTES;
use crate::{MAX_TRANSFER_BYTES, Notification, Reply};

/// Room that [`Device::receive`] needs: the longest write and what comes before it.
pub const BUFFER_BYTES: usize = MAX_TRANSFER_BYTES as usize + 4096;

const DEVICE: &str = "/dev/fuse";
/// What is mounted, as `mount` shows it.
const SOURCE: &str = "wiglaf";
/// The type of all mounts, as `/proc/PID/mountinfo` shows it.
pub const FILE_SYSTEM_TYPE: &str = "fuse.wiglaf";

/// How a mount is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Do not let device files open devices.
    pub no_devices: bool,
    /// Do not let set-uid programs change who runs them.
    pub no_set_uid: bool,
}

/// The device can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The mount is gone, or its connection was aborted.
    #[error("the file system is not mounted any more")]
    Gone,
    /// The system's word.
    #[error("{DEVICE}: {0}")]
    Io(#[from] Errno),
}

/// A mount that can't be made.
#[derive(Debug, thiserror::Error)]
#[error("mounting a FUSE file system at {path} failed: {errno}")]
pub struct MountError {
    /// Where.
    pub path: PathBuf,
    /// The system's word.
    pub errno: Errno,
}

/// An open `/dev/fuse`. It carries one mount; to be shared between threads by `Arc`.
///
/// When the last descriptor of it is closed the kernel fails whatever waits for an answer.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens it, non-blocking. The mount must be made in the same user namespace.
    pub fn open() -> Result<Device, DeviceError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(DEVICE, flags, Mode::empty())?;
        Ok(Device { fd })
    }

    /// Mounts the file system whose requests this device will give, the first of them `Init`.
    /// This waits for none of them.
    pub fn mount(&self, path: &Path, options: &Options) -> Result<(), MountError> {
        let failed = |errno| MountError {
            path: path.to_owned(),
            errno,
        };
        // Once it is mounted, a walk to it would have to be answered.
        let found = std::fs::canonicalize(path)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let settings = format!(
            "fd={},rootmode=40755,user_id={},group_id={},default_permissions,allow_other,max_read={}",
            self.fd.as_raw_fd(),
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
            MAX_TRANSFER_BYTES,
        );
        let settings = CString::new(settings).unwrap_or_default();
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NODEV, options.no_devices);
        flags.set(MountFlags::NOSUID, options.no_set_uid);
        rustix::mount::mount(SOURCE, &found, FILE_SYSTEM_TYPE, flags, settings.as_c_str())
            .map_err(failed)?;
        read_ahead(&found);
        Ok(())
    }

    /// Puts the next request into `buffer` ([`BUFFER_BYTES`] of it) and says how long it is, or
    /// that there is none now.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, DeviceError> {
        loop {
            return match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(length) => Ok(Some(length)),
                Err(Errno::AGAIN) => Ok(None),
                // A signal; or the request's process took it back while it was being read.
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(errno) => Err(device_error(errno)),
            };
        }
    }

    /// Answers a request. One that the kernel does not wait for any more is no error.
    pub fn reply(&self, unique: u64, reply: &Reply) -> Result<(), DeviceError> {
        let mut header = Vec::new();
        let data = reply.parts(unique, &mut header);
        match self.write(&header, data) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(device_error(errno)),
        }
    }

    /// Tells the kernel something. `ENOENT`: it does not know that node, or that name,
    /// or nothing is mounted any more.
    pub fn notify(&self, notification: &Notification) -> Result<(), Errno> {
        let mut header = Vec::new();
        let data = notification.parts(&mut header);
        self.write(&header, data)
    }

    fn write(&self, header: &[u8], data: &[u8]) -> Result<(), Errno> {
        // The kernel takes a message whole or not at all.
        if data.is_empty() {
            rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, header))?;
        } else {
            let parts = [IoSlice::new(header), IoSlice::new(data)];
            rustix::io::retry_on_intr(|| rustix::io::writev(&self.fd, &parts))?;
        }
        Ok(())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Unmounts, also while files are open, and fails whatever waits for an answer: that frees a
/// thread which waits in [`Device::notify`] too. Nothing is asked by this.
pub fn unmount(path: &Path) -> Result<(), Errno> {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(path, flags)
}

fn device_error(errno: Errno) -> DeviceError {
    match errno {
        Errno::NODEV | Errno::CONNABORTED => DeviceError::Gone,
        errno => DeviceError::Io(errno),
    }
}

/// Reads further ahead than the kernel's 128 kB, which halves the number of reads. A node
/// without /sys reads slower.
fn read_ahead(path: &Path) {
    // The root's attributes are not needed, and to ask for them would be to wait for ourselves.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let Ok(found) = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty()) else {
        return;
    };
    let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let _ = std::fs::write(setting, (READAHEAD_BYTES >> 10).to_string());
}
