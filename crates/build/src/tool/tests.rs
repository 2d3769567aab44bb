use super::*;
use crate::line::{Directory, Line};

const KERNEL: &str = "set -e;  echo '  CC      kernel/panic.o';    trap 'rm -f kernel/panic.o; trap - HUP; kill -s HUP $$' HUP;  trap 'rm -f kernel/panic.o; trap - INT; kill -s INT $$' INT;  trap 'rm -f kernel/panic.o; trap - QUIT; kill -s QUIT $$' QUIT;  trap 'rm -f kernel/panic.o; trap - TERM; kill -s TERM $$' TERM;  trap 'rm -f kernel/panic.o; trap - PIPE; kill -s PIPE $$' PIPE; gcc -Wp,-MMD,kernel/.panic.o.d -nostdinc -I./arch/x86/include/generated  -I./include -include ./include/linux/kconfig.h -D__KERNEL__ -Wall -Werror=implicit-int -m32 -Os -I ./kernel    -DKBUILD_MODFILE='\"kernel/panic\"' -DKBUILD_BASENAME='\"panic\"' -D__KBUILD_MODNAME=kmod_panic -c -o kernel/panic.o kernel/panic.c  ; scripts/basic/fixdep kernel/.panic.o.d kernel/panic.o 'gcc -Wp,-MMD,kernel/.panic.o.d -c -o kernel/panic.o kernel/panic.c' > kernel/.panic.o.cmd; rm -f kernel/.panic.o.d";

const AUTOMAKE: &str = "depbase=`echo src/hello.o | sed 's|[^/]*$|.deps/&|;s|\\.o$||'`;\\\ngcc -DLOCALEDIR=\\\"/usr/local/share/locale\\\" -DHAVE_CONFIG_H -I.  -I./lib -MT src/hello.o -MD -MP -MF $depbase.Tpo -c -o src/hello.o src/hello.c &&\\\nmv -f $depbase.Tpo $depbase.Po";

const AUTOMAKE_RECURSION: &str = r#"fail=; \
if (target_option=k; case ${target_option-} in ?) ;; *) echo "am__make_running_with_option: internal error: invalid" "target option '${target_option-}' specified" >&2; exit 1;; esac; has_opt=no; sane_makeflags=$MAKEFLAGS; if { if test -z '1'; then false; elif test -n 'x86'; then true; elif test -n '4.3' && test -n '/src'; then true; else false; fi; }; then sane_makeflags=$MFLAGS; else case $MAKEFLAGS in *\\[\ \	]*) bs=\\; sane_makeflags=`printf '%s\n' "$MAKEFLAGS" | sed "s/$bs$bs[$bs $bs	]*//g"`;; esac; fi; skip_next=no; strip_trailopt () { flg=`printf '%s\n' "$flg" | sed "s/$1.*$//"`; }; for flg in $sane_makeflags; do test $skip_next = yes && { skip_next=no; continue; }; case $flg in *=*|--*) continue;; -*I) strip_trailopt 'I'; skip_next=yes;; -*I?*) strip_trailopt 'I';; esac; case $flg in *$target_option*) has_opt=yes; break;; esac; done; test $has_opt = yes); then \
  failcom='fail=yes'; \
else \
  failcom='exit 1'; \
fi; \
dot_seen=no; \
target=`echo all-recursive | sed s/-recursive//`; \
case "all-recursive" in \
  distclean-* | maintainer-clean-*) list='po .' ;; \
  *) list='po .' ;; \
esac; \
for subdir in $list; do \
  echo "Making $target in $subdir"; \
  if test "$subdir" = "."; then \
    dot_seen=yes; \
    local_target="$target-am"; \
  else \
    local_target="$target"; \
  fi; \
  (CDPATH="${ZSH_VERSION+.}:" && cd $subdir && make  $local_target) \
  || eval $failcom; \
done; \
if test "$dot_seen" = "no"; then \
  make  "$target-am" || exit 1; \
fi; test -z "$fail""#;

fn line(text: &str) -> Analysis {
    analyse_line(text.as_bytes(), &[])
}

