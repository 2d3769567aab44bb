//! `wiglaf view …`

use clap::Subcommand;
use serde::Serialize;
use wiglaf_wire::client::{NodeCheck, Reply, Request, ViewInfo};
use wiglaf_wire::view::ViewState;

use super::which::{Which, all_have_answered};
use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

/// Exit code of a check that has found something.
const EXIT_DIFFERENT: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  wiglaf view status                 what each node knows of the head's files, and what it asked
  wiglaf view status -w n1 --json    the same of one node, with exact numbers
  wiglaf view check                  compare what the nodes believe with what is so; 1 if it differs";

/// Look at the nodes' views: the head's files as tasks see them there
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show what the nodes know of the head's files, and what that saves
    ///
    /// One line for each node and user; root sees all users'. FILES are known, so that they are
    /// used without asking. REQUESTS are the node's kernel's; what the agent did not know it ASKED
    /// the head; HIT% is the rest. READ and WRITTEN went over the network; KEPT was on a disk of the
    /// node from before. CHANGES are what the head took back because somebody else changed a file.
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Compare what the nodes believe of the head's files with what is so
    ///
    /// What changes meanwhile is no difference. Exit code 0: there is none; 1: there are some;
    /// 125: not all nodes have answered.
    Check {
        #[command(flatten)]
        which: Which,
    },
}

pub(crate) fn run(args: Args) -> CommandResult {
    match args.action {
        Action::Status { which } => status(which),
        Action::Check { which } => check(which),
    }
}

fn status(which: Which) -> CommandResult {
    let nodes = which.nodes;
    let (list, silent) = match Head::connect()?.ask(&Request::Views { nodes })? {
        Reply::Views { list, silent } => (list, silent),
        other => return Err(CommandError::from_reply(other)),
    };
    if which.json {
        output::json(&list.iter().map(status_row).collect::<Vec<_>>())?;
    } else if !list.is_empty() {
        let cells: Vec<_> = list.iter().map(status_cells).collect();
        output::table(&STATUS_COLUMNS, &cells)?;
    } else if silent.is_empty() {
        eprintln!("no views yet: a node makes one when it starts a task");
    }
    all_have_answered(&silent)
}

fn check(which: Which) -> CommandResult {
    let nodes = which.nodes;
    let (list, silent) = match Head::connect()?.ask(&Request::CheckViews { nodes })? {
        Reply::ViewsChecked { list, silent } => (list, silent),
        other => return Err(CommandError::from_reply(other)),
    };
    if which.json {
        output::json(&list.iter().map(check_row).collect::<Vec<_>>())?;
    } else {
        output::print(&list.iter().map(check_text).collect::<String>())?;
    }
    all_have_answered(&silent)?;
    Ok(exit_code(&list))
}

fn exit_code(list: &[NodeCheck]) -> u8 {
    let mut views = list.iter().flat_map(|node| &node.views);
    let is_different = views.any(|view| !view.differences.is_empty());
    if is_different { EXIT_DIFFERENT } else { 0 }
}

const STATUS_COLUMNS: [Column; 11] = [
    Column("NODE", Align::Left),
    Column("USER", Align::Left),
    Column("TASKS", Align::Right),
    Column("FILES", Align::Right),
    Column("REQUESTS", Align::Right),
    Column("ASKED", Align::Right),
    Column("HIT%", Align::Right),
    Column("READ", Align::Right),
    Column("KEPT", Align::Right),
    Column("WRITTEN", Align::Right),
    Column("CHANGES", Align::Right),
];

fn status_cells(info: &ViewInfo) -> Vec<String> {
    let view = &info.view;
    vec![
        info.node.clone(),
        output::user(view.uid),
        view.tasks.to_string(),
        view.files.to_string(),
        view.requests.to_string(),
        view.questions.to_string(),
        hit_permille(view).map_or_else(|| "-".to_owned(), tenths),
        output::bytes(view.bytes_read),
        output::bytes(view.bytes_kept),
        output::bytes(view.bytes_written),
        view.changes.to_string(),
    ]
}

/// Requests in a thousand that needed no question; none if there were more questions than
/// requests, since one may need several.
fn hit_permille(view: &ViewState) -> Option<u32> {
    let unasked = u128::from(view.requests.saturating_sub(view.questions));
    let permille = (unasked * 1000).checked_div(u128::from(view.requests))?;
    u32::try_from(permille).ok()
}

fn tenths(permille: u32) -> String {
    format!("{}.{}", permille / 10, permille % 10)
}

