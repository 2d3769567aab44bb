#![forbid(unsafe_code)]
//! Builds what nodes boot: a kernel, and an initramfs that holds this program, the modules and
//! firmware that bring the network up, and what somebody wants to be there without the head.
//!
//! The same inputs give the same bytes, wherever and whenever they are put together.

mod compress;
mod cpio;
mod elf;
mod firmware;
mod hashed;
mod include;
mod initramfs;
mod kernel;
mod medium;
mod modules;
mod recipe;
mod rootfs;
mod store;

pub use compress::Compression;
pub use firmware::FirmwareError;
pub use include::IncludeError;
pub use kernel::{KernelChoice, KernelError};
pub use medium::{
    Device, DiskError, Medium, MediumError, MediumTools, Offered, Progress, ToolError,
};
pub use modules::ModuleError;
pub use recipe::{BuildError, Built, Recipe};
pub use rootfs::{RootfsError, SystemChoice};
pub use store::{ByCard, File, Images, Manifest, Module, StoreError, System};
