#![no_main]
//! See `inputs::http`.

#[path = "../inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::http(bytes));
