//! A mount that a thread serves from memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use wiglaf_fuse::{
    BUFFER_BYTES, Device, DeviceError, Errno, Notification, Options, Request, unmount,
};

use crate::memory::Memory;

/// How long something that another thread does may take.
const SOON: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(2);

static MOUNTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// For a process that is about to die with threads in the kernel.
pub(crate) fn unmount_all() {
    for path in MOUNTS.lock().expect("the list").drain(..) {
        let _ = unmount(&path);
    }
}

pub(crate) struct Served {
    pub(crate) device: Arc<Device>,
    pub(crate) memory: Arc<Mutex<Memory>>,
    directory: tempfile::TempDir,
    server: Option<JoinHandle<DeviceError>>,
}

impl Served {
    pub(crate) fn new() -> Served {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Served {
        let directory = tempfile::tempdir().expect("a directory");
        let device = Arc::new(Device::open().expect("the device"));
        device.mount(directory.path(), &options).expect("a mount");
        let mut mounts = MOUNTS.lock().expect("the list");
        mounts.push(directory.path().to_owned());
        drop(mounts);
        let memory = Arc::new(Mutex::new(Memory::new()));
        let (its, held) = (Arc::clone(&device), Arc::clone(&memory));
        let server = std::thread::spawn(move || serve(&its, &held));
        Served {
            device,
            memory,
            directory,
            server: Some(server),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("the memory")
    }

    /// What was asked since the last call, by the operations' names.
    pub(crate) fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.memory().asked)
    }

    pub(crate) fn notify(&self, notification: &Notification) -> Result<(), Errno> {
        self.device.notify(notification)
    }

    /// Answers lookups that were held.
    pub(crate) fn release(&self) {
        let held = {
            let mut memory = self.memory();
            memory.hold = None;
            std::mem::take(&mut memory.held)
        };
        for (unique, reply) in held {
            self.device.reply(unique, &reply).expect("a reply");
        }
    }

    /// Why the server has ended.
    pub(crate) fn end(mut self) -> DeviceError {
        unmount(self.directory.path()).expect("it was mounted");
        let server = self.server.take().expect("it is served");
        server.join().expect("the server")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = unmount(self.directory.path());
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Waits for something that another thread does.
pub(crate) fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(STEP);
    }
}

fn serve(device: &Device, memory: &Mutex<Memory>) -> DeviceError {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let mut waiting = [PollFd::new(device, PollFlags::IN)];
        rustix::event::poll(&mut waiting, None).expect("a poll");
        loop {
            let length = match device.receive(&mut buffer) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) => return error,
            };
            let request = Request::parse(&buffer[..length]).expect("a request");
            let replies = memory.lock().expect("the memory").answer(&request);
            for (unique, reply) in replies {
                match device.reply(unique, &reply) {
                    Ok(()) => {}
                    Err(DeviceError::Gone) => return DeviceError::Gone,
                    Err(error) => panic!("{reply:?} to {request:?}: {error}"),
                }
            }
        }
    }
}
