//! `wiglaf make` and `wiglaf build` beside plain make: the same files, words and exit codes.

mod faults;
mod seen;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::cluster::{ALICE, Cluster, User, as_user, output_of, text, wiglaf};

/// What a line leaves to show where it ran: its PID namespace.
const WHERE: &str = "where";

/// A directory with a build in it, at a path that stays the same, since compilers write it down.
pub(crate) struct Tree {
    directory: PathBuf,
    user: User,
}

impl Tree {
    fn new(cluster: &Cluster, user: User) -> Tree {
        Tree {
            directory: cluster.dir.join("tree"),
            user,
        }
    }

    /// Writes these files into a fresh directory.
    fn write(&self, files: &[(&str, &str)]) {
        let _ = fs::remove_dir_all(&self.directory);
        fs::create_dir(&self.directory).expect("a directory");
        for (name, content) in files {
            let path = self.directory.join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs::write(path, content).expect("written");
        }
        if let User::Id(id) = self.user {
            let to = format!("{id}:{id}");
            let mut chown = Command::new("chown");
            chown.args(["-R", &to]).arg(&self.directory);
            assert!(output_of(chown).status.success());
        }
    }

    /// A shell script in the directory, outputs joined in their order. Nothing is learned from
    /// other builds.
    fn run(&self, cluster: &Cluster, script: &str) -> (Option<i32>, String) {
        let output = output_of(self.command(cluster, &format!("exec 2>&1; {script}")));
        (output.status.code(), text(&output.stdout))
    }

    fn command(&self, cluster: &Cluster, script: &str) -> Command {
        let mut command = as_user(self.user, Path::new("/bin/bash"));
        let bin = wiglaf().parent().expect("a directory").display();
        command
            .args(["-c", script])
            .env_clear()
            .env("WIGLAF_DIR", &cluster.dir)
            .env("PATH", format!("{bin}:/usr/bin:/bin"))
            .env("XDG_CACHE_HOME", self.directory.join(".cache"))
            .current_dir(&self.directory)
            .stdin(std::process::Stdio::null());
        command
    }

    /// All files by their names, but for what is not to be compared.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.directory.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).expect("readable").flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if path.is_dir() {
                    if !name.starts_with('.') {
                        directories.push(path);
                    }
                } else if !name.ends_with(WHERE) && !name.starts_with(".ninja") {
                    let content = fs::read(&path).expect("readable");
                    files.insert(path, content);
                }
            }
        }
        files
    }

    /// The PID namespaces that lines have told of.
    fn places(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).expect("readable").flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(WHERE))
            .map(|entry| fs::read_to_string(entry.path()).expect("readable"))
            .collect()
    }

    fn assert_some_lines_ran_on_nodes(&self) {
        let own = fs::read_link("/proc/self/ns/pid").expect("we have one");
        let own = own.display().to_string();
        let places = self.places();
        assert!(
            places.iter().any(|place| place.trim() != own),
            "all lines ran here: {places:?}"
        );
    }
}

/// Compiles, so that it is worth a node, and tells where that was.
const COMPILE: &str = "gcc -O1 -I. -c -o '$@' '$<' && readlink /proc/self/ns/pid > '$@.where'";

