//! Programs that are known by name.

use super::Class;
use crate::line::Word;

/// Builtins, and programs that are over before a node would have heard of them.
const NOTHING: &[&str] = &[
    ":",
    "[",
    "alias",
    "arch",
    "basename",
    "bg",
    "break",
    "continue",
    "date",
    "declare",
    "dirname",
    "echo",
    "exit",
    "export",
    "expr",
    "false",
    "fg",
    "getconf",
    "getopts",
    "hash",
    "hostname",
    "id",
    "jobs",
    "let",
    "local",
    "logname",
    "mktemp",
    "nproc",
    "pkg-config",
    "pkgconf",
    "popd",
    "printenv",
    "printf",
    "pushd",
    "pwd",
    "read",
    "readlink",
    "readonly",
    "realpath",
    "return",
    "seq",
    "set",
    "shift",
    "shopt",
    "sleep",
    "sync",
    "test",
    "times",
    "trap",
    "true",
    "tty",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unalias",
    "uname",
    "unset",
    "wait",
    "which",
    "whoami",
    "cd",
];

const FILES: &[&str] = &[
    "chgrp",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "dd",
    "df",
    "diff",
    "du",
    "file",
    "find",
    "install",
    "install-sh",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mkinstalldirs",
    "move-if-change",
    "mv",
    "rm",
    "rmdir",
    "rsync",
    "stat",
    "strip",
    "touch",
    "truncate",
    "unlink",
];

const TEXT: &[&str] = &[
    "ar",
    "awk",
    "b2sum",
    "base64",
    "bc",
    "cat",
    "cksum",
    "comm",
    "cut",
    "dc",
    "egrep",
    "fgrep",
    "fmt",
    "fold",
    "gawk",
    "grep",
    "head",
    "hexdump",
    "join",
    "mawk",
    "md5sum",
    "nawk",
    "nl",
    "nm",
    "objcopy",
    "objdump",
    "od",
    "paste",
    "ranlib",
    "readelf",
    "rev",
    "sed",
    "sha1sum",
    "sha256sum",
    "sha512sum",
    "size",
    "sort",
    "split",
    "strings",
    "sum",
    "tac",
    "tail",
    "tee",
    "tr",
    "uniq",
    "wc",
    "xxd",
    "zcat",
];

const HEAVY: &[&str] = &[
    "a2x",
    "asciidoc",
    "asciidoctor",
    "bibtex",
    "convert",
    "csc",
    "docbook2html",
    "docbook2man",
    "docbook2pdf",
    "doxygen",
    "dune",
    "dvipdfm",
    "dvips",
    "fpc",
    "ghc",
    "gnatmake",
    "go",
    "gs",
    "inkscape",
    "jar",
    "javac",
    "javadoc",
    "kotlinc",
    "latex",
    "lilypond",
    "lto-dump",
    "lualatex",
    "magick",
    "makeinfo",
    "mcs",
    "mf",
    "mpost",
    "nvcc",
    "ocamlc",
    "ocamlfind",
    "ocamlopt",
    "pandoc",
    "pdflatex",
    "pdftex",
    "pdfroff",
    "povray",
    "rsvg-convert",
    "rustdoc",
    "scalac",
    "sphinx-build",
    "swiftc",
    "tex",
    "texi2any",
    "texi2dvi",
    "texi2pdf",
    "valac",
    "xelatex",
    "xmlto",
    "xsltproc",
];

/// They start what makes: their own lines come as calls.
const BUILDERS: &[&str] = &[
    "autoreconf",
    "bazel",
    "cargo",
    "config.status",
    "configure",
    "ctest",
    "dpkg-buildpackage",
    "gradle",
    "meson",
    "mvn",
    "ninja",
    "ninja-build",
    "samu",
    "scons",
    "tup",
    "waf",
];

const MAKES: &[&str] = &[
    "bmake", "gmake", "gnumake", "make", "mmake", "pmake", "remake",
];

