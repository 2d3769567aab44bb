#![forbid(unsafe_code)]
//! Builds what nodes boot.
