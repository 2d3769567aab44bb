//! Tests that fork, trace and change credentials: each runs in a process of its own with one
//! thread, which the standard harness can't give. Those that want root are skipped without.

mod runner;
mod spawning;

fn main() -> std::process::ExitCode {
    runner::run(&[spawning::TESTS])
}