fn makefile() -> String {
    format!(
        "all: prog words bash a\\ file.o
.PHONY: all sub words bash
X := $(shell echo captured; echo noise >&2)
prog: a.o b.o sub
\tgcc -o $@ a.o b.o sub/libsub.a
%.o: %.c gen.h
\t{COMPILE}
a\\ file.o: a\\ file.c gen.h
\t{COMPILE}
gen.h: gen.sh
\tsh ./gen.sh > $@
sub: gen.h
\t$(MAKE) -C sub
words: prog
\t@echo one $(X); echo two >&2; ./prog; echo $$$$ >/dev/null; umask; ulimit -n
bash: SHELL := /bin/bash
bash: words
\t@words=(a 'b c'); gcc --version >/dev/null; echo $${{#words[@]}} $${{words[1]}} \"$$0\"
"
    )
}

const SUB_MAKEFILE: &str = "\
libsub.a: c.o d.o
\tar rcD $@ $^
%.o: %.c ../gen.h
\tgcc -O1 -I.. -c -o $@ $<
";

pub(crate) fn tree_files() -> Vec<(&'static str, String)> {
    vec![
        ("Makefile", makefile()),
        ("gen.sh", "echo '#define N 3'\n".into()),
        (
            "a.c",
            "#include <stdio.h>\n#include \"gen.h\"\nint b(void); int c(void); int d(void);\n\
             int main(void) { printf(\"%d\\n\", b() + c() + d() + N); return 0; }\n"
                .into(),
        ),
        (
            "b.c",
            "#include \"gen.h\"\n#warning hm\nint b(void) { return N; }\n".into(),
        ),
        ("a file.c", "#include \"gen.h\"\nint spaces = N;\n".into()),
        ("sub/Makefile", SUB_MAKEFILE.into()),
        (
            "sub/c.c",
            "#include \"gen.h\"\nint c(void) { return N; }\n".into(),
        ),
        ("sub/d.c", "int d(void) { return 4; }\n".into()),
    ]
}

impl Tree {
    pub(crate) fn fill(&self) {
        let files = tree_files();
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        self.write(&files);
    }
}

fn sorted(words: &str) -> Vec<&str> {
    let mut lines: Vec<_> = words.lines().collect();
    lines.sort_unstable();
    lines
}

fn builds_as_make_does(cluster: &Cluster, tree: &Tree) {
    tree.fill();
    let plain = tree.run(cluster, "make");
    assert_eq!(plain.0, Some(0), "{}", plain.1);
    let expected = tree.files();
    tree.fill();
    let ours = tree.run(cluster, "wiglaf make --require-cluster");
    assert_eq!(ours, plain);
    assert_eq!(tree.files(), expected);
    tree.assert_some_lines_ran_on_nodes();
    assert_eq!(
        tree.run(
            cluster,
            "wiglaf make --require-cluster -q gen.h a.o sub/libsub.a"
        ),
        (Some(0), "noise\n".into()),
        "what is up to date is so for make, whose clock dates it"
    );
    tree.fill();
    let many = tree.run(cluster, "wiglaf make --require-cluster -j");
    assert_eq!(many.0, Some(0), "{}", many.1);
    assert_eq!(tree.files(), expected);
    let plain = tree.run(
        cluster,
        "rm -rf *.o *.where prog gen.h sub/*.[oa]; make -j8",
    );
    assert_eq!(sorted(&many.1), sorted(&plain.1));
}

#[test]
fn a_tree_is_built_as_by_make_itself() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    builds_as_make_does(&cluster, &Tree::new(&cluster, User::Root));
    cluster.down();
}

#[test]
fn an_ordinary_user_builds_on_the_machines_cluster() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    std::os::unix::fs::chown(&cluster.dir, Some(54_321), None).expect("root gives it away");
    let tree = Tree::new(&cluster, ALICE);
    builds_as_make_does(&cluster, &tree);
    let object = fs::metadata(tree.directory.join("a.o")).expect("it is there");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&object), 54_321);
    cluster.down();
}

#[test]
fn ninja_is_caught_as_well() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    if !Path::new("/usr/bin/ninja").exists() {
        crate::cluster::skip("ninja is not installed");
        return cluster.down();
    }
    let tree = Tree::new(&cluster, User::Root);
    let rules = format!(
        "rule cc\n  command = {}\nbuild a.o: cc a.c\nbuild b.o: cc b.c\n",
        COMPILE
            .replace("'$@'", "$out")
            .replace("'$<'", "$in")
            .replace("'$@.where'", "$out.where")
    );
    let fill = || {
        tree.fill();
        fs::write(tree.directory.join("build.ninja"), &rules).expect("written");
        fs::write(tree.directory.join("gen.h"), "#define N 1\n").expect("written");
    };
    fill();
    let plain = tree.run(&cluster, "ninja -j1");
    let expected = tree.files();
    assert_eq!(plain.0, Some(0), "{}", plain.1);
    fill();
    let ours = tree.run(&cluster, "wiglaf build --require-cluster -- ninja -j1");
    assert_eq!(ours, plain);
    assert_eq!(tree.files(), expected);
    tree.assert_some_lines_ran_on_nodes();
    cluster.down();
}

/// Each line counts under a lock in `/tmp`, and keeps a log there.
const SHARING: &str = "\
all: l1 l2 l3 l4 l5 l6
l%: x.c
\t@gcc -c -o $@.o x.c; readlink /proc/self/ns/pid > $@.where; \
until mkdir /tmp/$(LOCK) 2>/dev/null; do sleep 0.05; done; read n < count; sleep 0.1; \
echo $$((n+1)) > count; echo $@ >> /tmp/$(LOCK).log; rmdir /tmp/$(LOCK)
";

