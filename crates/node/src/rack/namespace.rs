//! The rootless rack's user namespace, and why a kernel may refuse one.

use rustix::io::Errno;
use std::fs;
use wiglaf_linux::namespace::{NamespaceFlags, unshare};

/// Why a user without privileges can't have virtual nodes here.
#[derive(thiserror::Error, Debug)]
#[error("can't {action}: {errno}; {obstacle}")]
pub struct NamespaceError {
    action: &'static str,
    errno: Errno,
    obstacle: Obstacle,
}

impl NamespaceError {
    fn new(action: &'static str, errno: Errno) -> NamespaceError {
        let obstacle = find_obstacle(|path| fs::read_to_string(path).ok());
        NamespaceError {
            action,
            errno,
            obstacle,
        }
    }

    /// What is in the way, for a hint.
    #[must_use]
    pub fn obstacle(&self) -> &Obstacle {
        &self.obstacle
    }
}

/// What keeps an ordinary user from making namespaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// A sysctl of the kernel.
    Knob {
        /// Its name.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// What it should be set to.
        wanted: &'static str,
    },
    /// A seccomp filter, as container engines set.
    Seccomp,
    /// Nothing that can be seen from here.
    Unknown,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Obstacle::Knob {
                name,
                value,
                wanted,
            } => write!(
                f,
                "the sysctl {name} is {value}: an administrator can allow it with \
                 `sysctl -w {name}={wanted}` (for good: a line {name}={wanted} in \
                 /etc/sysctl.d/60-wiglaf.conf)"
            ),
            Obstacle::Seccomp => f.write_str(
                "a seccomp filter is on this process, as container engines set it: start the \
                 container with a profile that allows unshare, clone3 and mount \
                 (docker run --security-opt seccomp=unconfined), or run outside of it",
            ),
            Obstacle::Unknown => f.write_str(
                "no sysctl forbids it: the kernel lacks CONFIG_USER_NS, a security module \
                 refuses, or this is a chroot (see the kernel log)",
            ),
        }
    }
}

/// The limits on numbers of namespaces: 0 forbids that kind.
const LIMITS: [&str; 6] = [
    "user.max_user_namespaces",
    "user.max_net_namespaces",
    "user.max_pid_namespaces",
    "user.max_mnt_namespaces",
    "user.max_uts_namespaces",
    "user.max_ipc_namespaces",
];

fn find_obstacle(read: impl Fn(&str) -> Option<String>) -> Obstacle {
    let knob = |name: &'static str, forbidding: &str, wanted| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = read(&path)?.trim().to_owned();
        (value == forbidding).then_some(Obstacle::Knob {
            name,
            value,
            wanted,
        })
    };
    let seccomp = || {
        let status = read("/proc/self/status")?;
        let mode = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp:"))?;
        (mode.trim() == "2").then_some(Obstacle::Seccomp)
    };
    LIMITS
        .into_iter()
        .find_map(|name| knob(name, "0", "15000"))
        .or_else(|| knob("kernel.unprivileged_userns_clone", "0", "1"))
        .or_else(|| knob("kernel.apparmor_restrict_unprivileged_userns", "1", "0"))
        .or_else(seccomp)
        .unwrap_or(Obstacle::Unknown)
}

/// Moves this process, which has one thread, into a user namespace of its own where its user
/// and group keep their numbers and it has every capability, and into a network namespace
/// with nothing in it. It must not exec afterwards: that would cost it the capabilities.
pub(crate) fn enter_switch() -> Result<(), NamespaceError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let step = |action: &'static str| move |errno| NamespaceError::new(action, errno);

    unshare(NamespaceFlags::NEWUSER).map_err(step("make a user namespace"))?;
    // The kernel takes a group map from an ordinary user only after this: a process that could
    // drop groups could reach files that deny access to a group.
    write("/proc/self/setgroups", "deny").map_err(step("give up setgroups"))?;
    write("/proc/self/uid_map", &format!("{uid} {uid} 1"))
        .map_err(step("map the user into its namespace"))?;
    write("/proc/self/gid_map", &format!("{gid} {gid} 1"))
        .map_err(step("map the group into its namespace"))?;
    unshare(NamespaceFlags::NEWNET).map_err(step("make a network namespace"))
}

/// The names of the kinds of namespace that a virtual node has; the user's is the rack's.
pub(crate) const NODE: NamespaceFlags = NamespaceFlags::NEWPID
    .union(NamespaceFlags::NEWNS)
    .union(NamespaceFlags::NEWUTS)
    .union(NamespaceFlags::NEWIPC)
    .union(NamespaceFlags::NEWNET);

/// The error of a clone with [`NODE`].
pub(crate) fn node_refused(errno: Errno) -> NamespaceError {
    NamespaceError::new("make a virtual node's namespaces", errno)
}

fn write(path: &str, text: &str) -> Result<(), Errno> {
    fs::write(path, text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle(files: &[(&str, &str)]) -> Obstacle {
        find_obstacle(|path| {
            let found = files.iter().find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_knob_in_the_way_is_named_with_its_cure() {
        let open = ("/proc/sys/user/max_user_namespaces", "96365\n");
        let debian = ("/proc/sys/kernel/unprivileged_userns_clone", "0\n");
        let ubuntu = (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1\n",
        );
        assert_eq!(obstacle(&[open]), Obstacle::Unknown);
        for (files, name, cure) in [
            (
                vec![("/proc/sys/user/max_user_namespaces", "0\n"), debian],
                "user.max_user_namespaces is 0",
                "sysctl -w user.max_user_namespaces=15000",
            ),
            (
                vec![open, debian],
                "kernel.unprivileged_userns_clone is 0",
                "sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            (
                vec![open, ubuntu],
                "kernel.apparmor_restrict_unprivileged_userns is 1",
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ] {
            let text = obstacle(&files).to_string();
            assert!(text.contains(name) && text.contains(cure), "{text}");
        }
        let filtered = ("/proc/self/status", "Name:\tx\nSeccomp:\t2\n");
        assert_eq!(obstacle(&[open, filtered]), Obstacle::Seccomp);
    }
}