#[derive(Serialize)]
struct StatusRow {
    node: String,
    user: String,
    uid: u32,
    tasks: u32,
    files: u64,
    requests: u64,
    asked: u64,
    /// Of the requests; none, if there were none.
    hit_rate: Option<f64>,
    bytes_read: u64,
    /// Of what the head had only to name: the node had kept it.
    bytes_kept: u64,
    bytes_written: u64,
    changes: u64,
    content_bytes: u64,
    handles: u64,
}

fn status_row(info: &ViewInfo) -> StatusRow {
    let view = &info.view;
    StatusRow {
        node: info.node.clone(),
        user: output::user(view.uid),
        uid: view.uid,
        tasks: view.tasks,
        files: view.files,
        requests: view.requests,
        asked: view.questions,
        hit_rate: hit_permille(view).map(|permille| f64::from(permille) / 1000.0),
        bytes_read: view.bytes_read,
        bytes_kept: view.bytes_kept,
        bytes_written: view.bytes_written,
        changes: view.changes,
        content_bytes: view.content_bytes,
        handles: view.handles,
    }
}

/// A line for each view, and one below for each difference.
fn check_text(node: &NodeCheck) -> String {
    let name = &node.node;
    if node.views.is_empty() {
        return format!("{name}: no views, nothing to compare\n");
    }
    let mut text = String::new();
    for view in &node.views {
        let (user, compared) = (output::user(view.uid), view.compared);
        let found = match view.differences.len() {
            0 => "no difference".to_owned(),
            1 => "1 difference".to_owned(),
            more => format!("{more} differences"),
        };
        text.push_str(&format!("{name}: {user}: {compared} compared, {found}\n"));
        for difference in &view.differences {
            text.push_str(&format!("  {difference}\n"));
        }
    }
    text
}

#[derive(Serialize)]
struct CheckRow<'a> {
    node: &'a str,
    views: Vec<CheckedRow<'a>>,
}

#[derive(Serialize)]
struct CheckedRow<'a> {
    user: String,
    uid: u32,
    compared: u64,
    differences: &'a [String],
}

fn check_row(node: &NodeCheck) -> CheckRow<'_> {
    let views = node.views.iter().map(|view| CheckedRow {
        user: output::user(view.uid),
        uid: view.uid,
        compared: view.compared,
        differences: &view.differences,
    });
    CheckRow {
        node: &node.node,
        views: views.collect(),
    }
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::view::ViewCheck;

    use super::*;

    fn info(requests: u64, questions: u64) -> ViewInfo {
        ViewInfo {
            node: "n1".to_owned(),
            view: ViewState {
                uid: 0,
                tasks: 2,
                requests,
                questions,
                changes: 3,
                bytes_read: 5 << 20,
                bytes_kept: 0,
                bytes_written: 1,
                files: 7,
                content_bytes: 0,
                handles: 0,
            },
        }
    }

    #[test]
    fn a_line_says_what_was_saved() {
        let cells = status_cells(&info(1000, 31));
        let expected = [
            "n1", "root", "2", "7", "1000", "31", "96.9", "5.0M", "0B", "1B", "3",
        ];
        assert_eq!(cells, expected);
    }

    #[test]
    fn hits_are_none_without_requests_and_never_negative() {
        let hits = |requests, questions| status_cells(&info(requests, questions))[6].clone();
        assert_eq!(hits(0, 5), "-");
        assert_eq!(hits(2, 5), "0.0");
        assert_eq!(hits(3, 0), "100.0");
        assert_eq!(hits(u64::MAX, 0), "100.0");
    }

    #[test]
    fn differences_stand_below_their_view() {
        let check = |uid, compared, differences: &[&str]| ViewCheck {
            uid,
            compared,
            differences: differences.iter().map(|text| (*text).to_owned()).collect(),
        };
        let node = NodeCheck {
            node: "n1".to_owned(),
            views: vec![check(0, 12, &[]), check(4_000_000, 5, &["/a: gone"])],
        };
        let text = "n1: root: 12 compared, no difference\n\
                    n1: 4000000: 5 compared, 1 difference\n  /a: gone\n";
        assert_eq!(check_text(&node), text);
        let none = NodeCheck {
            node: "n2".to_owned(),
            views: vec![],
        };
        assert_eq!(check_text(&none), "n2: no views, nothing to compare\n");
        assert_eq!(exit_code(&[none.clone(), node]), EXIT_DIFFERENT);
        assert_eq!(exit_code(&[none]), 0);
    }
}
