//! Sockets of one network interface, under the name that the head uses.

pub use crate::raw_socket::bind_to_device;
