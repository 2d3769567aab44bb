#![no_main]
//! See `inputs::router`.

#[path = "../inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::router(bytes));
