//! What Wiglaf needs of the kernel and safe crates do not offer.
//!
//! This is the only crate of the workspace with `unsafe` code. It knows system calls,
//! not clusters: nothing here decides anything, and nothing here logs.

#[cfg(not(target_os = "linux"))]
compile_error!("Wiglaf runs on Linux only");

pub mod acting;
mod arch;
pub mod clock;
pub mod creds;
pub mod descriptor;
pub mod detach;
pub mod disk;
pub mod fanotify;
pub mod ghost;
pub mod handle;
pub mod interface;
pub mod kexec;
pub mod lease;
pub mod lock;
pub mod loop_device;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod peer;
pub mod process;
pub mod raw_socket;
pub mod service;
pub mod session;
pub mod shim;
pub mod shimmed;
pub mod signal;
pub mod spawn;
pub mod status;
pub mod tcp;
pub mod trace;
mod vfork;

pub use rustix::io::Errno;
