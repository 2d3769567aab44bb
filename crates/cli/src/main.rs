#![forbid(unsafe_code)]
//! The `wiglaf` command.
fn main() {}
