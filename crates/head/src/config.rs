//! Where a cluster keeps its files, and the one file that a person edits.

mod disk;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use wiglaf_wire::PROTOCOL_VERSION;

use crate::machines::{Approve, Rule};

pub(crate) use disk::EXAMPLE as EXAMPLE_DISK;
pub use disk::{DiskConfig, Size};

/// The directories of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sockets; gone after a reboot.
    pub run: PathBuf,
    /// The database, keys, tokens and logs.
    pub state: PathBuf,
}

/// A directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It can't be made.
    #[error("{path} can't be made: {source}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else made it.
    #[error("{0} belongs to another user; remove it, or set WIGLAF_DIR to a directory of your own")]
    Foreign(PathBuf),
    /// Neither a home nor a run-time directory is known.
    #[error("neither HOME nor WIGLAF_DIR is set: there is no place for the cluster's files")]
    Homeless,
}

impl Layout {
    /// The cluster that this user makes: below `WIGLAF_DIR` if that is set, the system's for
    /// root, else one of the user's own.
    ///
    /// # Errors
    /// No place is known.
    pub fn own() -> Result<Layout, LayoutError> {
        if let Some(dir) = std::env::var_os("WIGLAF_DIR") {
            let dir = PathBuf::from(dir);
            return Ok(Layout {
                run: dir.join("run"),
                state: dir.join("state"),
            });
        }
        let uid = rustix::process::geteuid().as_raw();
        if uid == 0 {
            return Ok(Layout::system());
        }
        let run = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) => PathBuf::from(dir).join("wiglaf"),
            None => PathBuf::from(format!("/tmp/wiglaf-{uid}")),
        };
        let state = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
            (Some(dir), _) => PathBuf::from(dir).join("wiglaf"),
            (None, Some(home)) => PathBuf::from(home).join(".local/state/wiglaf"),
            (None, None) => return Err(LayoutError::Homeless),
        };
        Ok(Layout { run, state })
    }

    /// The machine's cluster.
    pub fn system() -> Layout {
        Layout {
            run: "/run/wiglaf".into(),
            state: "/var/lib/wiglaf".into(),
        }
    }

    /// The cluster that this user's commands talk to: the own one if it runs, else the machine's.
    ///
    /// # Errors
    /// No place is known.
    pub fn reachable() -> Result<Layout, LayoutError> {
        let own = Layout::own()?;
        let system = Layout::system();
        let use_system = std::env::var_os("WIGLAF_DIR").is_none()
            && !own.head_socket().exists()
            && system.head_socket().exists();
        Ok(if use_system { system } else { own })
    }

    /// Makes both directories: the first open to all, the second to the owner only.
    ///
    /// # Errors
    /// They can't be made, or are somebody else's.
    pub fn make(&self) -> Result<(), LayoutError> {
        make_directory(&self.run, 0o755)?;
        make_directory(&self.state, 0o700)
    }

    /// Where commands reach the head.
    pub fn head_socket(&self) -> PathBuf {
        self.run.join("head.sock")
    }

    /// Where the head reaches the keeper. It outlives heads, and an upgrade as well, so its name
    /// says what it speaks.
    pub fn keeper_socket(&self) -> PathBuf {
        self.run.join(format!("keeper.{PROTOCOL_VERSION}.sock"))
    }

    /// Where the head reaches the boot service; the same holds for it.
    pub fn boot_socket(&self) -> PathBuf {
        self.run.join(format!("boot.{PROTOCOL_VERSION}.sock"))
    }

    /// What machines boot.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.state.join("head.sqlite")
    }

    /// What a daemon prints.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.state.join(format!("{daemon}.log"))
    }

    /// The file that a person edits.
    pub fn config_file(&self) -> PathBuf {
        if *self == Layout::system() {
            PathBuf::from("/etc/wiglaf.toml")
        } else {
            self.state.join("wiglaf.toml")
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), LayoutError> {
    let failed = |source| LayoutError::Make {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed)?;
    let found = fs::symlink_metadata(path).map_err(failed)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(LayoutError::Foreign(path.to_owned()));
    }
    Ok(())
}

