//! What the kernel knows of the way that a TCP connection's bytes take.

use crate::arch::{checked, int};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// `struct tcp_info` (linux/tcp.h) as far as it is read here; libc's is shorter. It only grows at
/// its end.
const INFO_BYTES: usize = 176;
const ACKNOWLEDGED_AT: usize = 120;
const NOT_SENT_AT: usize = 144;
const DELIVERY_RATE_AT: usize = 160;
const BUSY_TIME_AT: usize = 168;

/// A connection's way to the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// How fast bytes have arrived lately (`tcpi_delivery_rate`); while the sender had little to
    /// send, the most that was seen. 0 if nothing has been measured.
    pub bytes_per_s: u64,
    /// Bytes that the kernel holds and has not sent yet.
    pub unsent_bytes: u64,
    /// Bytes that have arrived since the connection was made.
    pub arrived_bytes: u64,
    /// Of that time, how long anything was under way; counted in the kernel's ticks.
    pub busy_us: u64,
}

/// Asks the kernel. `EOPNOTSUPP` where the socket is no TCP socket.
pub fn way(socket: impl AsFd) -> Result<Way, Errno> {
    let mut info = [0_u8; INFO_BYTES];
    let mut length = u32::try_from(INFO_BYTES).map_err(|_| Errno::INVAL)?;
    let args = [
        int(socket.as_fd().as_raw_fd()),
        int(libc::IPPROTO_TCP),
        int(libc::TCP_INFO),
        info.as_mut_ptr().expose_provenance(),
        (&raw mut length).expose_provenance(),
    ];
    // SAFETY: the kernel writes at most `length` bytes to the array, and to `length`.
    unsafe { checked(libc::SYS_getsockopt, args) }?;
    // SAFETY: a local array, as the kernel wrote it, which the compiler has not seen.
    let info = unsafe { std::ptr::read_volatile(&raw const info) };
    Ok(Way {
        bytes_per_s: u64::from_ne_bytes(part(&info, DELIVERY_RATE_AT)),
        unsent_bytes: u32::from_ne_bytes(part(&info, NOT_SENT_AT)).into(),
        arrived_bytes: u64::from_ne_bytes(part(&info, ACKNOWLEDGED_AT)),
        busy_us: u64::from_ne_bytes(part(&info, BUSY_TIME_AT)),
    })
}

/// Has unanswered bytes sent again at least this often, rather than after pauses that double up to
/// two minutes (`TCP_RTO_MAX_MS`, Linux 6.15): so a connection goes on soon after its way does.
///
/// # Errors
/// `ENOPROTOOPT` on an older kernel. `EINVAL`: less than a second, or more than two minutes.
pub fn set_longest_retry(socket: impl AsFd, longest: Duration) -> Result<(), Errno> {
    const TCP_RTO_MAX_MS: libc::c_int = 44;
    let ms: libc::c_int = longest.as_millis().try_into().map_err(|_| Errno::INVAL)?;
    let args = [
        int(socket.as_fd().as_raw_fd()),
        int(libc::IPPROTO_TCP),
        int(TCP_RTO_MAX_MS),
        (&raw const ms).expose_provenance(),
        size_of::<libc::c_int>(),
    ];
    // SAFETY: the kernel reads one int.
    unsafe { checked(libc::SYS_setsockopt, args) }.map(|_| ())
}

fn part<const N: usize>(info: &[u8; INFO_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&info[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_is_sent_is_measured_and_what_waits_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let mut bytes = vec![7; 1 << 20];
        for _ in 0..20 {
            sender.write_all(&bytes[..64 << 10]).unwrap();
            receiver.read_exact(&mut bytes[..64 << 10]).unwrap();
        }
        let idle = way(&sender).unwrap();
        assert!(idle.bytes_per_s > 1 << 20, "{idle:?}");
        assert_eq!(idle.unsent_bytes, 0);
        // The handshake's own number is counted, too.
        assert!(
            idle.arrived_bytes.abs_diff(20 * (64 << 10)) <= 1,
            "{idle:?}"
        );
        sender.set_nonblocking(true).unwrap();
        while sender.write(&bytes).is_ok() {}
        let full = way(&sender).unwrap();
        assert!(full.unsent_bytes > 0);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let passed_us = way(&sender).unwrap().busy_us - full.busy_us;
        assert!((30_000..1_000_000).contains(&passed_us), "{passed_us}");
    }

    #[test]
    fn pauses_between_retries_can_be_bounded() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        match set_longest_retry(&socket, Duration::from_secs(3)) {
            Err(Errno::NOPROTOOPT) => return println!("SKIPPED: Linux older than 6.15"),
            done => done.unwrap(),
        }
        let too_short = set_longest_retry(&socket, Duration::from_millis(10));
        assert_eq!(too_short, Err(Errno::INVAL));
    }

    #[test]
    fn another_socket_is_refused() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(way(&one).is_err());
    }
}
