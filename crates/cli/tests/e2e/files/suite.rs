//! pjdfstest, a suite of others' for what POSIX asks of a file system.

use std::collections::BTreeSet;
use std::fs;

use crate::cluster::{output_of, skip, text};
use crate::files::ground::{TestDirectory, tool};
use crate::files::{At, Ground};

/// What the suite needs to be told: features that Linux has, users that Debian has.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;
/// Fewer than this many cases mean that the suite did not run.
const MOST_CASES: usize = 350;

#[test]
fn v4_pjdfstest_fails_nowhere_that_it_does_not_fail_natively() {
    let Some(program) = tool("pjdfstest") else {
        return skip("pjdfstest is not installed (`cargo xtask ci` does that)");
    };
    let program = program.display().to_string();
    let Some(mut dir) = TestDirectory::new("pjdfstest") else {
        return;
    };
    // For what can't be done across file systems, though the view be one on the node.
    assert!(dir.mount("second", &["-t", "tmpfs", "none"]));
    let second = dir.path().join("second").display().to_string();
    let Some(ground) = Ground::view_in(dir, 1) else {
        return;
    };
    let configuration = ground.path("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).unwrap();
    let run = |at: At, name: &str| {
        let dir = ground.open_directory(name);
        let output = output_of(ground.command(
            at,
            &[&program, "-c", &configuration, "-p", &dir, "-s", &second],
        ));
        let said = text(&output.stdout);
        let cases = Cases::read(&said);
        assert!(
            cases.passed >= MOST_CASES,
            "{} {said}{}",
            output.status,
            text(&output.stderr)
        );
        let left = fs::read_dir(&dir).unwrap().count();
        (cases, said, left)
    };
    let (here, ..) = run(At::Head, "natively");
    let (there, said, left) = run(At::Node(1), "view");
    let more: Vec<_> = there.failed.difference(&here.failed).collect();
    assert!(more.is_empty(), "{more:#?}\n{said}");
    // One is skipped: how many links a file may have `pathconf` does not know of FUSE.
    assert!(
        there.passed + 1 >= here.passed,
        "{} of {} passed",
        there.passed,
        here.passed
    );
    assert_eq!(left, 0);
    ground.down();
}

struct Cases {
    passed: usize,
    failed: BTreeSet<String>,
}

impl Cases {
    /// Lines are `name   ok`, `name   FAILED` or `name   skipped`, and a summary.
    fn read(said: &str) -> Cases {
        let lines = said.lines().filter_map(|line| {
            let (name, how) = line.rsplit_once(' ')?;
            Some((name.trim(), how))
        });
        let (mut passed, mut failed) = (0, BTreeSet::new());
        for (name, how) in lines {
            match how {
                "ok" => passed += 1,
                "FAILED" => {
                    failed.insert(name.to_owned());
                }
                _ => {}
            }
        }
        Cases { passed, failed }
    }
}