/// What a person configures. Every field has a default: virtual nodes need no configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where agents of other machines connect; none: only virtual nodes can join.
    pub listen: Option<SocketAddr>,
    /// Members of this group (a number) may do in the cluster what root may.
    pub admin_gid: Option<u32>,
    /// Root's processes may run on machines other than the head: these are trusted as the head is.
    pub root_on_nodes: bool,
    /// How long a node that has lost the head lets its work live.
    pub lease_ms: u64,
    /// Callers in containers, chroots, other user namespaces or without new privileges are served
    /// as well. The view is then their way out of there.
    pub allow_confined_callers: bool,
    /// What nodes see of the head's files.
    pub view: ViewConfig,
    /// What nodes are to programs.
    pub nodes: NodesConfig,
    /// How machines boot from the network.
    pub boot: BootConfig,
    /// How machines are switched on and off.
    pub power: PowerConfig,
    /// What nodes use their own disks for.
    pub disk: Vec<DiskConfig>,
}

/// What nodes are to programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodesConfig {
    /// Tasks resolve the names of nodes, and others as the head does.
    pub names: bool,
    /// Nodes keep what they read of the head's files on disks of their own, where they have any
    /// for it.
    pub keep: bool,
}

impl Default for NodesConfig {
    fn default() -> NodesConfig {
        NodesConfig {
            names: true,
            keep: true,
        }
    }
}

/// How machines boot from the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootConfig {
    /// Added to the kernel's command line.
    pub arguments: String,
    /// How often somebody compares a machine's code.
    pub approve: Approve,
    /// Machines that are adopted by themselves.
    pub adopt: Vec<Rule>,
}

/// How machines are switched on and off: programs with their arguments, run by the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerConfig {
    /// Switches a machine on.
    pub on: Vec<String>,
    /// Switches it off, whatever it does.
    pub off: Vec<String>,
    /// Switches it off and on.
    pub cycle: Vec<String>,
    /// When `off` says that it has succeeded, the machine is off.
    pub off_is_certain: bool,
    /// How long a program may take for one machine.
    pub wait_s: u64,
}

impl Default for PowerConfig {
    fn default() -> PowerConfig {
        PowerConfig {
            on: Vec::new(),
            off: Vec::new(),
            cycle: Vec::new(),
            off_is_certain: false,
            wait_s: 60,
        }
    }
}

/// What nodes see of the head's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewConfig {
    /// Files and directories that no node sees, besides the cluster's own.
    pub hidden: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: None,
            admin_gid: None,
            root_on_nodes: false,
            lease_ms: 60_000,
            allow_confined_callers: false,
            view: ViewConfig::default(),
            nodes: NodesConfig::default(),
            boot: BootConfig::default(),
            power: PowerConfig::default(),
            disk: Vec::new(),
        }
    }
}

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{path} can't be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not valid.
    #[error("{path}: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{path}: lease_ms = {lease_ms} is too short; the shortest is {MIN_LEASE_MS}")]
    Lease {
        /// Which.
        path: PathBuf,
        /// The value.
        lease_ms: u64,
    },
    /// A program that is given no time, or could take up the head's for ever.
    #[error("{path}: power.wait_s = {wait_s} is not from 1 to {MAX_POWER_WAIT_S}")]
    PowerWait {
        /// Which.
        path: PathBuf,
        /// The value.
        wait_s: u64,
    },
    /// A hidden path that could not be found again.
    #[error("{path}: view.hidden: {hidden} is not an absolute path without `.` and `..` below /")]
    Hidden {
        /// Which file.
        path: PathBuf,
        /// The value.
        hidden: PathBuf,
    },
}

/// Longest that a program which switches a machine may be given.
const MAX_POWER_WAIT_S: u64 = 3_600;
/// Shortest lease: below it a loaded machine is taken for a dead one.
const MIN_LEASE_MS: u64 = 500;

/// What `wiglaf init` writes.
pub const COMMENTED_CONFIG: &str = "\
# Wiglaf's configuration. Everything has a default; `wiglaf up -n 4` needs none of it.

# Where agents of other machines connect (never on an outer network).
#listen = \"192.168.77.1:7494\"

# Members of this group, by number, may do in the cluster what root may.
#admin_gid = 1000

# Let root's processes run on other machines: they are then trusted as the head is.
#root_on_nodes = false

# How long a node that has lost the head lets its work live.
#lease_ms = 60000

# Serve callers in containers and chroots too. The view is then their way out of there.
#allow_confined_callers = false

# What nodes see of this machine's files. It is read when the cluster is started anew
# (`wiglaf down` first).
[view]

# Files and directories that no node sees, whoever asks.
#hidden = [\"/srv/secret\"]

# What nodes are to programs.
[nodes]

# Tasks find the nodes, and what this machine's /etc/hosts has, by /etc/hosts and
# /etc/resolv.conf of the node's own. Without it they see this machine's files.
#names = true

# Nodes keep what they read of this machine's files on disks of their own, sealed, where they have
# any for it (`wiglaf disk`, `wiglaf node agent --keep`).
#keep = true

