#![forbid(unsafe_code)]
//! view
