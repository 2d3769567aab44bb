//! The cluster on this machine: its configuration, its head and its nodes.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wiglaf_head::config::{Config, Layout};
use wiglaf_wire::client::{NodeInfo, NodeState, Reply, Request};

use super::machine::is_too_old;
use super::{Finding, Grade};
use crate::daemons;
use crate::error::CommandError;
use crate::head::Head;

/// No machine that runs this has an earlier date (2026-01-01): one that does has lost its clock.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// A file may be this far ahead of the clock: the kernel's times are a tick late.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

pub(super) fn examine(layout: &Layout) -> Vec<Finding> {
    let written = fs::metadata(layout.database()).and_then(|found| found.modified());
    let mut findings = vec![
        clock(SystemTime::now(), written.ok()),
        configuration(&layout.config_file()),
    ];
    findings.extend(head(layout));
    findings
}

/// Times on files are the head's, and certificates are good for a time only.
fn clock(now: SystemTime, state_written: Option<SystemTime>) -> Finding {
    const SUBJECT: &str = "clock";
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ahead = state_written.and_then(|at| at.duration_since(now).ok());
    if since_epoch < EARLIEST {
        let text = "it is years behind: nodes would find no certificate valid";
        Finding::problem(SUBJECT, text).advise("set it, or start a time service")
    } else if let Some(ahead) = ahead.filter(|ahead| *ahead > CLOCK_SLACK) {
        let seconds = ahead.as_secs();
        let text =
            format!("it has been set back: the cluster's state was written {seconds} s later");
        Finding::warning(SUBJECT, text)
            .advise("`make` takes files from then for newer than those of now; set it right")
    } else {
        Finding::ok(SUBJECT, "files on all nodes get their times from it")
    }
}

fn configuration(path: &Path) -> Finding {
    const SUBJECT: &str = "configuration";
    let shown = path.display();
    match (Config::load(path), path.exists()) {
        (Ok(_), true) => Finding::ok(SUBJECT, format!("{shown}")),
        (Ok(_), false) => Finding::ok(SUBJECT, format!("no {shown}: all defaults")),
        (Err(error), _) => {
            let (text, _) = CommandError::from(error).into_words();
            Finding::problem(SUBJECT, text)
                .advise("correct it; `wiglaf init` writes one with comments")
        }
    }
}

fn head(layout: &Layout) -> Vec<Finding> {
    const SUBJECT: &str = "head";
    let trouble = |error: CommandError, grade| {
        let (text, advice) = error.into_words();
        let finding = Finding::new(SUBJECT, grade, text);
        vec![match advice {
            Some(advice) => finding.advise(advice),
            None => finding,
        }]
    };
    let ask = || -> Result<_, CommandError> {
        let mut head = Head::connect_to(layout)?;
        let status = daemons::status(&mut head)?;
        match head.ask(&Request::Nodes)? {
            Reply::Nodes(nodes) => Ok((status, nodes)),
            other => Err(CommandError::from_reply(other)),
        }
    };
    match ask() {
        Ok((status, list)) => {
            let (version, pid) = (&status.version, status.pid);
            let text = format!("cluster {}, version {version}, PID {pid}", status.cluster);
            let running = if version == env!("CARGO_PKG_VERSION") {
                Finding::ok(SUBJECT, text)
            } else {
                let own = env!("CARGO_PKG_VERSION");
                Finding::warning(SUBJECT, format!("{text}; this command is of version {own}"))
                    .advise("`wiglaf down`, then `wiglaf up` or `wiglaf head`")
            };
            vec![running, nodes(&list)]
        }
        Err(error) if !error.is_connection_lost() => trouble(error, Grade::Problem),
        // A head that has ended leaves a keeper behind, which holds its tasks.
        Err(error) if layout.keeper_socket().exists() => trouble(error, Grade::Problem),
        Err(error) => trouble(error, Grade::Ok),
    }
}

