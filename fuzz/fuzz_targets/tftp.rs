#![no_main]
//! See `inputs::tftp`.

#[path = "../inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::tftp(bytes));
