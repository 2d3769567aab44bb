#![no_main]
//! See `inputs::dns`.

#[path = "../inputs.rs"]
#[allow(dead_code, reason = "the others have targets of their own")]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::dns(bytes));
