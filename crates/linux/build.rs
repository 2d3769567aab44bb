//! Builds the programs without a C library (the ghost in `ghost/`, the shim in `shim/`, what
//! they share in `bare/`) for the target's architecture.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Each is a folder here with a `main.rs`, and the file of that name in `OUT_DIR`.
const PROGRAMS: [&str; 2] = ["ghost", "shim"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=bare");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut code = ExitCode::SUCCESS;
    for program in PROGRAMS {
        println!("cargo::rerun-if-changed={program}");
        if let Err(complaints) = build(&root, program, &out.join(program), &target) {
            println!("cargo::error=can't build the {program} for {target}");
            for line in complaints.lines() {
                println!("cargo::error={line}");
            }
            code = ExitCode::FAILURE;
        }
    }
    code
}

#[derive(Clone, Copy)]
enum Linker {
    Rust,
    C,
}

/// rustup's own linker knows every architecture; a distribution's rustc may come without it
/// and has a C compiler's to use.
fn build(root: &Path, program: &str, output: &Path, target: &str) -> Result<(), String> {
    let mut complaints = String::new();
    for linker in [Linker::Rust, Linker::C] {
        match build_with(root, program, output, target, linker) {
            Ok(()) => return Ok(()),
            Err(complaint) => complaints.push_str(&complaint),
        }
    }
    Err(complaints)
}

fn build_with(
    root: &Path,
    program: &str,
    output: &Path,
    target: &str,
    linker: Linker,
) -> Result<(), String> {
    let script = root.join("bare/bare.ld");
    let script = script.display();
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .arg(root.join(program).join("main.rs"))
        .args(["--edition=2024", "--crate-name", program])
        .args(["--crate-type=bin", "--target", target, "-o"])
        .arg(output)
        .args(["-Cpanic=abort", "-Copt-level=z", "-Ccodegen-units=1"])
        .args(["-Crelocation-model=static", "-Cforce-unwind-tables=no"])
        .args(["-Cstrip=symbols", "-Cdebuginfo=0", "-Coverflow-checks=off"]);
    match linker {
        Linker::Rust => rustc
            .args(["-Clinker=rust-lld", "-Clinker-flavor=ld.lld"])
            .args(["-Clink-arg=-static", "-Clink-arg=--build-id=none"])
            .arg(format!("-Clink-arg=-T{script}"))
            .arg("-Clink-arg=-n"),
        Linker::C => rustc
            .args(["-Clink-arg=-nostdlib", "-Clink-arg=-nostartfiles"])
            .args(["-Clink-arg=-static", "-Clink-arg=-Wl,--build-id=none"])
            .arg(format!("-Clink-arg=-Wl,-T{script},-n")),
    };
    match rustc.output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        Err(error) => Err(format!("can't run {rustc:?}: {error}\n")),
    }
}
