//! Whole programs at work: git and make, SQLite, a package's upgrade, an editor.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use serde_json::json;

use crate::cluster::{User, as_user, text};
use crate::files::{At, Ground, on_both_grounds};

on_both_grounds! {
    git_and_make(2),
    sqlite_is_written_from_all_machines(2),
    sqlite_wal_is_not_shared_between_machines(2),
    an_upgrade_breaks_no_running_program(1),
    an_editor_saves_in_place_and_beside(1),
}

const TRANSACTIONS: u32 = 40;

fn git_and_make(ground: &Ground) {
    let top = ground.open_directory("git");
    let git = "git -c user.name=Test -c user.email=test@example.org -c init.defaultBranch=main \
               -c gc.auto=0";
    fs::create_dir(format!("{top}/origin")).unwrap();
    fs::write(
        format!("{top}/origin/main.c"),
        "#include <stdio.h>\nint f1(void), f2(void), f6(void);\n\
         int main(void) { printf(\"%d\\n\", f1() + f2() + f6()); return 0; }\n",
    )
    .unwrap();
    ground.sh(
        At::Head,
        &format!(
            "cd {top}/origin; {git} init -q
             for d in $(seq 12); do mkdir -p dir$d/sub; for f in $(seq 20); do
               echo \"file $d $f\" >dir$d/sub/file$f.txt; done; done
             for n in 1 2 3 4 5 6; do echo \"int f$n(void) {{ return $n; }}\" >f$n.c; done
             printf 'prog: main.o f1.o f2.o f3.o f4.o f5.o f6.o\\n\\tcc -o $@ $^\\n%%.o: %%.c\\n\\tcc -c -o $@ $<\\n' >Makefile
             echo '*.o' >.gitignore; ln -s f1.c link
             {git} add -A; {git} commit -qm first"
        ),
    );
    // Cloned on one node, seen on another and on the head.
    let (one, two) = (At::Node(1), At::Node(2));
    ground.sh(one, &format!("cd {top}; {git} clone -q origin work; cd work; {git} status --short; {git} fsck --strict 2>&1"));
    for at in [two, At::Head, one] {
        let status = ground.sh(
            at,
            &format!("cd {top}/work; {git} status --short; {git} log --oneline | wc -l"),
        );
        assert_eq!(status, "1\n", "{at:?}");
    }
    // Built on one, up to date everywhere: time stamps are of one clock.
    ground.sh(one, &format!("cd {top}/work; make -j2 2>&1"));
    for at in [At::Head, two] {
        assert_eq!(ground.sh(at, &format!("cd {top}/work; ./prog")), "9\n");
        let made = ground.sh(at, &format!("cd {top}/work; LC_ALL=C make"));
        assert!(made.contains("up to date"), "{at:?}: {made}");
    }
    ground.sh(
        At::Head,
        &format!("cd {top}/work; echo 'int f6(void) {{ return 60; }}' >f6.c"),
    );
    let made = ground.sh(two, &format!("cd {top}/work; make; ./prog"));
    assert!(
        made.contains("f6.c") && !made.contains("f5.c") && made.ends_with("63\n"),
        "{made}"
    );
    // Work goes on by turns.
    for (number, at) in [two, At::Head, one, two].into_iter().enumerate() {
        ground.sh(
            at,
            &format!(
                "cd {top}/work; echo change {number} >>dir{0}/sub/file1.txt; {git} rm -q dir{0}/sub/file2.txt
                 {git} checkout -q -b branch{number}; {git} add -A; {git} commit -qm change{number}; {git} status --short",
                number + 1
            ),
        );
    }
    for at in ground.everywhere() {
        let log = ground.sh(
            at,
            &format!(
                "cd {top}/work; {git} status --short; {git} log --format=%s; {git} branch | wc -l"
            ),
        );
        assert_eq!(
            log, "change3\nchange2\nchange1\nchange0\nfirst\n5\n",
            "{at:?}"
        );
    }
    ground.sh(
        two,
        &format!(
            "cd {top}/work; {git} gc -q; {git} checkout -q main; {git} push -q origin branch3"
        ),
    );
    let whole = ground.sh(At::Head, &format!("cd {top}/work; {git} fsck --strict 2>&1; cd ../origin; {git} fsck 2>&1; {git} log --format=%s branch3 | wc -l"));
    assert!(
        whole.ends_with("5\n") && !whole.contains("error"),
        "{whole}"
    );
}

