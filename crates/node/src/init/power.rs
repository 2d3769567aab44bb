//! How a machine ends.

use std::convert::Infallible;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::time::Duration;

use ring::digest::{Context, SHA256, digest};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};
use wiglaf_linux::kexec::kexec_file_load;
use wiglaf_wire::agent::PowerAction;
use wiglaf_wire::boot::Mac;

use super::cmdline::CommandLine;
use super::http::{self, HttpError};
use super::network::Home;
use super::room::{self, RoomError};

/// Larger ones are no kernels of ours.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
const MAX_SCRIPT_BYTES: u64 = 64 << 10;
/// As the kernel's own bound is at most (COMMAND_LINE_SIZE).
const MAX_COMMAND_LINE: usize = 2048;
/// The initramfs of any machine.
const WHOLE_INITRAMFS: &str = "initramfs";
/// As many of an image's name are of its digest.
const ID_DIGITS: usize = 12;

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
    /// What came is not what was sent.
    #[error("{0} came damaged: it does not have the digest that its name says")]
    Damaged(String),
    /// This kernel does not take that one.
    #[error("the kernel can't load the next one: {0}")]
    Load(#[source] Errno),
    /// It does not go beside this one.
    #[error(transparent)]
    Room(#[from] RoomError),
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
pub(super) struct Next {
    kernel: String,
    arguments: String,
    initramfs: String,
}

/// Fetches what this machine would boot by its firmware, and loads it. Returns the initramfs's
/// name.
pub(super) fn load_next(
    home: &Home,
    card: Option<&str>,
    line: &CommandLine,
) -> Result<String, KexecError> {
    let boot = home.boot.ok_or(KexecError::NoService)?;
    let script = fetch_script(boot, home.mac, card)?;
    let next = Next::parse(&script).ok_or(KexecError::Script)?;
    next.load(boot, line)?;
    Ok(next.file().unwrap_or_default().to_owned())
}

/// What the boot service would have this machine's iPXE do. `card`: with an initramfs for this
/// network card, else the whole one.
pub(super) fn fetch_script(
    boot: SocketAddrV4,
    mac: Mac,
    card: Option<&str>,
) -> Result<String, HttpError> {
    let mut script = Vec::new();
    let query = card.map(|card| format!("?card={card}")).unwrap_or_default();
    let path = format!("/script/{mac}{query}");
    http::get(boot, &path, MAX_SCRIPT_BYTES, &mut script)?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// A file in memory, and the digest of what it holds, in hexadecimal digits.
fn fetch(boot: SocketAddrV4, url: &str) -> Result<(File, String), KexecError> {
    let (server, path) = split_url(url, boot).ok_or(KexecError::Script)?;
    let flags = MemfdFlags::CLOEXEC;
    let memory =
        rustix::fs::memfd_create("wiglaf next kernel", flags).map_err(KexecError::Memory)?;
    let mut sink = Digested {
        file: File::from(memory),
        digest: Context::new(&SHA256),
    };
    http::get(server, path, MAX_IMAGE_BYTES, &mut sink)?;
    Ok((sink.file, hex(sink.digest.finish().as_ref())))
}

struct Digested {
    file: File,
    digest: Context,
}

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether a name ends in the beginning of the digest of both files' digests, as `wiglaf image
/// build` makes an image's, and that of an initramfs for certain cards. On the wire it guards
/// against accidents only: who forges the files forges the name.
fn is_of_name(name: &str, kernel: &str, initramfs: &str) -> bool {
    let both = format!("{kernel}{initramfs}");
    let whole = hex(digest(&SHA256, both.as_bytes()).as_ref());
    name.rsplit_once('-')
        .is_some_and(|(_, digits)| digits.len() >= ID_DIGITS && whole.starts_with(digits))
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
    /// The image that the kernel is of.
    pub(super) fn image(&self) -> Option<&str> {
        let (_, path) = self.kernel.split_once("/image/")?;
        path.strip_suffix("/kernel")
    }

    /// The name that both files' digest is in: that of an initramfs for certain cards, or the
    /// image's.
    fn name(&self) -> Option<&str> {
        let file = self.file()?;
        if file == WHOLE_INITRAMFS {
            self.image()
        } else {
            Some(file)
        }
    }

    /// The initramfs's name.
    fn file(&self) -> Option<&str> {
        Some(self.initramfs.rsplit_once('/')?.1)
    }

    /// Fetches and loads it. What only this machine's own command line says of the way to the head
    /// is passed on.
    pub(super) fn load(&self, boot: SocketAddrV4, line: &CommandLine) -> Result<(), KexecError> {
        let (kernel, kernel_digest) = fetch(boot, &self.kernel)?;
        let (initramfs, initramfs_digest) = fetch(boot, &self.initramfs)?;
        let image = self.image().ok_or(KexecError::Script)?;
        let name = self.name().ok_or(KexecError::Script)?;
        if !is_of_name(name, &kernel_digest, &initramfs_digest) {
            return Err(KexecError::Damaged(image.to_owned()));
        }
        let mut arguments = self.arguments.clone();
        for (word, value) in [("wiglaf.head", line.head), ("wiglaf.boot", line.boot)] {
            if let Some(value) = value
                && !arguments.contains(&format!("{word}="))
            {
                arguments.push_str(&format!(" {word}={value}"));
            }
        }
        if arguments.len() >= MAX_COMMAND_LINE {
            return Err(KexecError::Script);
        }
        let arguments = CString::new(arguments).map_err(|_| KexecError::Script)?;
        room::check(&kernel, &initramfs)?;
        kexec_file_load(kernel.as_fd(), initramfs.as_fd(), &arguments).map_err(KexecError::Load)
    }

    /// From an iPXE script of ours: the first `kernel` and the first `initrd` of it.
    pub(super) fn parse(script: &str) -> Option<Next> {
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
        Some(Next {
            kernel: (*address).to_owned(),
            arguments: arguments.join(" "),
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
        assert_eq!(next.image(), Some("a-1"));
        assert_eq!(next.name(), Some("a-1"));
        let other = script.replace(
            "initrd http://10.7.0.1:7480/image/a-1/initramfs",
            "initrd --name initramfs http://10.7.0.1:7480/image/a-1/initramfs-0a",
        );
        let next = Next::parse(&other).unwrap();
        assert_eq!(
            next.initramfs,
            "http://10.7.0.1:7480/image/a-1/initramfs-0a"
        );
        assert_eq!(next.name(), Some("initramfs-0a"));
        assert_eq!(Next::parse("#!ipxe\necho kernel\nsleep 5\n"), None);
    }

    #[test]
    fn an_images_name_tells_what_is_in_it() {
        // sha256 of "kernel" and of "initramfs", then of both in hexadecimal digits.
        let of = |text: &str| hex(digest(&SHA256, text.as_bytes()).as_ref());
        let (kernel, initramfs) = (of("kernel"), of("initramfs"));
        let name = format!("my-{}", &of(&format!("{kernel}{initramfs}"))[..12]);
        assert!(is_of_name(&name, &kernel, &initramfs));
        assert!(!is_of_name(&name, &initramfs, &kernel));
        assert!(!is_of_name("my-", &kernel, &initramfs));
        assert!(!is_of_name("my", &kernel, &initramfs));
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