/// They talk to processes, devices or machines that only the head has.
const OUTSIDE: &[&str] = &[
    "apt",
    "apt-get",
    "at",
    "chroot",
    "crontab",
    "dbus-launch",
    "dbus-run-session",
    "dbus-send",
    "debugfs",
    "depmod",
    "dmesg",
    "dnf",
    "doas",
    "docker",
    "dpkg",
    "fakechroot",
    "fakeroot",
    "fakeroot-sysv",
    "fakeroot-tcp",
    "fusermount",
    "fusermount3",
    "gdb",
    "gpg",
    "gpg-agent",
    "gpg2",
    "insmod",
    "ip",
    "iptables",
    "kill",
    "killall",
    "ldconfig",
    "logger",
    "losetup",
    "machinectl",
    "mke2fs",
    "mkfs",
    "mkswap",
    "modprobe",
    "mount",
    "mknod",
    "nc",
    "nsenter",
    "pgrep",
    "pkexec",
    "pkill",
    "podman",
    "ps",
    "rmmod",
    "rpm",
    "runuser",
    "scp",
    "screen",
    "script",
    "service",
    "setfacl",
    "setpriv",
    "setsid",
    "sftp",
    "ssh",
    "ssh-add",
    "ssh-agent",
    "start-stop-daemon",
    "strace",
    "stty",
    "su",
    "sudo",
    "sysctl",
    "systemctl",
    "systemd-run",
    "tmux",
    "top",
    "udevadm",
    "umount",
    "unshare",
    "wiglaf",
    "wget",
    "curl",
    "xvfb-run",
];

const EMACSES: &[&str] = &["bootstrap-emacs", "emacs", "temacs"];

/// A name without the version and the machine that it compiles for: `x86_64-linux-gnu-gcc-12` is
/// `gcc`, `llvm-ar` is `ar`.
pub(super) fn short(name: &str) -> &str {
    let versioned = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let base = match versioned.strip_suffix('-') {
        Some(base) if versioned.len() < name.len() => base,
        _ => name,
    };
    match base.rsplit_once('-') {
        // `clang-format` is no `format`; only what follows a machine or a tool chain counts.
        Some((before, last)) if is_machine(before) => last,
        _ => base,
    }
}

fn is_machine(text: &str) -> bool {
    matches!(text, "llvm" | "gcc" | "musl" | "c89" | "c99")
        || text.contains("-gnu")
        || text.contains("-linux")
        || text.contains("-none")
        || text.contains("-elf")
        || text.contains("-mingw32")
        || text.contains("-musl")
        || text.contains("-eabi")
}

pub(super) fn class(name: &str) -> Option<Class> {
    let has = |names: &[&str]| names.contains(&name);
    if has(NOTHING) {
        Some(Class::Nothing)
    } else if has(FILES) {
        Some(Class::Files)
    } else if has(TEXT) {
        Some(Class::Text)
    } else if has(HEAVY) || has(EMACSES) {
        Some(Class::Heavy)
    } else if has(MAKES) {
        Some(Class::Recursive)
    } else if has(BUILDERS) {
        Some(Class::Builder)
    } else if has(OUTSIDE) {
        Some(Class::Outside)
    } else {
        None
    }
}

/// Emacs with a display is for people.
pub(super) fn is_emacs(name: &str) -> bool {
    EMACSES.contains(&name)
        || name
            .strip_prefix("emacs-")
            .is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

/// What `-f batch-byte-compile FILE.el` makes.
pub(super) fn byte_compiled(arguments: &[Word]) -> Option<Vec<u8>> {
    let compiles = |word: &Word| word.text.starts_with(b"batch-byte");
    let at = arguments.iter().position(compiles)?;
    let source = arguments[at..]
        .iter()
        .find(|word| word.text.ends_with(b".el"))?;
    Some([source.text.as_slice(), b"c"].concat())
}
