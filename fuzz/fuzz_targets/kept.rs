#![no_main]
//! See `kept::kept`.

#[path = "../kept.rs"]
mod kept;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kept::kept(bytes));
