//! What this machine's kernel allows.

use std::fs;

use rustix::process::Resource;
use wiglaf_head::node_table::FIRST_NODE_PID;

use super::{Finding, Role};

/// Oldest kernel that everything is made for.
const OLDEST_KERNEL: Version = (6, 1);
/// From here on each PID namespace has a limit of its own.
const OWN_PID_LIMITS: Version = (6, 14);
/// Highest `kernel.pid_max` (`PID_MAX_LIMIT`, linux/threads.h).
const PID_LIMIT: i64 = 4 << 20;
/// With fewer descriptors, a deputy runs out of them while a build has its files open.
const FEW_DESCRIPTORS: u64 = 4096;

/// Of the kernel: major and minor.
type Version = (u32, u32);

pub(super) fn examine(role: Role) -> Vec<Finding> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let version = version_of(&release);
    let descriptors = rustix::process::getrlimit(Resource::Nofile).maximum;
    vec![
        kernel(&release, version),
        user_namespaces(role, &NamespaceLimits::read()),
        tracing(role, read("/proc/sys/kernel/yama/ptrace_scope")),
        pids(role, version, read("/proc/sys/kernel/pid_max")),
        open_files(role, descriptors),
    ]
}

fn read(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `6.1.0-18-amd64` is 6.1.
pub(super) fn version_of(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether everything is made for a kernel of this release.
pub(super) fn is_too_old(release: &str) -> bool {
    version_of(release).is_some_and(|version| version < OLDEST_KERNEL)
}

fn kernel(release: &str, version: Option<Version>) -> Finding {
    const SUBJECT: &str = "kernel";
    let (major, minor) = OLDEST_KERNEL;
    match version {
        Some(version) if version >= OLDEST_KERNEL => {
            Finding::ok(SUBJECT, format!("Linux {release}"))
        }
        Some(_) => Finding::problem(SUBJECT, format!("Linux {release} is too old"))
            .advise(format!("use Linux {major}.{minor} or later")),
        None => Finding::warning(SUBJECT, format!("its release {release} is no number")).advise(
            format!("see to it that it is Linux {major}.{minor} or later"),
        ),
    }
}

/// What keeps ordinary users from making user namespaces; `None`: the kernel has no such switch.
#[derive(Clone, Copy, Debug, Default)]
struct NamespaceLimits {
    most: Option<i64>,
    apparmor_restricts: Option<i64>,
    unprivileged_clone: Option<i64>,
}

impl NamespaceLimits {
    fn read() -> NamespaceLimits {
        NamespaceLimits {
            most: read("/proc/sys/user/max_user_namespaces"),
            apparmor_restricts: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            unprivileged_clone: read("/proc/sys/kernel/unprivileged_userns_clone"),
        }
    }

    /// The setting that forbids them, and the one that would allow them.
    fn obstacle(&self) -> Option<(&'static str, &'static str)> {
        if self.most.is_none() {
            Some((
                "the kernel has none",
                "use a kernel with CONFIG_USER_NS, or a cluster that root starts",
            ))
        } else if self.most == Some(0) {
            Some((
                "user.max_user_namespaces = 0 forbids them",
                "sudo sysctl -w user.max_user_namespaces=10000",
            ))
        } else if self.unprivileged_clone == Some(0) {
            Some((
                "kernel.unprivileged_userns_clone = 0 forbids them to ordinary users",
                "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            ))
        } else if self.apparmor_restricts.is_some_and(|value| value != 0) {
            Some((
                "kernel.apparmor_restrict_unprivileged_userns = 1 takes away from ordinary users \
                 what they are good for",
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ))
        } else {
            None
        }
    }
}

fn user_namespaces(role: Role, limits: &NamespaceLimits) -> Finding {
    const SUBJECT: &str = "user namespaces";
    match (limits.obstacle(), role) {
        (None, _) => Finding::ok(SUBJECT, "ordinary users can have clusters of their own"),
        (Some((obstacle, cure)), Role::Owner) => Finding::problem(
            SUBJECT,
            format!("{obstacle}: you can't have a cluster of your own"),
        )
        .advise(format!("{cure}; or use a cluster that root starts")),
        (Some((obstacle, _)), Role::Root | Role::Guest) => {
            let text = format!("{obstacle}; all users can use a cluster that root starts");
            Finding::ok(SUBJECT, text)
        }
    }
}

/// The keeper traces ghosts.
fn tracing(role: Role, scope: Option<i64>) -> Finding {
    const SUBJECT: &str = "tracing";
    match scope {
        None => Finding::ok(SUBJECT, "not restricted"),
        Some(scope @ ..=1) => Finding::ok(SUBJECT, format!("kernel.yama.ptrace_scope = {scope}")),
        Some(2) => {
            let text = "kernel.yama.ptrace_scope = 2: only root's keeper can trace ghosts";
            let finding = Finding::new(SUBJECT, role.matters_to_owners(), text);
            match role {
                Role::Owner => finding.advise(
                    "sudo sysctl -w kernel.yama.ptrace_scope=1, or use a cluster that root starts",
                ),
                Role::Root | Role::Guest => finding,
            }
        }
        Some(scope) => {
            let text = format!("kernel.yama.ptrace_scope = {scope}: no keeper can trace ghosts");
            Finding::problem(SUBJECT, text).advise(
                "this setting lasts until the machine is booted anew: set it to 1 in \
                 /etc/sysctl.d and boot",
            )
        }
    }
}

/// Processes on nodes have PIDs from [`FIRST_NODE_PID`] on.
fn pids(role: Role, version: Option<Version>, most: Option<i64>) -> Finding {
    const SUBJECT: &str = "process numbers";
    let Some(most) = most else {
        return Finding::warning(SUBJECT, "kernel.pid_max can't be read").advise("mount /proc");
    };
    let text = format!("kernel.pid_max = {most}");
    let is_raised = most >= PID_LIMIT;
    let first = i64::from(FIRST_NODE_PID);
    if is_raised || version.is_some_and(|version| version >= OWN_PID_LIMITS) {
        // Each node raises its own.
        return Finding::ok(SUBJECT, text);
    }
    let cure = format!("sudo sysctl -w kernel.pid_max={PID_LIMIT}");
    match role {
        Role::Root => Finding::ok(SUBJECT, format!("{text}; nodes on this machine raise it")),
        Role::Owner | Role::Guest if most > first => Finding::warning(
            SUBJECT,
            format!("{text} leaves room for the processes of some nodes only"),
        )
        .advise(cure),
        Role::Guest => Finding::ok(SUBJECT, text),
        Role::Owner => Finding::problem(
            SUBJECT,
            format!("{text}, but processes on nodes have numbers from {first} on"),
        )
        .advise(cure),
    }
}

fn open_files(role: Role, most: Option<u64>) -> Finding {
    const SUBJECT: &str = "open files";
    match most {
        None => Finding::ok(SUBJECT, "not limited"),
        Some(most) if role == Role::Root => Finding::ok(
            SUBJECT,
            format!("at most {most}; the keeper of root's cluster has more"),
        ),
        Some(most) if most < FEW_DESCRIPTORS => {
            let text =
                format!("at most {most} in one process: few for a deputy with much to serve");
            Finding::warning(SUBJECT, text)
                .advise("raise the hard limit `nofile` in /etc/security/limits.conf")
        }
        Some(most) => Finding::ok(SUBJECT, format!("at most {most} in one process")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        let grade = |release: &str| kernel(release, version_of(release)).grade;
        assert_eq!(grade("6.1.0-18-amd64"), Grade::Ok);
        assert_eq!(grade("6.18.44"), Grade::Ok);
        assert_eq!(grade("10.0"), Grade::Ok);
        assert_eq!(grade("6.0.19"), Grade::Problem);
        assert_eq!(grade("5.15.0-91-generic"), Grade::Problem);
        assert_eq!(grade("rolling"), Grade::Warning);
        assert!(is_too_old("5.15.0") && !is_too_old("6.1.2") && !is_too_old("?"));
    }

    #[test]
    fn whoever_needs_user_namespaces_hears_which_setting_forbids_them() {
        let free = NamespaceLimits {
            most: Some(96_000),
            ..NamespaceLimits::default()
        };
        let obstacles = [
            (NamespaceLimits::default(), "CONFIG_USER_NS"),
            (
                NamespaceLimits {
                    most: Some(0),
                    ..free
                },
                "max_user_namespaces",
            ),
            (
                NamespaceLimits {
                    unprivileged_clone: Some(0),
                    ..free
                },
                "unprivileged_userns_clone",
            ),
            (
                NamespaceLimits {
                    apparmor_restricts: Some(1),
                    ..free
                },
                "apparmor_restrict",
            ),
        ];
        for (limits, cure) in obstacles {
            let finding = user_namespaces(Role::Owner, &limits);
            assert_eq!(finding.grade, Grade::Problem);
            assert!(finding.advice.unwrap().contains(cure));
            assert_eq!(user_namespaces(Role::Root, &limits).grade, Grade::Ok);
            assert_eq!(user_namespaces(Role::Guest, &limits).grade, Grade::Ok);
        }
        assert_eq!(user_namespaces(Role::Owner, &free).grade, Grade::Ok);
    }

    #[test]
    fn tracing_is_root_s_alone_or_nobodys() {
        let grade = |role, scope| tracing(role, scope).grade;
        for role in [Role::Root, Role::Owner, Role::Guest] {
            assert_eq!(grade(role, None), Grade::Ok);
            assert_eq!(grade(role, Some(1)), Grade::Ok);
            assert_eq!(grade(role, Some(3)), Grade::Problem);
        }
        assert_eq!(grade(Role::Root, Some(2)), Grade::Ok);
        assert_eq!(grade(Role::Guest, Some(2)), Grade::Ok);
        assert_eq!(grade(Role::Owner, Some(2)), Grade::Problem);
    }

    #[test]
    fn a_low_pid_limit_stops_only_who_can_not_raise_it() {
        let grade = |role, version, most| pids(role, Some(version), Some(most)).grade;
        assert_eq!(grade(Role::Owner, (6, 1), 32_768), Grade::Problem);
        assert_eq!(grade(Role::Owner, (6, 1), 600_000), Grade::Warning);
        assert_eq!(grade(Role::Owner, (6, 1), PID_LIMIT), Grade::Ok);
        assert_eq!(grade(Role::Owner, (6, 14), 32_768), Grade::Ok);
        assert_eq!(grade(Role::Root, (6, 1), 32_768), Grade::Ok);
        assert_eq!(pids(Role::Root, Some((6, 1)), None).grade, Grade::Warning);
    }

    #[test]
    fn few_descriptors_are_a_warning() {
        assert_eq!(open_files(Role::Owner, Some(1024)).grade, Grade::Warning);
        assert_eq!(open_files(Role::Owner, Some(1 << 20)).grade, Grade::Ok);
        assert_eq!(open_files(Role::Root, Some(1024)).grade, Grade::Ok);
        assert_eq!(open_files(Role::Owner, None).grade, Grade::Ok);
    }
}
