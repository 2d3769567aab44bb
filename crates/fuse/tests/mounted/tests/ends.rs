//! How a mount ends.

use rustix::io::Errno;
use wiglaf_fuse::{BUFFER_BYTES, DeviceError, Notification};

use crate::served::{Served, soon};

pub(super) fn an_unmounted_device_is_gone() {
    let served = Served::new();
    assert!(served.root().metadata().is_ok());
    let device = served.device.clone();
    let mut buffer = vec![0; BUFFER_BYTES];
    assert_eq!(served.end(), DeviceError::Gone);
    assert_eq!(device.receive(&mut buffer), Err(DeviceError::Gone));
    let told = device.notify(&Notification::Attributes { node: 1 });
    assert_eq!(told, Err(Errno::NOENT));
    let unmounted = wiglaf_fuse::Device::open().expect("the device");
    let result = unmounted.receive(&mut buffer);
    assert_eq!(result, Err(DeviceError::Io(Errno::PERM)));
}

pub(super) fn waiting_requests_end_with_the_mount() {
    let served = Served::new();
    served.memory().hold = Some(b"slow");
    let path = served.path("slow");
    let asker = std::thread::spawn(move || path.metadata().expect_err("it never was"));
    soon("a lookup", || !served.memory().held.is_empty());
    assert_eq!(served.end(), DeviceError::Gone);
    let error = asker.join().expect("the asker");
    let errno = error.raw_os_error();
    let aborted = [Errno::CONNABORTED, Errno::NOTCONN].map(Errno::raw_os_error);
    assert!(
        errno.is_some_and(|errno| aborted.contains(&errno)),
        "{error}"
    );
}