fn nodes(list: &[NodeInfo]) -> Finding {
    const SUBJECT: &str = "nodes";
    let named = |wanted: &dyn Fn(&NodeInfo) -> bool| {
        let names = list.iter().filter(|node| wanted(node));
        names
            .map(|node| node.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let old = named(&|node| is_too_old(&node.machine.kernel));
    if !old.is_empty() {
        return Finding::problem(SUBJECT, format!("the kernels of {old} are too old"))
            .advise("use Linux 6.1 or later there");
    }
    let mut parts = Vec::new();
    for state in [
        NodeState::Up,
        NodeState::Boot,
        NodeState::Drain,
        NodeState::Unavailable,
        NodeState::Suspect,
        NodeState::Error,
        NodeState::Down,
    ] {
        let names = named(&|node| node.state == state);
        if !names.is_empty() {
            parts.push(format!("{} {names}", state.name()));
        }
    }
    let text = parts.join("; ");
    let is_broken = |node: &NodeInfo| {
        matches!(
            node.state,
            NodeState::Suspect | NodeState::Error | NodeState::Down
        )
    };
    if list.is_empty() {
        Finding::warning(SUBJECT, "none yet").advise("`wiglaf up -n 4` makes virtual ones")
    } else if list.iter().any(is_broken) {
        Finding::warning(SUBJECT, text)
            .advise("`wiglaf node show NODE` tells more; see to its power, its network, its agent")
    } else {
        Finding::ok(SUBJECT, text)
    }
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::agent::Machine;
    use wiglaf_wire::id::NodeId;

    use super::*;

    fn node(id: u32, state: NodeState, kernel: &str) -> NodeInfo {
        NodeInfo {
            id: NodeId(id),
            name: format!("n{id}"),
            state,
            uid: 0,
            gid: 0,
            mode: 0o111,
            slots: 1,
            tasks: 0,
            load_centi: 0,
            available_kib: 0,
            machine: Machine {
                kernel: kernel.to_owned(),
                ..Machine::default()
            },
            is_virtual: false,
        }
    }

    #[test]
    fn nodes_are_named_by_their_states() {
        let up = node(1, NodeState::Up, "6.1.0");
        let finding = nodes(&[up.clone(), node(2, NodeState::Up, "6.12.1")]);
        assert_eq!(
            (finding.grade, finding.text.as_str()),
            (Grade::Ok, "up n1, n2")
        );
        let finding = nodes(&[up.clone(), node(2, NodeState::Down, "")]);
        let expected = (Grade::Warning, "up n1; down n2");
        assert_eq!((finding.grade, finding.text.as_str()), expected);
        let finding = nodes(&[up, node(2, NodeState::Up, "5.10.0")]);
        assert_eq!(finding.grade, Grade::Problem);
        assert!(finding.text.contains("n2") && !finding.text.contains("n1"));
        assert_eq!(nodes(&[]).grade, Grade::Warning);
    }

    #[test]
    fn a_lost_clock_is_noticed() {
        let now = UNIX_EPOCH + EARLIEST + Duration::from_secs(1000);
        let later = |seconds| Some(now + Duration::from_secs(seconds));
        assert_eq!(clock(now, None).grade, Grade::Ok);
        assert_eq!(clock(now, later(0)).grade, Grade::Ok);
        assert_eq!(clock(now, Some(UNIX_EPOCH)).grade, Grade::Ok);
        assert_eq!(clock(now, later(3600)).grade, Grade::Warning);
        assert_eq!(clock(UNIX_EPOCH, None).grade, Grade::Problem);
    }

    #[test]
    fn a_configuration_is_read_as_the_head_would() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wiglaf.toml");
        assert_eq!(configuration(&path).grade, Grade::Ok);
        fs::write(&path, "lease_ms = 60000\n").unwrap();
        assert_eq!(configuration(&path).grade, Grade::Ok);
        fs::write(&path, "leese_ms = 60000\n").unwrap();
        let finding = configuration(&path);
        assert_eq!(finding.grade, Grade::Problem);
        assert!(finding.text.contains("leese_ms"), "{}", finding.text);
    }

    #[test]
    fn a_head_that_is_not_there_is_no_problem_unless_its_keeper_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            run: dir.path().to_owned(),
            state: dir.path().to_owned(),
        };
        assert_eq!(head(&layout)[0].grade, Grade::Ok);
        fs::write(layout.keeper_socket(), "").unwrap();
        assert_eq!(head(&layout)[0].grade, Grade::Problem);
    }
}
