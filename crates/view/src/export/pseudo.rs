//! File systems that show the head's kernel or the asking process instead of stored files.
//!
//! Through the view they would tell a node about the head's processes, and some of their
//! "regular" files wait when they are read. A node has its own.

use std::os::fd::BorrowedFd;

/// `f_type` of these file systems, from `linux/magic.h`.
const PSEUDO: [u32; 20] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0x6265_6570, // configfs
    0x0000_1cd1, // devpts
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x1980_0202, // mqueue
    0x4249_4e4d, // binfmt_misc
    0xde5e_81e4, // efivarfs
    0x6e73_6673, // nsfs
    0x6573_5543, // fusectl
    0x6759_6969, // rpc_pipefs
    0x6e66_7364, // nfsd
];

/// Whether the file is of such a file system; one that does not tell counts as such.
pub(super) fn is_pseudo(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).map_or(true, |system| {
        let kind = u64::from_ne_bytes(system.f_type.to_ne_bytes()) & 0xffff_ffff;
        PSEUDO.iter().any(|&pseudo| u64::from(pseudo) == kind)
    })
}
