//! `wiglaf doctor`

mod cluster;
mod files;
mod machine;

use serde::Serialize;
use wiglaf_head::config::Layout;

use crate::CommandResult;
use crate::error::CommandError;
use crate::output;

/// Exit code if there is a problem.
const EXIT_PROBLEM: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  wiglaf doctor                      before the first `wiglaf up`, and whenever something is odd
  sudo wiglaf doctor                 as root it also tries which file systems can be watched
  wiglaf doctor --json | jq '.[] | select(.grade != \"ok\")'";

/// Check this machine and its cluster: what is wrong, and what to do about it
///
/// Nothing is changed. A warning is something that you should know of; a problem keeps something
/// from working, and then the exit code is 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let findings = examine()?;
    if args.json {
        output::json(&findings)?;
    } else {
        output::print(&render(&findings))?;
    }
    let is_bad = findings.iter().any(|one| one.grade == Grade::Problem);
    Ok(if is_bad { EXIT_PROBLEM } else { 0 })
}

fn examine() -> Result<Vec<Finding>, CommandError> {
    let layout = Layout::reachable()?;
    let role = if rustix::process::geteuid().is_root() {
        Role::Root
    } else if layout == Layout::system() {
        Role::Guest
    } else {
        Role::Owner
    };
    let mut findings = machine::examine(role);
    findings.extend(files::examine(role));
    findings.extend(cluster::examine(&layout));
    Ok(findings)
}

/// Who asks: different users need different things of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Root,
    /// An ordinary user with a cluster of their own, or none so far.
    Owner,
    /// An ordinary user who uses the cluster that root has started.
    Guest,
}

impl Role {
    /// What keeps an ordinary user's cluster from working; with root's, it is worth knowing.
    fn matters_to_owners(self) -> Grade {
        match self {
            Role::Owner => Grade::Problem,
            Role::Guest | Role::Root => Grade::Ok,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warning,
    Problem,
}

impl Grade {
    fn name(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Warning => "warning",
            Grade::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    subject: &'static str,
    grade: Grade,
    text: String,
    /// What to do.
    advice: Option<String>,
}

impl Finding {
    fn new(subject: &'static str, grade: Grade, text: impl Into<String>) -> Finding {
        Finding {
            subject,
            grade,
            text: text.into(),
            advice: None,
        }
    }

    fn ok(subject: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Ok, text)
    }

    fn warning(subject: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Warning, text)
    }

    fn problem(subject: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Problem, text)
    }

    fn advise(mut self, advice: impl Into<String>) -> Finding {
        self.advice = Some(advice.into());
        self
    }
}

/// A line for each finding, and the advice below.
fn render(findings: &[Finding]) -> String {
    let longest = |width: fn(&Finding) -> usize| findings.iter().map(width).max().unwrap_or(0);
    let grades = longest(|one| one.grade.name().len());
    let subjects = longest(|one| one.subject.len());
    let mut text = String::new();
    for one in findings {
        let (grade, subject) = (one.grade.name(), one.subject);
        text.push_str(&format!(
            "{grade:grades$}  {subject:subjects$}  {}\n",
            one.text
        ));
        if let Some(advice) = &one.advice {
            let indent = grades + subjects + 4;
            text.push_str(&format!("{:indent$}-> {advice}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_it_is_about() {
        let findings = [
            Finding::ok("kernel", "Linux 6.18.1"),
            Finding::problem("/dev/fuse", "it is not there").advise("modprobe fuse"),
            Finding::warning("clock", "odd"),
        ];
        let expected = "\
ok       kernel     Linux 6.18.1
problem  /dev/fuse  it is not there
                    -> modprobe fuse
warning  clock      odd
";
        assert_eq!(render(&findings), expected);
    }

    #[test]
    fn programs_read_grades_as_words() {
        let finding = Finding::problem("clock", "slow").advise("set it");
        let json = serde_json::to_value(finding).unwrap();
        let expected = serde_json::json!({
            "subject": "clock", "grade": "problem", "text": "slow", "advice": "set it",
        });
        assert_eq!(json, expected);
    }
}