fn sqlite_is_written_from_all_machines(ground: &Ground) {
    let file = ground.path("shared.db");
    let mut head = ground.place(At::Head);
    head.ask("import sqlite3");
    head.ask(&format!(
        "kept.__setitem__('db', sqlite3.connect('{file}', isolation_level=None))"
    ));
    head.ask("kept['db'].execute('create table counter (total)') and None");
    head.ask("kept['db'].execute('create table log (who, number, filler)') and None");
    head.ask("kept['db'].execute('insert into counter values (0)') and None");
    let program = ground.program("database.py");
    let count = TRANSACTIONS.to_string();
    let writers: Vec<(At, Child)> = ground
        .everywhere()
        .map(|at| {
            let who = format!("{at:?}");
            let mut command = ground.command(at, &["python3", &program, &file, &who, &count]);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            (at, command.spawn().unwrap())
        })
        .collect();
    let machines = u32::try_from(writers.len()).unwrap();
    for (at, writer) in writers {
        let output = writer.wait_with_output().unwrap();
        assert!(output.status.success(), "{at:?}: {}", text(&output.stderr));
    }
    let query = "[kept['db'].execute(q).fetchone()[0] for q in ('pragma integrity_check', \
                 'select total from counter', 'select count(*) from log', \
                 'select count(*) from (select distinct who, number from log)')]";
    let expected = json!([
        "ok",
        TRANSACTIONS * machines,
        TRANSACTIONS * machines,
        TRANSACTIONS * machines
    ]);
    assert_eq!(head.ask(query), expected);
    let there = ground.ok(At::Node(1), &["python3", "-c", &format!(
        "import sqlite3; d = sqlite3.connect('{file}'); print(*d.execute('select total from counter').fetchone())"
    )]);
    assert_eq!(there.trim(), (TRANSACTIONS * machines).to_string());
    // A journal that was left hot is rolled back by whoever comes next, wherever.
    ground.run(
        At::Node(1),
        &[
            "python3",
            "-c",
            &format!(
                "import os, sqlite3\nd = sqlite3.connect('{file}', isolation_level=None)\n\
         d.execute('pragma cache_size = 2')\nd.execute('begin immediate')\n\
         d.execute('update counter set total = 0')\n\
         [d.execute('insert into log values (1, ?, ?)', (n, 'y' * 3000)) for n in range(200)]\n\
         os.kill(os.getpid(), 9)"
            ),
        ],
    );
    assert!(
        fs::exists(format!("{file}-journal")).unwrap(),
        "the journal is hot"
    );
    assert_eq!(head.ask(query), expected);
}

fn sqlite_wal_is_not_shared_between_machines(ground: &Ground) {
    let native = ground.cluster().is_none();
    for (round, (first, second)) in [(At::Head, At::Node(1)), (At::Node(1), At::Node(2))]
        .into_iter()
        .enumerate()
    {
        let file = ground.path(&format!("wal{round}.db"));
        let connect = format!(
            "kept.__setitem__('db', sqlite3.connect('{file}', isolation_level=None, timeout=1))"
        );
        let attempt = |code: &str| {
            format!(
                "try:\n kept['said'] = {code}\nexcept sqlite3.Error as error:\n kept['said'] = 'refused: ' + str(error)"
            )
        };
        let mut one = ground.place(first);
        one.ask("import sqlite3");
        one.ask(&connect);
        // One machine alone may use it.
        assert_eq!(
            one.ask("kept['db'].execute('pragma journal_mode = wal').fetchone()"),
            json!(["wal"])
        );
        one.ask("kept['db'].execute('create table t (v)') and None");
        one.ask("kept['db'].execute('insert into t values (1)') and None");
        assert_eq!(
            one.ask("kept['db'].execute('select count(*) from t').fetchone()"),
            json!([1])
        );
        let mut two = ground.place(second);
        two.ask("import sqlite3");
        two.ask(&connect);
        two.ask(&attempt(
            "kept['db'].execute('insert into t values (2)').rowcount",
        ));
        let said = two.ask("kept['said']");
        if native {
            assert_eq!(said, json!(1));
        } else {
            assert!(
                said.as_str()
                    .is_some_and(|said| said.starts_with("refused")),
                "{second:?}: {said}"
            );
        }
        one.ask("kept['db'].execute('insert into t values (3)') and None");
        one.ask("kept.pop('db').close()");
        let expected = if native { "ok 3\n" } else { "ok 2\n" };
        let whole = ground.ok(At::Head, &["python3", "-c", &format!(
            "import sqlite3; d = sqlite3.connect('{file}')\n\
             print(d.execute('pragma integrity_check').fetchone()[0], d.execute('select count(*) from t').fetchone()[0])"
        )]);
        assert_eq!(whole, expected);
    }
}

/// A program that answers one line for each.
struct Running {
    child: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(ground: &Ground, at: At, program: &str) -> Running {
        let mut child = ground
            .command(at, &[program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, answers }
    }

    fn part(&mut self, number: u32) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{number}").unwrap();
        match self.answers.next() {
            Some(Ok(line)) => line,
            other => panic!("{other:?}: {:?}", self.child.wait()),
        }
    }

