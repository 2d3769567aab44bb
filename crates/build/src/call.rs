//! What a shim is asked to do: a shell with a line, a script, or a compiler driver.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One start of a program that a shim stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The real file that the shim stands for.
    pub program: PathBuf,
    /// The arguments, argv\[0\] among them.
    pub argv: Vec<Vec<u8>>,
    /// The working directory.
    pub cwd: PathBuf,
    /// What standard input is.
    pub stdin: StdinKind,
    /// Standard output is a pipe that is not the standard output of the parent.
    pub captured: bool,
    /// The descriptors of make's jobserver are open.
    pub jobserver: bool,
    /// Descriptors ≥ 3 are open that make did not inherit at its start; the jobserver's apart.
    pub extra_descriptors: bool,
    /// The environment names a fakeroot session.
    pub fake_root: bool,
    /// The file name of the parent's program (`make`, `ninja`, `dash` …), empty if not known.
    pub started_by: String,
    /// The nearest ancestor that is a shim's program running here, if there is one.
    pub inside: Option<crate::ShimId>,
}

/// What a call's standard input is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdinKind {
    /// `/dev/null`, or closed.
    #[default]
    Null,
    /// A terminal.
    Terminal,
    /// A file, a pipe, a socket.
    Other,
}

/// A call, by the way its program takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// `sh -c LINE`.
    Line(&'a [u8]),
    /// `sh FILE ARGUMENT…`; the slice begins with the file.
    Script(&'a [Vec<u8>]),
    /// A shell that reads its commands from standard input, or a login shell.
    Session,
    /// Anything but a shell: the program's name and the arguments behind it.
    Program(&'a [Vec<u8>]),
}

const SHELLS: &[&str] = &[
    "sh", "ash", "bash", "dash", "ksh", "ksh93", "mksh", "posh", "rbash", "yash", "zsh",
];

/// Whether a program of this name is a shell.
pub(crate) fn is_shell(name: &str) -> bool {
    SHELLS.contains(&name)
}

impl Call {
    /// The name of the program: the file's, but for a busybox that is called by another.
    pub(crate) fn name(&self) -> String {
        let name = file_name(self.program.as_os_str().as_encoded_bytes());
        if (name == "busybox" || name == "toybox")
            && let Some(first) = self.argv.first()
        {
            return file_name(first).trim_start_matches('-').to_owned();
        }
        name
    }

    pub(crate) fn kind(&self) -> Kind<'_> {
        let arguments = self.argv.get(1..).unwrap_or_default();
        if !is_shell(&self.name()) {
            return Kind::Program(arguments);
        }
        if self.argv.first().is_some_and(|name| name.starts_with(b"-")) {
            return Kind::Session;
        }
        shell_kind(arguments)
    }
}

/// Reads a shell's own options: `-ec LINE`, `-o pipefail -c LINE`, `-x FILE …`.
pub(crate) fn shell_kind(arguments: &[Vec<u8>]) -> Kind<'_> {
    let mut rest = arguments;
    let mut is_line = false;
    let mut is_session = false;
    while let Some((option, behind)) = rest.split_first() {
        if option == b"-" || option == b"--" {
            rest = behind;
            break;
        }
        if option.starts_with(b"--") {
            is_session |= option == b"--login";
            let has_value = option == b"--rcfile" || option == b"--init-file";
            rest = behind.get(usize::from(has_value)..).unwrap_or_default();
            continue;
        }
        if option.len() < 2 || !(option[0] == b'-' || option[0] == b'+') {
            break;
        }
        rest = behind;
        if option[0] == b'-' {
            is_line |= option.contains(&b'c');
            is_session |= option[1..].iter().any(|letter| b"ils".contains(letter));
        }
        // `-o` and `-O` take the next argument.
        let values = option
            .iter()
            .filter(|letter| b"oO".contains(letter))
            .count();
        rest = rest.get(values..).unwrap_or_default();
    }
    match rest.first() {
        _ if is_session => Kind::Session,
        Some(line) if is_line => Kind::Line(line),
        Some(_) if !is_line => Kind::Script(rest),
        _ => Kind::Session,
    }
}

/// The last component of a path.
pub(crate) fn file_name(path: &[u8]) -> String {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(program: &str, arguments: &[&str]) -> Call {
        Call {
            program: program.into(),
            argv: arguments.iter().map(|a| a.as_bytes().to_vec()).collect(),
            ..Call::default()
        }
    }

    #[test]
    fn a_shells_options_are_read() {
        for arguments in [
            &["sh", "-c", "true"][..],
            &["/bin/sh", "-ec", "true"],
            &["bash", "-e", "-o", "pipefail", "-c", "true"],
            &["bash", "-eo", "pipefail", "-c", "true", "sh", "x"],
            &["bash", "--norc", "-c", "true"],
            &["sh", "+x", "-c", "--", "true"],
        ] {
            assert_eq!(
                call("/usr/bin/dash", arguments).kind(),
                Kind::Line(b"true"),
                "{arguments:?}"
            );
        }
        for arguments in [
            &["sh"][..],
            &["-sh", "-c", "true"],
            &["bash", "-i"],
            &["bash", "--login", "-c", "true"],
            &["sh", "-s", "x"],
            &["sh", "-c"],
            &["bash", "-o"],
        ] {
            assert_eq!(
                call("/bin/bash", arguments).kind(),
                Kind::Session,
                "{arguments:?}"
            );
        }
        let script = call(
            "/bin/sh",
            &["/bin/sh", "-e", "./libtool", "--mode=link", "-c"],
        );
        assert!(matches!(script.kind(), Kind::Script(words) if words.len() == 3));
        let driver = call("/usr/bin/gcc-12", &["cc", "-c", "x.c"]);
        assert!(matches!(driver.kind(), Kind::Program(words) if words.len() == 2));
        let busybox = call("/bin/busybox", &["sh", "-c", "true"]);
        assert_eq!(busybox.kind(), Kind::Line(b"true"));
    }
}
