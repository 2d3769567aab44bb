#![no_main]
//! See `inputs::dhcp`.

#[path = "../inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::dhcp(bytes));