    fn finish(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn an_upgrade_breaks_no_running_program(ground: &Ground) {
    let top = ground.open_directory("package");
    let build = |version: u32, suffix: &str| {
        format!(
            "cd {top}; cc -DVERSION={version} -shared -fPIC -Wl,-soname,libpart.so -o libpart.so{suffix} {}; \
             cc -DVERSION={version} -o program{suffix} {} libpart.so{suffix} -Wl,-rpath,{top}; ",
            ground.program("library.c"),
            ground.program("program.c"),
        )
    };
    ground.sh(At::Head, &build(1, ""));
    let mut first = Running::start(ground, At::Node(1), &format!("{top}/program"));
    assert_eq!(first.part(0), "1 2");
    for version in [2, 3] {
        // As dpkg does it: new files beside the old, renamed over them.
        ground.sh(
            At::Head,
            &format!(
                "{}mv libpart.so.new libpart.so; mv program.new program",
                build(version, ".new")
            ),
        );
        let mut new = Running::start(ground, At::Node(1), &format!("{top}/program"));
        for number in 0..10 {
            assert_eq!(new.part(number), format!("{version} {}", 2 * version));
        }
        new.finish();
        // Pages that the old one had never needed come from the old files, which have no name.
        assert_eq!(first.part(version), "1 2");
    }
    for number in 0..10 {
        assert_eq!(first.part(number), "1 2");
    }
    first.finish();
    // Removed altogether under a running program.
    let mut last = Running::start(ground, At::Node(1), &format!("{top}/program"));
    assert_eq!(last.part(9), "3 6");
    ground.sh(At::Head, &format!("rm -r {top}"));
    for number in 0..10 {
        assert_eq!(last.part(number), "3 6");
    }
    last.finish();
    let gone = ground.run(At::Node(1), &["sh", "-c", &format!("{top}/program")]);
    assert_eq!(gone.status.code(), Some(127), "{}", text(&gone.stderr));
}

fn an_editor_saves_in_place_and_beside(ground: &Ground) {
    let file = ground.path("text");
    let node = At::Node(1);
    fs::write(&file, "one\ntwo\nthree\n").unwrap();
    let mut reader = ground.place(node);
    reader.ask(&format!("opened('old', '{file}', os.O_RDONLY)"));
    assert_eq!(
        reader.ask("os.pread(kept['old'], 99, 0).decode()"),
        json!("one\ntwo\nthree\n")
    );
    // An editor on the head, in place: the inode stays, and who has it open sees the new text
    // when a command has been launched since.
    ground.sh(At::Head, &format!("printf 'one\\n2\\nthree\\n' >{file}"));
    assert_eq!(ground.ok(node, &["cat", &file]), "one\n2\nthree\n");
    assert_eq!(
        reader.ask("os.pread(kept['old'], 99, 0).decode()"),
        json!("one\n2\nthree\n")
    );
    // Beside: the name has the new text, the open file the old.
    ground.sh(At::Head, &format!("sed -i s/2/zwei/ {file}"));
    assert_eq!(ground.ok(node, &["cat", &file]), "one\nzwei\nthree\n");
    assert_eq!(
        reader.ask("os.pread(kept['old'], 99, 0).decode()"),
        json!("one\n2\nthree\n")
    );
    assert_eq!(reader.ask("os.fstat(kept['old']).st_nlink"), json!(0));
    // Editors on the node: vi with its swap file and backup, sed, shell appends, patch by mv.
    let mut vi = ground.command_as(
        User::Root,
        node,
        &[
            "vim.tiny",
            "-u",
            "NONE",
            "-e",
            "-s",
            "-c",
            "set backup backupext=.bak",
            "-c",
            "%s/three/drei/",
            "-c",
            "wq",
            &file,
        ],
    );
    vi.env("TERM", "dumb");
    let output = crate::cluster::output_of(vi);
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\nzwei\ndrei\n");
    assert_eq!(
        fs::read_to_string(format!("{file}.bak")).unwrap(),
        "one\nzwei\nthree\n"
    );
    ground.sh(
        node,
        &format!("sed -i s/one/eins/ {file}; echo vier >>{file}"),
    );
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "eins\nzwei\ndrei\nvier\n"
    );
    let left: Vec<_> = fs::read_dir(ground.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            name.ends_with(".swp") || name.starts_with("sed") || name.contains("fuse_hidden")
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // `tail -f` on a node follows a log that the head writes.
    let log = ground.path("log");
    fs::write(&log, "begin\n").unwrap();
    let mut tail = ground
        .command(
            node,
            &[
                "tail",
                "-n",
                "+1",
                "-s",
                "0.05",
                "---disable-inotify",
                "-f",
                &log,
            ],
        )
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "begin");
    for number in 0..5 {
        let mut head = as_user(User::Root, "sh".as_ref());
        head.args(["-c", &format!("echo line {number} >>{log}")]);
        assert!(head.status().unwrap().success());
        assert_eq!(lines.next().unwrap().unwrap(), format!("line {number}"));
    }
    wiglaf_linux::process::kill(i32::try_from(tail.id()).unwrap(), 15).unwrap();
    tail.wait().unwrap();
}