#[test]
fn what_lines_share_outside_their_tree_is_shared_by_all_nodes() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let tree = Tree::new(&cluster, User::Root);
    let fill = |makefile| {
        tree.write(&[
            ("Makefile", makefile),
            ("x.c", "int x;\n"),
            ("count", "0\n"),
        ]);
    };
    fill(SHARING);
    let lock = format!("wiglaf-lock-{}", std::process::id());
    let script = format!("wiglaf make --require-cluster -j6 LOCK={lock}");
    assert_eq!(tree.run(&cluster, &script), (Some(0), String::new()));
    let count = fs::read_to_string(tree.directory.join("count")).expect("readable");
    assert_eq!(count, "6\n");
    tree.assert_some_lines_ran_on_nodes();
    let log = format!("/tmp/{lock}.log");
    assert_eq!(
        fs::read_to_string(&log).map(|log| log.lines().count()).ok(),
        Some(6)
    );
    let _ = fs::remove_file(log);
    fill("all:\n\t@gcc -c -o x.o x.c; echo three >&3; cat <&4\n");
    let script = "wiglaf make --require-cluster 3>three 4<x.c; cat three";
    assert_eq!(
        tree.run(&cluster, script),
        (Some(0), "int x;\nthree\n".into())
    );
    cluster.down();
}

#[test]
fn a_build_within_a_build_belongs_to_the_outer_one() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = Tree::new(&cluster, User::Root);
    tree.fill();
    let inner = tree.directory.join("outer.mk");
    fs::write(inner, "all:\n\t+@wiglaf make --require-cluster prog\n").expect("written");
    let ours = tree.run(&cluster, "wiglaf make --require-cluster -f outer.mk");
    assert_eq!(ours.0, Some(0), "{}", ours.1);
    tree.assert_some_lines_ran_on_nodes();
    cluster.down();
}

#[test]
fn what_outlives_its_build_is_told_that_it_is_alone() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let tree = Tree::new(&cluster, User::Root);
    let left = "(while ! [ -e over ]; do sleep 0.05; done; wiglaf make -f in.mk; \
                wiglaf make --require-cluster -f in.mk; echo $$? ) >words 2>&1 </dev/null &";
    let makefile = format!("all:\n\t@{left}\n");
    tree.write(&[("Makefile", &makefile), ("in.mk", "all:\n\t@echo built\n")]);
    let script = "wiglaf make --require-cluster; touch over; \
                  while ! grep -q '^[0-9]' words; do sleep 0.05; done; cat words";
    let (_, words) = tree.run(&cluster, script);
    assert!(
        words.contains("building here alone: this is left over"),
        "{words}"
    );
    assert!(
        words.contains("\nbuilt\n") && words.ends_with("\n125\n"),
        "{words}"
    );
    cluster.down();
}

#[test]
fn what_few_descriptors_cost_is_told() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = Tree::new(&cluster, User::Root);
    let makefile = "N := $(shell seq 1 40)\n.PHONY: all $(N)\nall: $(N)\n\
                    $(N):\n\t@gcc -c -o $@.o x.c; sleep 0.1\n";
    tree.write(&[("Makefile", makefile), ("x.c", "int x;\n")]);
    let script = "ulimit -n 64; wiglaf make --require-cluster --json -j40";
    let (code, words) = tree.run(&cluster, script);
    assert_eq!(code, Some(0), "{words}");
    let (_, json) = words
        .trim_end()
        .rsplit_once('\n')
        .unwrap_or(("", words.trim_end()));
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let unseen = json["here_for_want_of_open_files"]
        .as_u64()
        .expect("a number");
    let seen = json["report"]["lines"].as_u64().expect("a number");
    // A shell that nobody saw starts a compiler that somebody may see.
    assert!(seen + unseen >= 40, "{seen} and {unseen}");
    let told = words.contains("ran here: too many open files");
    assert_eq!(told, unseen > 0, "{words}");
    cluster.down();
}

#[test]
fn without_a_head_the_build_runs_here_and_says_so() {
    let cluster = Cluster::prepare(User::Root);
    let tree = Tree::new(&cluster, User::Root);
    tree.write(&[("Makefile", "all:\n\t@echo built; exit 3\n")]);
    let (code, words) = tree.run(&cluster, "wiglaf make");
    assert_eq!(code, Some(2));
    assert!(
        words.contains("wiglaf: building here alone: no head is running"),
        "{words}"
    );
    assert!(words.contains("\nbuilt\n"), "{words}");
    let (code, words) = tree.run(&cluster, "wiglaf make --require-cluster");
    assert_eq!(code, Some(125));
    assert!(!words.contains("built\n"), "{words}");
    let _ = fs::remove_dir_all(&cluster.dir);
    std::mem::forget(cluster);
}

pub(crate) fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}
