use super::*;
use crate::learned::Taken;

fn settings() -> Settings {
    Settings::new("/src".into(), 2)
}

fn call(argv: &[&str]) -> Call {
    let program = match argv[0] {
        "sh" => "/usr/bin/dash",
        "gcc" => "/usr/bin/x86_64-linux-gnu-gcc-12",
        "rustc" => "/usr/bin/rustc",
        other => other,
    };
    Call {
        program: program.into(),
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        cwd: "/src".into(),
        started_by: "make".into(),
        ..Call::default()
    }
}

fn line(text: &str) -> Call {
    call(&["sh", "-c", text])
}

/// Where and why, when nothing is known.
fn why(call: &Call) -> (Wish, String) {
    let found = judge(call, &settings(), &Learned::default());
    (found.wish, found.reason.to_string())
}

fn here(call: &Call, reason: &str) {
    assert_eq!(why(call), (Wish::Here, reason.to_owned()), "{call:?}");
}

fn node(call: &Call, reason: &str) {
    assert_eq!(why(call), (Wish::Node, reason.to_owned()), "{call:?}");
}

#[test]
fn lines_are_judged_by_what_they_do() {
    node(&line("gcc -c x.c"), "compile");
    node(&line("set -e; gcc -o x x.o; strip x"), "link");
    node(&line("makeinfo x.texi -o x.info"), "makeinfo");
    here(&line("cd sub && make"), "recursive");
    here(&line("mkdir -p a && touch a/b"), "small");
    here(&line("ar cr libx.a x.o; ranlib libx.a"), "small");
    here(&line("gcc --version"), "a question to the compiler");
    here(&line("./gen >x.h"), "gen was never seen before");
    here(
        &line("$(CMD) x"),
        "not understood (a command that only the shell knows)",
    );
    here(
        &line("gcc -c x.c & gcc -c y.c; wait"),
        "starts something in the background",
    );
    here(
        &line("ssh host gcc -c x.c"),
        "ssh does more than to read and write files",
    );
    here(&line("gcc -c /run/x.c"), "names /run/x.c");
    here(&line("cmake --build ."), "cmake starts lines of its own");
    // What is not understood is judged by what is.
    node(&line("eval $x; gcc -c x.c"), "compile");
}

#[test]
fn calls_are_judged_by_how_they_were_made() {
    let with = |change: fn(&mut Call)| {
        let mut call = line("gcc -c x.c");
        change(&mut call);
        call
    };
    here(
        &with(|call| call.fake_root = true),
        "another root, user or fakeroot",
    );
    here(
        &with(|call| call.extra_descriptors = true),
        "has open descriptors",
    );
    here(&with(|call| call.jobserver = true), "recursive");
    here(
        &with(|call| call.captured = true),
        "its output is wanted as text",
    );
    here(&with(|call| call.cwd = "/proc/1".into()), "names /proc");
    // ninja reads what its lines print, which is not for it.
    node(
        &with(|call| {
            call.captured = true;
            call.started_by = "ninja".into();
        }),
        "compile",
    );
    node(&with(|call| call.stdin = StdinKind::Terminal), "compile");
    let mut reads = line("gcc -c x.c; cat >y");
    node(&reads, "compile");
    reads.stdin = StdinKind::Terminal;
    here(&reads, "may read its input");
    here(&call(&["sh"]), "a shell for input");
}

#[test]
fn drivers_and_scripts_are_judged_as_well() {
    node(&call(&["gcc", "-c", "x.c"]), "compile");
    here(
        &call(&["gcc", "-print-prog-name=ld"]),
        "a question to the compiler",
    );
    let mut cargo = call(&["rustc", "--crate-name", "x", "src/lib.rs", "--out-dir", "d"]);
    cargo.started_by = "cargo".into();
    (cargo.captured, cargo.jobserver) = (true, true);
    node(&cargo, "compile");
    here(
        &call(&["sh", "./configure", "--prefix=/usr"]),
        "configure starts lines of its own",
    );
    here(
        &call(&["sh", "./mkheaders.sh", "x"]),
        "the script mkheaders.sh",
    );
    node(
        &call(&[
            "sh",
            "./libtool",
            "--mode=compile",
            "gcc",
            "-c",
            "x.c",
            "-o",
            "x.lo",
        ]),
        "compile",
    );
    let mut lto = call(&["gcc", "-flto=jobserver", "x.o", "-o", "x"]);
    node(&lto, "link");
    lto.jobserver = true;
    here(&lto, "recursive");
}

