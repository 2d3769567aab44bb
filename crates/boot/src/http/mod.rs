//! HTTP/1.1 as far as network boot needs it, and who may fetch what. No sockets here.

pub mod connection;
pub mod request;
pub mod site;
