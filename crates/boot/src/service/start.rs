//! How the process comes to be: everything that needs root, then root is given up.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use wiglaf_link::{PrivateListenError, listen_privately};
use wiglaf_linux::creds::CredsError;
use wiglaf_linux::detach::{self, DetachError};
use wiglaf_linux::{process, service};

use super::files::Files;
use super::journal::{self, Journal};
use super::neighbours::Neighbours;

/// For the most clients and transfers, and the files that they read.
const DESCRIPTORS: u64 = 16_384;
const LISTEN_BACKLOG: i32 = 16;

/// What the service is started with.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Where the head connects. Made with mode 0600.
    pub socket: PathBuf,
    /// The images' directory; the leases are kept beside it.
    pub images: PathBuf,
    /// Directories of network boot programs, the first that has one counts.
    pub loaders: Vec<PathBuf>,
    /// The user and group that it is for the rest of its life.
    pub account: (u32, u32),
}

/// Why the service does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Only root can open its sockets.
    #[error("machines can only be served by root: DHCP and TFTP have ports below 1024")]
    NotRoot,
    /// Another one answers on the socket.
    #[error("a boot service is already running: something listens on {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// A file or directory that it needs.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something that a daemon needs of the kernel.
    #[error("cannot {what}: {errno}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// It can't become a daemon of its own.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// It would have gone on with root's rights.
    #[error("cannot give root's rights up: {0}")]
    Rights(#[from] CredsError),
}

/// What was opened as root.
#[derive(Debug)]
pub struct Prepared {
    pub(super) listener: UnixListener,
    pub(super) files: Files,
    pub(super) journal: Journal,
    pub(super) journal_directory: PathBuf,
    pub(super) neighbours: Neighbours,
    pub(super) loaders: Vec<PathBuf>,
    account: (u32, u32),
}

/// Opens what needs root, so that who starts the service hears why it can't.
///
/// # Errors
/// It can't.
pub fn prepare(config: ServiceConfig) -> Result<Prepared, ServiceError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ServiceError::NotRoot);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ServiceError::Open { path, source }
    };
    let files = Files::open(&config.images, &config.loaders)
        .map_err(|errno| failed(&config.images)(errno.into()))?;
    let directory = journal::directory_of(&config.images);
    let journal_directory: PathBuf = config.images.parent().unwrap_or(&config.images).into();
    let directory: File = directory.map_err(|errno| failed(&journal_directory)(errno.into()))?;
    // Before the journal: of two services only one may have it.
    let listener = listen(&config.socket)?;
    let journal = Journal::open(&directory, super::unix_s());
    Ok(Prepared {
        listener,
        files,
        journal: journal.map_err(failed(&journal_directory))?,
        journal_directory,
        neighbours: Neighbours::open().map_err(failed(Path::new("/proc/net/arp")))?,
        loaders: config.loaders,
        account: config.account,
    })
}

impl Prepared {
    /// Makes this process the service. It must have one thread, and must not need its terminal,
    /// its signals or its standard input and output any more; standard error is the log.
    pub(super) fn settle(&self) -> Result<(), ServiceError> {
        let setup = |what| move |errno| ServiceError::Setup { what, errno };
        detach::from_starter()?;
        // The one that listened first was our starter; a head asks the kernel who does.
        rustix::net::listen(&self.listener, LISTEN_BACKLOG).map_err(setup("listen"))?;
        let limit = Rlimit {
            current: Some(DESCRIPTORS),
            maximum: Some(DESCRIPTORS),
        };
        rustix::process::setrlimit(Resource::Nofile, limit)
            .map_err(setup("raise the limit of descriptors"))?;
        if let Err(error) = process::set_process_title("wiglaf: boot") {
            log(&error.to_string());
        }
        // Kept: CAP_NET_BIND_SERVICE for ports 67 and 69, and CAP_NET_RAW for packets to machines
        // without an address, for router solicitations and for binding to an interface: settings
        // come at any time, and interfaces appear. Nothing that it does wants CAP_NET_ADMIN.
        let (uid, gid) = self.account;
        service::become_network_service(uid, gid)?;
        Ok(())
    }
}

/// The head's way in, for root only.
fn listen(socket: &Path) -> Result<UnixListener, ServiceError> {
    listen_privately(socket).map_err(|error| match error {
        PrivateListenError::Taken => ServiceError::AlreadyRunning(socket.to_owned()),
        PrivateListenError::Io(source) => ServiceError::Open {
            path: socket.to_owned(),
            source,
        },
    })
}

/// One line of the log.
pub(super) fn log(line: &str) {
    // A full disk must not end the service.
    let _ = writeln!(std::io::stderr(), "wiglaf: boot: {line}");
}