#[test]
fn what_was_learned_decides() {
    let mut learned = Learned::default();
    let mut teach = |call: &Call, wall_us: u64, cpu_us: Option<u64>| {
        let keys = judge(call, &settings(), &Learned::default()).keys;
        let rss_kib = None;
        learned.learn(
            &keys,
            Taken {
                wall_us,
                cpu_us,
                rss_kib,
                gathers: false,
            },
        );
    };
    teach(&line("./gen a"), 900_000, None);
    teach(&line("./quick a"), 5_000, None);
    teach(&line("./waits a"), 900_000, Some(1_000));
    teach(&line("gcc -c short.c"), 20_000, Some(10_000));
    teach(&line("ar cr libx.a x.o; ranlib libx.a"), 60_000, None);
    teach(&line("gcc -o far x.o"), 900_000, Some(50_000));
    teach(&line("gcc -o near x.o"), 600_000, Some(50_000));
    teach(&line("gcc -c far.c"), 900_000, Some(50_000));
    teach(&line("nm far.o >far"), 900_000, Some(50_000));
    teach(&line("sed s/x/y/ big >out"), 900_000, None);
    teach(&line("cp big out"), 900_000, None);
    teach(&line("set -e; echo x"), 900_000, None);
    teach(&line("eval $a"), 900_000, None);
    let judged = |call: &Call| {
        let found = judge(call, &settings(), &learned);
        (found.wish, found.reason.to_string())
    };
    let is = |wish, reason: &str| (wish, reason.to_owned());
    assert_eq!(judged(&line("./gen a")), is(Wish::Node, "takes long"));
    assert_eq!(
        judged(&line("./gen b")),
        is(Wish::Node, "takes long"),
        "by its program"
    );
    assert_eq!(judged(&line("./quick b")), is(Wish::Here, "short"));
    assert_eq!(
        judged(&line("./waits a")),
        is(Wish::Here, "short"),
        "waiting is no work"
    );
    assert_eq!(
        judged(&line("gcc -c short.c")),
        is(Wish::HereIfRoom, "short")
    );
    assert_eq!(judged(&line("gcc -c other.c")), is(Wish::Node, "compile"));
    assert_eq!(
        judged(&line("ar cr libx.a x.o; ranlib libx.a")),
        is(Wish::Node, "takes long")
    );
    let waits = is(Wish::HereIfRoom, "waits for its files on nodes");
    assert_eq!(judged(&line("gcc -o far x.o")), waits);
    assert_eq!(judged(&line("nm far.o >far")), waits);
    assert_eq!(judged(&line("gcc -o near x.o")), is(Wish::Node, "link"));
    // Many compilers at once are worth their wait.
    assert_eq!(judged(&line("gcc -c far.c")), is(Wish::Node, "compile"));
    assert_eq!(
        judged(&line("sed s/x/y/ big >out")),
        is(Wish::Node, "takes long")
    );
    assert_eq!(
        judged(&line("sed s/x/y/ small >out")),
        is(Wish::Here, "small")
    );
    assert_eq!(
        judged(&line("cp big out")),
        is(Wish::Here, "small"),
        "the files are here"
    );
    assert_eq!(judged(&line("set -e; echo x")), is(Wish::Here, "small"));
    assert_eq!(judged(&line("eval $a")), is(Wish::Node, "takes long"));
    assert_eq!(
        judged(&line("eval $b")),
        is(
            Wish::Here,
            "not understood (a command that only the shell knows)"
        )
    );
}

#[test]
fn what_lines_share_in_tmp_is_told_from_the_tree() {
    let shares = |text: &str, cwd: &str| {
        let text = format!("gcc -c x.c; {text}");
        let call = Call {
            cwd: cwd.into(),
            ..line(&text)
        };
        let found = judge(&call, &settings(), &Learned::default());
        assert_eq!(found.wish, Wish::Node, "{text}");
        found
            .shares_tmp
            .map(|name| String::from_utf8(name).unwrap())
    };
    for (text, name) in [
        ("mkdir /tmp/lock", "/tmp/lock"),
        ("echo x >>/var/tmp/log", "/var/tmp/log"),
        ("cp x /tmp", "/tmp"),
        ("gcc -I/tmp/x -c x.c", "/tmp/x"),
        ("gcc -c y.c >$TMPDIR/log", "TMPDIR"),
        ("(cd /tmp; ls)", "/tmp"),
        ("# comments are read too: /tmp/x", "/tmp/x"),
    ] {
        assert_eq!(shares(text, "/home/u").as_deref(), Some(name), "{text}");
    }
    for text in [
        "gcc -Isrc/tmp/x -c /tmpfiles/x.c",
        "cp x ../tmp/y",
        "cp x $(D)/tmp/y",
    ] {
        assert_eq!(shares(text, "/home/u"), None, "{text}");
    }
    let shares = |text, cwd| shares(text, cwd).is_some();
    assert!(!shares(
        "gcc -I/tmp/tree/inc -c /tmp/tree/x.c",
        "/tmp/tree/sub"
    ));
    assert!(shares("gcc -c /tmp/tree/x.c 2>/tmp/log", "/tmp/tree/sub"));
    assert!(shares("gcc -c x.c 2>/tmp/tree2/log", "/tmp/tree"));
}
