//! What a user sees of a build: terminals, and what is told by `--plan`, `--json`, `--verbose`.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Tree, succeeded};
use crate::cluster::{ALICE, Cluster, PATIENCE, User, is_root, output_of, skip, text};
use crate::terminal::Shell;

/// Both outputs, colours, columns, and a name that is opened again.
const SHOWING: &str = "\
all: x.o bad.o
x.o: x.c
\t@gcc -Wall -c -o $@ x.c; readlink /proc/self/ns/pid > $@.where; \
test -t 1 && test -t 2 && echo both; ls; echo error >&2; echo again >> /dev/stderr; printf 'a\\tb\\r\\n'
bad.o: bad.c
\tgcc -c -o $@ bad.c
";
const WARNED: &str = "int main(void) { int unused; return 0; }\n";

fn fill(tree: &Tree, makefile: &str) {
    let mut files = vec![
        ("Makefile", makefile),
        ("x.c", WARNED),
        ("bad.c", "int bad(\n"),
    ];
    let many: Vec<_> = (0..30).map(|n| format!("a-file-with-number-{n}")).collect();
    files.extend(many.iter().map(|name| (name.as_str(), "")));
    tree.write(&files);
}

/// What a command writes to the terminal, but for our own last row.
fn shown(shell: &mut Shell, command: &str) -> String {
    shell.say(&format!("{command}; echo en''ded"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let words = shell.settle(Duration::from_millis(50)).to_owned();
        if let Some(at) = words.find("ended\r\nready> ") {
            shell.expect("ended\r\nready> ");
            return without_status(&words[..at]);
        }
        assert!(Instant::now() < deadline, "it does not end: {words:?}");
    }
}

/// Takes out what stands between saving the cursor and restoring it, and the way to it.
fn without_status(words: &str) -> String {
    let mut rest = words;
    let mut kept = String::new();
    while let Some(at) = rest.find("\x1b7") {
        let (before, status) = rest.split_at(at);
        let end = status.find("\x1b8").expect("it is restored") + 2;
        rest = &status[end..];
        match rest.strip_prefix("\x1b[1A") {
            Some(behind) => {
                kept.push_str(before.strip_suffix("\r\n").expect("room was made"));
                rest = behind;
            }
            None => kept.push_str(before),
        }
    }
    kept + rest
}

fn looks_as_make_does(cluster: &Cluster, tree: &Tree) {
    let mut shell = Shell::start(cluster);
    shell.resize(40, 71);
    let at = tree.directory.display();
    shell.say(&format!("export XDG_CACHE_HOME={at}/.cache"));
    shell.expect("ready> ");
    for to in ["", " >out", " 2>out"] {
        let mut seen = |make: &str| {
            fill(tree, SHOWING);
            let shown = shown(&mut shell, &format!("cd {at}; {make}{to}"));
            let out = fs::read_to_string(tree.directory.join("out"));
            (shown, out.unwrap_or_default())
        };
        let plain = seen("make");
        assert_eq!(seen("wiglaf make --require-cluster"), plain, "{to}");
        tree.assert_some_lines_ran_on_nodes();
        let (screen, file) = plain;
        assert_eq!(screen.contains("\x1b[01;31m"), to != " 2>out", "{screen:?}");
        assert!(!file.contains('\x1b'), "{file:?}");
        let is_in_columns = screen.contains("number-0   a-file");
        assert_eq!(is_in_columns, to != " >out", "{screen:?}");
        assert_eq!(screen.contains("both\r\n"), to.is_empty(), "{screen:?}");
    }
}

#[test]
fn a_terminal_shows_what_make_shows() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    looks_as_make_does(&cluster, &Tree::new(&cluster, User::Root));
    cluster.down();
}

#[test]
fn an_ordinary_users_terminal_shows_what_make_shows() {
    let Some(mut cluster) = Cluster::start(2) else {
        return;
    };
    std::os::unix::fs::chown(&cluster.dir, Some(54_321), None).expect("root gives it away");
    let tree = Tree::new(&cluster, ALICE);
    cluster.owner = ALICE;
    looks_as_make_does(&cluster, &tree);
    // A pipe of the user's, who may open it again.
    fill(&tree, SHOWING);
    let plain = tree.run(&cluster, "make 2>&1 | cat");
    fill(&tree, SHOWING);
    let ours = tree.run(&cluster, "wiglaf make --require-cluster 2>&1 | cat");
    assert_eq!(ours, plain);
    cluster.owner = User::Root;
    cluster.down();
}

/// One line for a node, one that shares a file with others, one that stays here.
const TELLING: &str = "\
all: x.o y.o d
x.o: x.c
\t@gcc -c -o $@ x.c
y.o: x.c
\t@gcc -c -o $@ x.c; mkdir /tmp/$(LOCK) && rmdir /tmp/$(LOCK)
d:
\tmkdir d && :
";

