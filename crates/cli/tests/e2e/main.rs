//! End to end: real clusters of virtual nodes, the real binary, real shells on real terminals.
//!
//! One test program, so that it is linked once; each test makes the cluster that it needs.

#![expect(
    clippy::print_stdout,
    reason = "tests say aloud what they skip, and logs when they fail"
)]

mod bproc;
mod cluster;
mod examine;
mod failures;
mod files;
mod jobs;
mod machines;
mod make;
mod names;
mod options;
mod private;
mod run;
mod shell;
mod terminal;
mod tour;
mod unreachable;
mod upgrade;
mod users;
mod view;
