//! How a machine ends.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};
use wiglaf_linux::kexec::kexec_file_load;
use wiglaf_wire::agent::PowerAction;
use wiglaf_wire::boot::Mac;

use super::http::{self, HttpError};

/// Larger ones are no kernels of ours.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
const MAX_SCRIPT_BYTES: u64 = 64 << 10;
/// As the kernel's own bound is at most (COMMAND_LINE_SIZE).
const MAX_COMMAND_LINE: usize = 2048;

/// Why the next kernel can't be started without the firmware.
#[derive(Debug, thiserror::Error)]
pub(super) enum KexecError {
    /// There is no boot service to ask.
    #[error("this machine does not know where its boot service is")]
    NoService,
    /// The boot service.
    #[error(transparent)]
    Fetch(#[from] HttpError),
    /// It has nothing for this machine.
    #[error("the boot script names no kernel and initramfs")]
    Script,
    /// This kernel does not take that one.
    #[error("the kernel can't load the next one: {0}")]
    Load(#[source] Errno),
    /// No room to keep it.
    #[error("can't keep the next kernel in memory: {0}")]
    Memory(#[source] Errno),
}

/// Does it. Returns only if it can't be done.
pub(super) fn end(action: PowerAction) -> Errno {
    rustix::fs::sync();
    let command = match action {
        PowerAction::Reboot => RebootCommand::Restart,
        PowerAction::Kexec => RebootCommand::Kexec,
        PowerAction::Halt => RebootCommand::Halt,
        PowerAction::PowerOff => RebootCommand::PowerOff,
    };
    match reboot(command) {
        Err(errno) => errno,
        Ok(()) => stand_still(),
    }
}

/// The kernel may need a moment for what it has promised.
fn stand_still() -> Errno {
    std::thread::sleep(Duration::from_secs(60));
    Errno::TIMEDOUT
}

/// For a panic: whatever else fails, the machine starts anew.
pub(super) fn end_for_good() -> Infallible {
    loop {
        let _ = end(PowerAction::Reboot);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What a boot script has a machine start.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    kernel: String,
    arguments: String,
    initramfs: String,
}

/// Fetches what this machine would boot by its firmware, and loads it.
pub(super) fn load_next(boot: Option<SocketAddrV4>, mac: Mac) -> Result<(), KexecError> {
    let boot = boot.ok_or(KexecError::NoService)?;
    let mut script = Vec::new();
    http::get(
        boot,
        &format!("/script/{mac}"),
        MAX_SCRIPT_BYTES,
        &mut script,
    )?;
    let script = String::from_utf8_lossy(&script);
    let next = Next::parse(&script).ok_or(KexecError::Script)?;
    let kernel = fetch(boot, &next.kernel)?;
    let initramfs = fetch(boot, &next.initramfs)?;
    let line = CString::new(next.arguments).map_err(|_| KexecError::Script)?;
    kexec_file_load(kernel.as_fd(), initramfs.as_fd(), &line).map_err(KexecError::Load)
}

fn fetch(boot: SocketAddrV4, url: &str) -> Result<File, KexecError> {
    let (server, path) = split_url(url, boot).ok_or(KexecError::Script)?;
    let flags = MemfdFlags::CLOEXEC;
    let memory =
        rustix::fs::memfd_create("wiglaf next kernel", flags).map_err(KexecError::Memory)?;
    let mut file = File::from(memory);
    http::get(server, path, MAX_IMAGE_BYTES, &mut file)?;
    Ok(file)
}

/// An absolute address, or a path on the boot service itself.
fn split_url(url: &str, boot: SocketAddrV4) -> Option<(SocketAddrV4, &str)> {
    let Some(rest) = url.strip_prefix("http://") else {
        return url.starts_with('/').then_some((boot, url));
    };
    let (server, path) = rest.split_at(rest.find('/')?);
    let server = match server.parse() {
        Ok(server) => server,
        Err(_) => SocketAddrV4::new(server.parse().ok()?, 80),
    };
    Some((server, path))
}

impl Next {
    /// From an iPXE script of ours: the first `kernel` and the first `initrd` of it.
    fn parse(script: &str) -> Option<Next> {
        let words = |command: &str| -> Option<Vec<&str>> {
            let line = script
                .lines()
                .find_map(|line| line.trim().strip_prefix(command)?.strip_prefix(' '))?;
            // What iPXE does if it fails is not a part of it.
            let line = line.split(" || ").next()?;
            let is_address = |word: &&str| word.starts_with("http://") || word.starts_with('/');
            let words = line.split_ascii_whitespace();
            Some(words.skip_while(|word| !is_address(word)).collect())
        };
        let kernel = words("kernel")?;
        let (address, arguments) = kernel.split_first()?;
        let arguments = arguments.join(" ");
        if arguments.len() >= MAX_COMMAND_LINE {
            return None;
        }
        Some(Next {
            kernel: (*address).to_owned(),
            arguments,
            initramfs: (*words("initrd")?.first()?).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_script_says_what_to_start() {
        let script = "#!ipxe\n\
            echo wiglaf\n\
            :retry\n\
            kernel --name k http://10.7.0.1:7480/image/a-1/kernel BOOTIF=01-52-54 console=ttyS0 || goto again\n\
            initrd http://10.7.0.1:7480/image/a-1/initramfs || goto again\n\
            boot || goto again\n";
        let next = Next::parse(script).unwrap();
        assert_eq!(next.kernel, "http://10.7.0.1:7480/image/a-1/kernel");
        assert_eq!(next.arguments, "BOOTIF=01-52-54 console=ttyS0");
        assert_eq!(next.initramfs, "http://10.7.0.1:7480/image/a-1/initramfs");
        assert_eq!(Next::parse("#!ipxe\necho kernel\nsleep 5\n"), None);
    }

    #[test]
    fn addresses_are_split() {
        let boot = "10.7.0.1:7480".parse().unwrap();
        let split = |url| split_url(url, boot);
        assert_eq!(split("/image/a/kernel"), Some((boot, "/image/a/kernel")));
        let other = Some(("10.7.0.2:80".parse().unwrap(), "/k"));
        assert_eq!(split("http://10.7.0.2/k"), other);
        assert_eq!(split("http://head/k"), None);
        assert_eq!(split("ftp://10.7.0.2/k"), None);
    }
}
