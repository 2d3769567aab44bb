#![forbid(unsafe_code)]
//! process