/// Class, program and target of a line that is understood.
fn main_of(text: &str) -> (Class, String, String) {
    let found = line(text);
    assert_eq!(found.opaque, None, "{text}");
    let main = found.main.expect("a command");
    let target = found.target.unwrap_or_default();
    (
        main.class,
        main.program,
        String::from_utf8_lossy(&target).into_owned(),
    )
}

fn class(text: &str) -> Class {
    classify(&Line::parse(text.as_bytes()).commands[0].words).class
}

#[test]
fn real_lines_are_understood() {
    for (text, class, program, target) in [
        (KERNEL, Class::Compile, "gcc", "kernel/panic.o"),
        (AUTOMAKE, Class::Compile, "gcc", "src/hello.o"),
        // redis
        (
            "cc -std=c99 -c -O3 -fPIC   -Wall -W -g -ggdb -pedantic alloc.c",
            Class::Compile,
            "cc",
            "alloc.o",
        ),
        (
            "cd lua/src && cc -O2 -c -o lapi.o lapi.c",
            Class::Compile,
            "cc",
            "lapi.o",
        ),
        (
            "printf '    %b %b\\n' \"\\033[34mCC\\033[0m\" \"x.o\" 1>&2;cc -pedantic -DREDIS_STATIC='' -std=c11 -MMD -o adlist.o -c adlist.c",
            Class::Compile,
            "cc",
            "adlist.o",
        ),
        // libtool and depcomp
        (
            "/bin/bash ../libtool  --tag=CC   --mode=compile gcc -DHAVE_CONFIG_H -I. -g -O2 -MT x.lo -MD -MP -MF .deps/x.Tpo -c -o x.lo x.c && mv -f .deps/x.Tpo .deps/x.Plo",
            Class::Compile,
            "libtool",
            "x.lo",
        ),
        (
            "/bin/sh ./libtool --silent --tag=CC --mode=link gcc -g -O2 -o libx.la -rpath /usr/lib a.lo b.lo",
            Class::Link,
            "libtool",
            "libx.la",
        ),
        (
            "source='a.c' object='a.o' libtool=no DEPDIR=.deps depmode=gcc3 /bin/sh ./build-aux/depcomp gcc -c -o a.o a.c",
            Class::Compile,
            "gcc",
            "a.o",
        ),
        (
            "CC=gcc /bin/bash ./build-aux/compile cc -c -o a.o a.c",
            Class::Compile,
            "cc",
            "a.o",
        ),
        // cmake's Makefiles, and ninja
        (
            "cd /src/json/m/tests && /usr/bin/cc -D JSON_C_DLL -g -MD -MT a.c.o -MF a.c.o.d -o CMakeFiles/a.dir/a.c.o -c /src/json/tests/a.c",
            Class::Compile,
            "cc",
            "CMakeFiles/a.dir/a.c.o",
        ),
        (
            "/usr/bin/cmake -E cmake_link_script CMakeFiles/json-c.dir/link.txt --verbose=1",
            Class::Link,
            "cmake_link_script",
            "json-c",
        ),
        (
            ": && /usr/bin/c++ -O3 -rdynamic a.o b.o -o bin/x  -Wl,-rpath,/src libx.so && :",
            Class::Link,
            "c++",
            "bin/x",
        ),
        (
            ": && /usr/bin/cmake -E rm -f libx.a && /usr/bin/ar qc libx.a a.o && /usr/bin/ranlib libx.a && :",
            Class::Text,
            "ar",
            "libx.a",
        ),
        // cargo
        (
            "rustc --crate-name wire --edition=2024 crates/wire/src/lib.rs --error-format=json --crate-type lib --emit=dep-info,metadata,link -C opt-level=3 --out-dir target/deps --extern 'serde=target/deps/libserde.rmeta'",
            Class::Compile,
            "rustc",
            "target/deps/wire",
        ),
        // emacs
        (
            "cd ../lisp && EMACSLOADPATH= '../src/bootstrap-emacs' -batch --no-site-file --no-site-lisp --eval '(setq load-prefer-newer t)' -l comp -f batch-byte-compile+native 'emacs-lisp/cl-lib.el'",
            Class::Heavy,
            "bootstrap-emacs",
            "emacs-lisp/cl-lib.elc",
        ),
        ("ccache sccache gcc -c x.c", Class::Compile, "gcc", "x.o"),
        (
            "env -u A X=y nice -n 5 time -p exec x86_64-linux-gnu-g++-12 -S x.cc",
            Class::Compile,
            "g++",
            "x.s",
        ),
        (
            "sh -c 'if true; then gcc -o a a.o; fi'",
            Class::Link,
            "gcc",
            "a",
        ),
        ("eval 'gcc -c x.c' '-o y.o'", Class::Compile, "gcc", "y.o"),
        ("gcc -E -P x.lds.S >x.lds", Class::Compile, "gcc", "x.lds"),
        ("gcc one.c -o one", Class::Compile, "gcc", "one"),
        (
            "cd doc; rm -f x.info; LANGUAGE= makeinfo   -o x.info x.texi",
            Class::Heavy,
            "makeinfo",
            "x.info",
        ),
        (
            "python3 tools/gen.py --all >gen.h.tmp && mv gen.h.tmp gen.h",
            Class::Unknown,
            "python3 gen.py",
            "gen.h.tmp",
        ),
        (
            "java -jar lib/closure.jar --js a.js",
            Class::Unknown,
            "java -jar closure.jar",
            "",
        ),
        ("./mkfoo a b > c", Class::Unknown, "mkfoo", "c"),
        (
            "for i in a b; do test -d $i || mkdir $i; done",
            Class::Files,
            "mkdir",
            "",
        ),
        (
            "x86_64-linux-gnu-gcc-ar cr libx.a a.o",
            Class::Text,
            "x86_64-linux-gnu-gcc-ar",
            "libx.a",
        ),
    ] {
        let found = main_of(text);
        assert_eq!(
            found,
            (class, program.to_owned(), target.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn make_is_found_wherever_it_stands() {
    for text in [
        "make -C sub all",
        "cd a && /usr/bin/gmake",
        "for d in a b; do (cd $d && make $t) || exit 1; done",
        "echo `make -s print`",
        "set -e; if true; then exec env A=b make; fi",
        "sh -c 'cd x; make'",
        AUTOMAKE_RECURSION,
    ] {
        assert_eq!(
            line(text).recursive.as_deref(),
            Some(if text.contains("gmake") {
                "gmake"
            } else {
                "make"
            }),
            "{text}"
        );
    }
    for text in [
        "echo make",
        "gcc -c make.c",
        "./make-it",
        "rm -f make",
        "echo 'a; make'",
    ] {
        assert_eq!(line(text).recursive, None, "{text}");
    }
    assert_eq!(
        line("cmake --build . && true").builder.as_deref(),
        Some("cmake")
    );
    assert_eq!(line("true; cargo build").builder.as_deref(), Some("cargo"));
    assert_eq!(
        line("test -z x || sudo rm x").outside.as_deref(),
        Some("sudo")
    );
    // Only a text for a trap.
    assert_eq!(line("trap 'kill -s INT $$' INT").outside, None);
}

#[test]
fn compilers_are_asked_for_many_things() {
    for text in [
        "gcc --version",
        "gcc -dumpmachine",
        "cc -print-prog-name=ld x.o",
        "gcc -v",
        "clang -###  x.c",
        "gcc -E x.c",
        "gcc -MM x.c",
        "rustc -vV",
        "rustc --print cfg x.rs",
        "ld -v",
        "as --version",
        "gcc -Werror -c -x c /dev/null -o t",
        "ccache -s",
        "gcc -E -dM - </dev/null",
        "rustc - --crate-name ___ --print=file-names",
    ] {
        assert_eq!(class(text), Class::Query, "{text}");
    }
    assert_eq!(line("gcc -x c -").input, Input::Yes);
    assert_eq!(
        line("echo 'int x;' | gcc -x c - -c -o x.o").input,
        Input::No
    );
    assert_eq!(line("gcc -c x.c; cat").input, Input::Yes);
    assert_eq!(line("gcc -c x.c; cat <x").input, Input::No);
    assert_eq!(
        line("while read x; do gcc -c $x; done <list").input,
        Input::Yes
    );
}

#[test]
fn what_only_the_shell_knows_is_opaque() {
    for text in [
        "$CC -c x.c",
        "eval $x",
        ". ./env.sh",
        "sh -c \"$x\"",
        "`cat cmd` x",
        "sh",
    ] {
        assert!(line(text).opaque.is_some(), "{text}");
    }
    // What is understood beside it counts.
    let found = line("eval $x; gcc -c x.c");
    assert!(found.opaque.is_some());
    assert_eq!(found.main.map(|main| main.class), Some(Class::Compile));
    // Functions of the line are no programs.
    assert_eq!(main_of("f() { gcc -c $1; }; f x.c").0, Class::Compile);
}

#[test]
fn names_are_shortened_with_care() {
    for (name, short) in [
        ("gcc-12", "gcc"),
        ("x86_64-linux-gnu-gcc-12", "gcc"),
        ("arm-none-eabi-ld", "ld"),
        ("clang++-15", "clang++"),
        ("llvm-ar", "ar"),
        ("clang-format", "clang-format"),
        ("python3.11", "python3.11"),
        ("c++", "c++"),
        ("gcc-ranlib-12", "ranlib"),
        ("foo-gcc", "foo-gcc"),
        ("-", "-"),
        ("12", "12"),
    ] {
        assert_eq!(names::short(name), short, "{name}");
    }
}

#[test]
fn each_machines_own_files_are_noticed() {
    let own = [b"/tmp".to_vec(), b"/dev".to_vec()];
    for (text, found) in [
        ("gcc -c /tmp/x.c", Some("/tmp/x.c")),
        ("gcc -I/tmp/inc -c x.c", Some("/tmp/inc")),
        ("x --out=/tmp/y", Some("/tmp/y")),
        ("x > /tmp/log", Some("/tmp/log")),
        ("T=/tmp/z x", Some("/tmp/z")),
        ("cp /dev/sda1 x", Some("/dev/sda1")),
        ("x >/dev/null 2>&1 </dev/zero", None),
        ("gcc -c src/tmp/x.c", None),
        ("gcc -c $(srcdir)/tmp/x.c", None),
        ("gcc -c /tmpfile.c", None),
        ("cat <<E >x\n/tmp/y\nE\n", None),
    ] {
        assert_eq!(
            analyse_line(text.as_bytes(), &own).own.as_deref(),
            found,
            "{text}"
        );
    }
}

#[test]
fn the_directory_is_that_of_the_main_command() {
    assert_eq!(
        line("cd a && gcc -c x.c && cd ../b && echo").directory,
        Directory::At(b"a".to_vec())
    );
    assert_eq!(line("gcc -c x.c; cd b; echo").directory, Directory::Start);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..proptest::prelude::ProptestConfig::with_cases(600) })]

    #[test]
    fn any_line_is_judged(words in proptest::collection::vec(proptest::sample::select(vec![
        "gcc", "-c", "-o", "x.c", "env", "exec", "sh", "-c 'sh -c make'", "eval", "libtool", "--mode=link", "cmake",
        "-E", "cmake_link_script", "xargs", "timeout", "|", ";", "$(", ")", "'", "\"", "rustc", "--out-dir", "emacs",
        "-batch", "-f", "batch-byte-compile", "python3", "-m", "ccache", "nice", "-n", "/tmp", "=", "A=b", "-", "--",
    ]), 0..14)) {
        let text = words.join(" ");
        let found = analyse_line(text.as_bytes(), &[b"/tmp".to_vec()]);
        proptest::prop_assert!(found.own.is_none() || text.contains("/tmp"));
        // What is a line within the line has been looked into.
        let is_line = |work: &Work| matches!(work.class, Class::Line(_) | Class::Opaque);
        proptest::prop_assert!(!found.main.as_ref().is_some_and(is_line));
        let arguments: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let _ = analyse_program("gcc", &arguments, &[b"/tmp".to_vec()]);
        let _ = analyse_script(&arguments, &[]);
    }
}
