//! `wiglaf demo`

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::CommandResult;
use crate::error::CommandError;
use crate::output;

/// A guided tour: four virtual nodes, what one can do with them, and everything gone at the end
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A sentence, and the commands that show it.
struct Stop(&'static str, &'static [&'static str]);

/// What is compiled on the way.
const SOURCE: &str = "\
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    char name[64];
    gethostname(name, sizeof name);
    printf(\"hello from %s\\n\", name);
}
";
/// As they are called, most usual first.
const COMPILERS: [&str; 3] = ["cc", "gcc", "clang"];
/// Stands for the compiler that there is.
const COMPILER: &str = "$CC";

const BEGINNING: &[Stop] = &[
    Stop(
        "Four virtual nodes on this machine. Nothing is installed on them.",
        &["wiglaf nodes"],
    ),
    Stop(
        "Any command runs on any node: as you, in your directory, with your environment.",
        &[
            "wiglaf run -w n1 hostname",
            "wiglaf run -a -l sh -c 'echo user $(id -un), PID $$, in $PWD'",
        ],
    ),
    Stop(
        "Pipes, redirections and exit codes are the shell's own.",
        &[
            "wiglaf run -w n1 seq 100 | wiglaf run -w n2 grep 7 | wiglaf run -w n3 wc -l",
            "wiglaf run -w n2 sh -c 'exit 42'; echo \"exit code $?\"",
            "wiglaf run -w n2 no-such-program; echo \"exit code $?\"",
        ],
    ),
];

const COMPILING: Stop = Stop(
    "This machine's files are theirs: compiled on one node, run on all, written by all.",
    &[
        "cat hello.c",
        "wiglaf run -w n1 $CC -o hello hello.c",
        "wiglaf run -a sh -c './hello >from-$WIGLAF_NODE'",
        "grep . from-*",
    ],
);

/// A program of several files, and what makes it.
const SPHERES: [(&str, &str); 10] = [
    ("Makefile", include_str!("demo/spheres/Makefile")),
    ("spheres.h", include_str!("demo/spheres/spheres.h")),
    ("camera.c", include_str!("demo/spheres/camera.c")),
    ("image.c", include_str!("demo/spheres/image.c")),
    ("light.c", include_str!("demo/spheres/light.c")),
    ("main.c", include_str!("demo/spheres/main.c")),
    ("plane.c", include_str!("demo/spheres/plane.c")),
    ("scene.c", include_str!("demo/spheres/scene.c")),
    ("sphere.c", include_str!("demo/spheres/sphere.c")),
    ("vector.c", include_str!("demo/spheres/vector.c")),
];

const BUILDING: Stop = Stop(
    "A ray tracer with an ordinary Makefile: make runs here, its compilers on all nodes.",
    &["cat Makefile", "wiglaf make -j --plan CC=$CC", "./spheres"],
);

const END: &[Stop] = &[
    Stop(
        "Nodes ask for a file once, and are told when it changes.",
        &["wiglaf view status"],
    ),
    Stop(
        "A remote process is in this machine's process table, with the same PID: its ghost.",
        &[
            "wiglaf run -w n3 sleep 1000 & sleep 0.3; ps -o pid,stat,args -p $!; wiglaf ps; \
             kill $!; wait $!; echo \"exit code $? (128 + SIGTERM)\"",
        ],
    ),
    Stop(
        "Eight tasks where there is room; equal outputs gathered.",
        &[
            "wiglaf run -n 8 -l sh -c 'echo task $WIGLAF_RANK of $WIGLAF_SIZE'",
            "wiglaf run -a -b uname -sr",
        ],
    ),
    Stop(
        "When a launcher is killed, nothing keeps spinning on the node.",
        &[
            "wiglaf run -w n4 sh -c 'while :; do :; done' & sleep 0.3; kill -9 $!; wait $!; \
             sleep 0.2; wiglaf ps",
        ],
    ),
];

pub(crate) fn run(_args: &Args) -> CommandResult {
    let place = Place::make()?;
    let result = tour(&place);
    let down = place.command("wiglaf down").status();
    let _ = std::fs::remove_dir_all(&place.dir);
    let code = result?;
    if down.is_ok_and(|status| status.success()) {
        output::print(
            "\nEverything is taken down again. Next: `wiglaf up -n 4`, or the README.\n",
        )?;
        Ok(code)
    } else {
        Err(
            CommandError::new("the demo's cluster could not be taken down")
                .hint(format!("its files were in {}", place.dir.display())),
        )
    }
}

fn tour(place: &Place) -> CommandResult {
    show(place, "wiglaf up -n 4")?;
    BEGINNING.iter().try_for_each(|stop| halt(place, stop))?;
    compile(place)?;
    END.iter().try_for_each(|stop| halt(place, stop))?;
    output::print("\n$ wiglaf down\n")?;
    Ok(0)
}

fn halt(place: &Place, Stop(sentence, commands): &Stop) -> Result<(), CommandError> {
    output::print(&format!("\n# {sentence}\n"))?;
    commands.iter().try_for_each(|command| show(place, command))
}

fn compile(place: &Place) -> Result<(), CommandError> {
    let workshop = place.dir.join("hello");
    std::fs::DirBuilder::new().mode(0o755).create(&workshop)?;
    std::fs::write(workshop.join("hello.c"), SOURCE)?;
    let Some(compiler) = compiler(&workshop) else {
        output::print("\n# There is no C compiler here, so nothing is compiled.\n")?;
        return Ok(());
    };
    work(place, &workshop, compiler, &COMPILING)?;
    let yard = place.dir.join("spheres");
    std::fs::DirBuilder::new().mode(0o755).create(&yard)?;
    for (name, text) in SPHERES {
        std::fs::write(yard.join(name), text)?;
    }
    let make = Command::new("make").arg("--version").output();
    if make.is_ok_and(|done| done.status.success()) {
        work(place, &yard, compiler, &BUILDING)
    } else {
        output::print("\n# There is no make here, so nothing is built.\n")?;
        Ok(())
    }
}

/// A stop in a directory of its own, with this machine's compiler.
fn work(
    place: &Place,
    directory: &Path,
    compiler: &str,
    Stop(sentence, commands): &Stop,
) -> Result<(), CommandError> {
    output::print(&format!("\n# {sentence}\n$ cd {}\n", directory.display()))?;
    commands.iter().try_for_each(|command| {
        let command = command.replace(COMPILER, compiler);
        output::print(&format!("$ {command}\n"))?;
        succeed(place.command(&command).current_dir(directory))
    })
}

/// One that can compile the program: some are there without a C library to compile for.
fn compiler(workshop: &Path) -> Option<&'static str> {
    COMPILERS.into_iter().find(|compiler| {
        let mut check = Command::new(compiler);
        check
            .args(["-fsyntax-only", "hello.c"])
            .current_dir(workshop)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        check.status().is_ok_and(|status| status.success())
    })
}

/// Prints the command, and runs it with its real output.
fn show(place: &Place, command: &str) -> Result<(), CommandError> {
    output::print(&format!("$ {command}\n"))?;
    succeed(&mut place.command(command))
}

fn succeed(command: &mut Command) -> Result<(), CommandError> {
    if command.status()?.success() {
        Ok(())
    } else {
        Err(
            CommandError::new("the tour stops here: the last command failed")
                .hint("what is missing is said above; nothing is left running"),
        )
    }
}

/// A directory for the demo's own cluster.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn make() -> Result<Place, CommandError> {
        let pid = std::process::id();
        let dir = std::env::temp_dir().join(format!("wiglaf-demo-{pid}"));
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .map_err(|error| CommandError::new(format!("{}: {error}", dir.display())))?;
        let bin = dir.join("bin");
        std::fs::DirBuilder::new().mode(0o755).create(&bin)?;
        std::os::unix::fs::symlink(std::env::current_exe()?, bin.join("wiglaf"))?;
        Ok(Place { dir })
    }

    fn command(&self, command: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", command])
            .env("WIGLAF_DIR", &self.dir)
            .env("PATH", path_with(&self.dir.join("bin")))
            .stdin(Stdio::null());
        shell
    }
}

fn path_with(dir: &Path) -> std::ffi::OsString {
    let mut path = dir.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    path
}