/// Standard output and standard error of a build with this option.
fn told(cluster: &Cluster, tree: &Tree, option: &str) -> (String, String) {
    fill(tree, TELLING);
    let script = format!(
        "wiglaf make --require-cluster {option} LOCK=wiglaf-seen-{}",
        std::process::id()
    );
    let output = output_of(tree.command(cluster, &script));
    succeeded(&output);
    (text(&output.stdout), text(&output.stderr))
}

/// The one line of a text in which all these words are.
fn row<'a>(words: &'a str, wanted: &[&str]) -> &'a str {
    let mut rows = words
        .lines()
        .filter(|row| wanted.iter().all(|word| row.contains(word)));
    match (rows.next(), rows.next()) {
        (Some(row), None) => row,
        _ => panic!("not one row with {wanted:?}: {words}"),
    }
}

#[test]
fn where_lines_ran_is_told_in_three_ways() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = Tree::new(&cluster, User::Root);
    let shared = format!("/tmp/wiglaf-seen-{}", std::process::id());

    let (out, plan) = told(&cluster, &tree, "--plan");
    assert_eq!(out, "mkdir d && :\n");
    assert!(plan.starts_with("where "), "{plan}");
    assert_eq!(plan.lines().count(), 4, "{plan}");
    assert!(row(&plan, &["gcc x.o"]).starts_with('n'), "{plan}");
    assert!(!row(&plan, &["gcc x.o"]).contains("shares"), "{plan}");
    let sharing = row(&plan, &["gcc y.o", "compile"]);
    assert!(sharing.contains(&format!("shares {shared}")), "{plan}");
    assert!(
        row(&plan, &["mkdir", "small"]).starts_with("here "),
        "{plan}"
    );

    let (out, verbose) = told(&cluster, &tree, "--verbose");
    assert_eq!(out, "mkdir d && :\n");
    assert_eq!(verbose.lines().count(), 3, "{verbose}");
    assert!(row(&verbose, &["gcc x.o (compile"]).starts_with("wiglaf: n"));
    assert!(row(&verbose, &["mkdir", "(small)"]).starts_with("wiglaf: here: "));

    let (out, err) = told(&cluster, &tree, "--json");
    assert_eq!(err, "");
    let (makes, json) = out.trim_end().rsplit_once('\n').expect("two lines");
    assert_eq!(makes, "mkdir d && :");
    let json: Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(json["here_for_want_of_open_files"], 0);
    assert_eq!(json["report"]["lines"], 3);
    assert_eq!(json["report"]["here"], 1);
    let lines = json["lines"].as_array().expect("a list");
    let line = |target: &str| {
        let found = lines.iter().find(|line| line["target"] == target);
        found.unwrap_or_else(|| panic!("no {target} in {json}"))
    };
    let node = line("x.o")["place"]["node"].as_str().expect("a node");
    assert!(["n1", "n2"].contains(&node), "{json}");
    assert!(line("x.o")["cpu_us"].as_u64() > Some(0), "{json}");
    assert!(line("x.o")["shares_tmp"].is_null(), "{json}");
    assert_eq!(line("y.o")["shares_tmp"], shared.as_str());
    assert!(lines.iter().any(|line| line["place"] == "here"), "{json}");
    cluster.down();
}

#[test]
fn a_node_hears_of_no_jobserver() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let tree = Tree::new(&cluster, User::Root);
    let makefile = "all:\n\t@gcc -c -o x.o x.c; readlink /proc/self/ns/pid > x.where; \
                    echo \"[$$MAKEFLAGS] [$$MFLAGS] [$$CARGO_MAKEFLAGS]\"\n";
    let seen = |make: &str| {
        fill(&tree, makefile);
        let script = format!("CARGO_MAKEFLAGS='-j --jobserver-fds=8,9 --x' {make} -j2");
        tree.run(&cluster, &script)
    };
    let (_, plain) = seen("make");
    assert!(plain.matches("--jobserver").count() == 3, "{plain}");
    let (code, ours) = seen("wiglaf make --require-cluster");
    tree.assert_some_lines_ran_on_nodes();
    assert_eq!(code, Some(0), "{ours}");
    assert!(!ours.contains("jobserver"), "{ours}");
    assert!(ours.contains("[-j --x]"), "{ours}");
    cluster.down();
}

#[test]
fn a_users_own_cluster_shows_what_make_shows() {
    if !is_root() {
        return skip("becomes another user");
    }
    let cluster = Cluster::start_as(ALICE, 2);
    looks_as_make_does(&cluster, &Tree::new(&cluster, ALICE));
    cluster.down();
}
