//! Tests that fork, trace and change credentials: each runs in a process of its own with one
//! thread, which the standard harness can't give. Those that want root are skipped without.

mod deputies;
mod ghosts;
mod processes;
mod runner;
mod shims;
mod spawning;
mod tracing;

fn main() -> std::process::ExitCode {
    runner::run(&[
        spawning::TESTS,
        ghosts::TESTS,
        shims::TESTS,
        deputies::TESTS,
        processes::TESTS,
        tracing::TESTS,
    ])
}
