#![forbid(unsafe_code)]
//! node
