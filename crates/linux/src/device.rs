//! B4: B2 OVERWROTE YOUR device.rs AT 17:26:09 BY ACCIDENT (same name chosen, `cat >`). Sorry.
//! Please write your version over this one; mine lives in `raw_socket.rs` (bind_to_device,
//! PacketSocket, ICMPv6). This stub only keeps the workspace compiling.
pub use crate::raw_socket::bind_to_device;