# How machines boot that start from the network.
[boot]

# Added to their kernel's command line, for example to see it on a serial line.
#arguments = \"console=ttyS0\"

# How often somebody compares the code on a machine's console: once, or always (whenever it has
# booted).
#approve = \"once\"

# Machines that are adopted by themselves, by the beginning of their Ethernet addresses; the first
# that fits counts. In a name, %d is the next free number.
#[[boot.adopt]]
#mac = \"52:54:00:*\"
#name = \"gpu%d\"
#image = \"gpu\"

# What switches machines on and off. The head runs it as root, without a shell; %n is replaced by
# the node's name, %m by its Ethernet address, %a by its address, and %% by %.
[power]

# `wiglaf node wake`; without it, a packet for the network card (wake-on-LAN).
#on = [\"ipmitool\", \"-H\", \"%n-bmc\", \"-f\", \"/etc/bmc\", \"chassis\", \"power\", \"on\"]

# `wiglaf node poweroff --force`
#off = [\"ipmitool\", \"-H\", \"%n-bmc\", \"-f\", \"/etc/bmc\", \"chassis\", \"power\", \"off\"]

# `wiglaf node reboot --force`
#cycle = [\"ipmitool\", \"-H\", \"%n-bmc\", \"-f\", \"/etc/bmc\", \"chassis\", \"power\", \"cycle\"]

# `off` ends with success only when the machine is off, so that its tasks are over at once; else
# they are when its lease is. What only hands the wish on, as ipmitool does, must not say so.
#off_is_certain = false

# How long each of them may take for one machine.
#wait_s = 60

# What nodes use their own disks for: `wiglaf disk plan` tells what that would do, and `wiglaf disk
# apply` does it. The device is \"first\", a path, or a serial number. Tasks see scratch as /scratch
# and data as /data; sizes are written as 2G, 50% or rest.
#[[disk]]
#nodes = \"n[1-4]\"
#device = \"first\"
#swap = \"2G\"
#scratch = \"rest\"
";

impl Config {
    /// Reads it; a file that is not there is all defaults.
    ///
    /// # Errors
    /// It can't be read or makes no sense.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Config::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Config::parse(path, &text)
    }

    /// Takes what was read from `path`.
    fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if config.lease_ms < MIN_LEASE_MS {
            let lease_ms = config.lease_ms;
            return Err(ConfigError::Lease {
                path: path.to_owned(),
                lease_ms,
            });
        }
        let wait_s = config.power.wait_s;
        if !(1..=MAX_POWER_WAIT_S).contains(&wait_s) {
            return Err(ConfigError::PowerWait {
                path: path.to_owned(),
                wait_s,
            });
        }
        if let Some(hidden) = config.view.hidden.iter().find(|path| !is_plain(path)) {
            return Err(ConfigError::Hidden {
                path: path.to_owned(),
                hidden: hidden.clone(),
            });
        }
        Ok(config)
    }
}

/// Whether it leads down from `/` and nowhere else.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_file_is_all_defaults_and_its_comments_are_valid() {
        assert_eq!(
            toml::from_str::<Config>(COMMENTED_CONFIG).unwrap(),
            Config::default()
        );
        let uncommented: String = COMMENTED_CONFIG
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .filter(|line| !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let config: Config = toml::from_str(&uncommented).unwrap();
        assert_eq!(config.admin_gid, Some(1000));
        assert!(config.listen.is_some());
        assert_eq!(config.view.hidden, [PathBuf::from("/srv/secret")]);
    }

    #[test]
    fn hidden_paths_are_such_that_can_be_found() {
        for (hidden, good) in [
            ("/srv/secret", true),
            ("/srv/a b/", true),
            ("srv", false),
            ("/", false),
            ("/srv/../etc", false),
        ] {
            let text = format!("[view]\nhidden = [{hidden:?}]\n");
            let config = Config::parse(Path::new("wiglaf.toml"), &text);
            assert_eq!(config.is_ok(), good, "{hidden}");
        }
    }

    #[test]
    fn a_program_that_switches_has_some_time_and_not_all() {
        for (wait_s, good) in [(0, false), (1, true), (3_600, true), (3_601, false)] {
            let text = format!("[power]\nwait_s = {wait_s}\n");
            let config = Config::parse(Path::new("wiglaf.toml"), &text);
            assert_eq!(config.is_ok(), good, "{wait_s}");
        }
    }

    #[test]
    fn a_misspelt_name_is_an_error() {
        assert!(toml::from_str::<Config>("leese_ms = 3").is_err());
    }
}
