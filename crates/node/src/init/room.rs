//! Whether there is room for another kernel beside this one.
//!
//! Linux itself says no more than EINVAL (`sanity_check_segment_list`, kernel/kexec_core.c), or
//! ends what it takes for the reason that no memory is left, which here is the machine.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const MEMINFO: &str = "/proc/meminfo";
const MIB: u64 = 1 << 20;
/// As much of a kernel's header as is read here.
const HEADER_BYTES: usize = 0x264;

/// There is too little.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RoomError {
    /// However much of it is free.
    #[error(
        "the next kernel takes {needs_mib} MiB to start, and this one gives it no more than half \
         of its {all_mib} MiB"
    )]
    Half {
        /// With its initramfs.
        needs_mib: u64,
        /// What this kernel has for everything.
        all_mib: u64,
    },
    /// At the moment.
    #[error("loading the next kernel takes {needs_mib} MiB, and {free_mib} MiB are free")]
    Free {
        /// With copies of its files.
        needs_mib: u64,
        /// What can be had without taking it from anybody.
        free_mib: u64,
    },
}

/// Whether this kernel and this initramfs, which are in memory already, can be loaded. Of kernels
/// that don't say what they need, only Linux knows.
///
/// # Errors
/// They can't.
pub(super) fn check(kernel: &File, initramfs: &File) -> Result<(), RoomError> {
    let length = |file: &File| file.metadata().map_or(0, |metadata| metadata.len());
    let mut header = [0; HEADER_BYTES];
    let is_read = kernel.read_exact_at(&mut header, 0).is_ok();
    let Some(start) = is_read.then(|| room_to_start(&header)).flatten() else {
        return Ok(());
    };
    let meminfo = fs::read_to_string(MEMINFO).unwrap_or_default();
    judge(start, length(kernel), length(initramfs), &meminfo)
}

fn judge(start: u64, kernel: u64, initramfs: u64, meminfo: &str) -> Result<(), RoomError> {
    let needs = start.saturating_add(initramfs);
    if let Some(all) = field(meminfo, "MemTotal:")
        && needs > all / 2
    {
        return Err(RoomError::Half {
            needs_mib: needs.div_ceil(MIB),
            all_mib: all / MIB,
        });
    }
    // Linux reads both files before it lays them out.
    let needs = needs.saturating_add(kernel).saturating_add(initramfs);
    match field(meminfo, "MemAvailable:") {
        Some(free) if needs > free => Err(RoomError::Free {
            needs_mib: needs.div_ceil(MIB),
            free_mib: free / MIB,
        }),
        _ => Ok(()),
    }
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    number.checked_mul(1024)
}

/// What a kernel takes until it has unpacked itself, from its own header: a PC's
/// (Documentation/arch/x86/boot.rst) or a 64-bit ARM's (Documentation/arch/arm64/booting.rst).
fn room_to_start(header: &[u8; HEADER_BYTES]) -> Option<u64> {
    let at = |at: usize, count: usize| {
        let bytes = header[at..at + count].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    if header[0x202..].starts_with(b"HdrS") && at(0x206, 2) >= 0x20a {
        Some(at(0x260, 4))
    } else if header[56..].starts_with(b"ARM\x64") {
        Some(at(16, 8))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_how_much_room_it_takes() {
        let mut header = [0; HEADER_BYTES];
        assert_eq!(room_to_start(&header), None);
        header[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        header[0x260..].copy_from_slice(&[0, 0xc0, 0xf1, 2]);
        assert_eq!(room_to_start(&header), Some(0x02f1_c000));
        // Before that, nothing was said.
        header[0x206] = 9;
        assert_eq!(room_to_start(&header), None);
        let mut header = [0; HEADER_BYTES];
        header[56..60].copy_from_slice(b"ARMd");
        header[18] = 0x80;
        assert_eq!(room_to_start(&header), Some(0x80_0000));
    }

    #[test]
    fn half_of_the_memory_and_no_more_than_is_free() {
        let judge = |all_mib: u64, free_mib: u64| {
            let meminfo = format!(
                "MemTotal:  {} kB\nMemFree:  7 kB\nMemAvailable:   {} kB\n",
                all_mib << 10,
                free_mib << 10
            );
            super::judge(50 * MIB, 14 * MIB, 4 * MIB, &meminfo)
        };
        assert_eq!(judge(108, 72), Ok(()));
        let (needs_mib, all_mib) = (54, 107);
        assert_eq!(judge(107, 72), Err(RoomError::Half { needs_mib, all_mib }));
        let (needs_mib, free_mib) = (72, 71);
        assert_eq!(
            judge(108, 71),
            Err(RoomError::Free {
                needs_mib,
                free_mib
            })
        );
        assert_eq!(super::judge(1 << 40, 1, 1, "nothing"), Ok(()));
    }
}
