//! Whether nodes can see this machine's files, and how soon they see what changes.

use std::collections::BTreeSet;

use rustix::io::Errno;
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_process::keeper::{Unwatched, mark_all, unwatched};
use wiglaf_view::ViewError;
use wiglaf_view::session::UNWATCHED_MS;

use super::{Finding, Role};

pub(super) fn examine(role: Role) -> Vec<Finding> {
    vec![device(role, wiglaf_view::check_device()), watching(role)]
}

/// An ordinary user's virtual nodes can do without it; a node of another head can't.
fn device(role: Role, opened: Result<(), ViewError>) -> Finding {
    const SUBJECT: &str = "/dev/fuse";
    let finding = match (opened, role) {
        (Ok(()), _) => return Finding::ok(SUBJECT, "nodes on this machine can show files"),
        (Err(_), Role::Guest) => return Finding::ok(SUBJECT, "root's nodes need it, you don't"),
        (Err(error), Role::Owner) => Finding::warning(SUBJECT, error.to_string()),
        (Err(error), Role::Root) => Finding::problem(SUBJECT, error.to_string()),
    };
    finding
        .advise("until then virtual nodes read this machine's disk by its kernel (`--files disk`)")
}

const SUBJECT: &str = "watching files";

/// Why not all file systems are watched.
#[derive(Debug)]
enum Trial {
    /// Marks were tried on all of them: so many hold, these are without.
    Tried(usize, Vec<Unwatched>),
    /// There is no group to mark them for.
    NoGroup(Errno),
    Unreadable(std::io::Error),
}

fn watching(role: Role) -> Finding {
    match role {
        Role::Root => judge(try_all()),
        Role::Guest => Finding::ok(SUBJECT, "not tried: only root can")
            .advise("`sudo wiglaf doctor` tries each file system"),
        Role::Owner => Finding::warning(
            SUBJECT,
            format!("only root can: {}", late("what is changed on this machine")),
        )
        .advise("a cluster that root starts sees it at once"),
    }
}

fn try_all() -> Trial {
    let group = match Group::new(Queue::Bounded) {
        Ok(group) => group,
        Err(errno) => return Trial::NoGroup(errno),
    };
    // What is skipped is found below, with what nobody tries.
    let marked = match mark_all(&group, &BTreeSet::new(), |_| {}) {
        Ok(marked) => marked,
        Err(error) => return Trial::Unreadable(error),
    };
    match unwatched(&marked) {
        Ok(rest) => Trial::Tried(marked.len(), rest),
        Err(error) => Trial::Unreadable(error),
    }
}

fn judge(trial: Trial) -> Finding {
    match trial {
        Trial::Tried(marked, rest) if rest.is_empty() => {
            Finding::ok(SUBJECT, format!("all {marked} file systems that nodes see"))
        }
        Trial::Tried(_, rest) => {
            let names = rest
                .iter()
                .map(|one| format!("{} ({})", one.path.display(), one.kind));
            let names = names.collect::<Vec<_>>().join(", ");
            let text = format!("these can't be watched: {names}");
            Finding::warning(SUBJECT, text).advise(late("what is changed there on this machine"))
        }
        Trial::NoGroup(errno) => {
            let finding = Finding::warning(
                SUBJECT,
                format!(
                    "fanotify(7): {errno}: {}",
                    late("what is changed on this machine")
                ),
            );
            match errno {
                Errno::PERM => finding.advise("in a container, give it CAP_SYS_ADMIN"),
                Errno::NOSYS => finding.advise("use a kernel with CONFIG_FANOTIFY"),
                _ => finding,
            }
        }
        Trial::Unreadable(error) => {
            Finding::problem(SUBJECT, format!("the mount table: {error}")).advise("mount /proc")
        }
    }
}

fn late(what: &str) -> String {
    let seconds = UNWATCHED_MS.div_ceil(1000);
    format!("nodes see {what} after up to {seconds} s, or when the next command is started there")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Grade;
    use super::*;

    #[test]
    fn what_can_not_be_watched_is_named() {
        assert_eq!(judge(Trial::Tried(3, vec![])).grade, Grade::Ok);
        let rest = vec![Unwatched {
            path: PathBuf::from("/home"),
            kind: "nfs4".to_owned(),
        }];
        let finding = judge(Trial::Tried(3, rest));
        assert_eq!(finding.grade, Grade::Warning);
        assert!(finding.text.contains("/home (nfs4)"), "{}", finding.text);
        assert!(finding.advice.unwrap().contains("up to 1 s"));
        assert_eq!(judge(Trial::NoGroup(Errno::PERM)).grade, Grade::Warning);
    }

    #[test]
    fn the_device_is_needed_by_nodes_and_missed_by_who_has_some() {
        let missing = || Err(ViewError::Thread(std::io::ErrorKind::NotFound.into()));
        assert_eq!(device(Role::Root, Ok(())).grade, Grade::Ok);
        assert_eq!(device(Role::Root, missing()).grade, Grade::Problem);
        assert_eq!(device(Role::Owner, missing()).grade, Grade::Warning);
        assert_eq!(device(Role::Guest, missing()).grade, Grade::Ok);
    }

    #[test]
    fn ordinary_users_hear_what_to_expect() {
        assert_eq!(watching(Role::Guest).grade, Grade::Ok);
        assert_eq!(watching(Role::Owner).grade, Grade::Warning);
    }
}
