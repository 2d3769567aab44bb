//! The header of a swap area (`union swap_header`, linux/swap.h; as `mkswap(8)` of util-linux
//! writes it).

/// Version 1 is the only one that there is.
const VERSION: u32 = 1;
/// At the end of the first page.
const MAGIC: &[u8; 10] = b"SWAPSPACE2";
/// The first sectors may be a boot loader's.
const BOOT_BYTES: usize = 1024;
const UUID_AT: usize = BOOT_BYTES + 12;
const LABEL_AT: usize = UUID_AT + 16;
const LABEL_BYTES: usize = 16;

/// The first page of an area of so many bytes. `None`: there is no room for one.
pub(crate) fn header(page: usize, bytes: u64, uuid: [u8; 16], label: &str) -> Option<Vec<u8>> {
    let mut header = vec![0; page];
    // What is beyond that the kernel does not use.
    let pages = (bytes / u64::try_from(page).ok()?).min(u64::from(u32::MAX));
    let last = u32::try_from(pages.checked_sub(1)?).ok()?;
    let magic_at = page.checked_sub(MAGIC.len())?;
    if last == 0 || magic_at < LABEL_AT + LABEL_BYTES || label.len() > LABEL_BYTES {
        return None;
    }
    let mut put = |at: usize, value: &[u8]| header[at..at + value.len()].copy_from_slice(value);
    // The machine's own order of bytes, and no bad pages.
    put(BOOT_BYTES, &VERSION.to_ne_bytes());
    put(BOOT_BYTES + 4, &last.to_ne_bytes());
    put(UUID_AT, &uuid);
    put(LABEL_AT, label.as_bytes());
    put(magic_at, MAGIC);
    Some(header)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_header_has_its_fields() {
        let page = header(4096, 1 << 20, [7; 16], "wiglaf-swap").unwrap();
        assert_eq!(page.len(), 4096);
        assert_eq!(page[4086..], *b"SWAPSPACE2");
        assert_eq!(
            page[1024..1032],
            [1_u32.to_ne_bytes(), 255_u32.to_ne_bytes()].concat()
        );
        assert_eq!(header(4096, 4096, [0; 16], ""), None);
        assert_eq!(header(512, 1 << 20, [0; 16], ""), None);
        assert_eq!(
            header(4096, 1 << 20, [0; 16], "a name that is too long"),
            None
        );
        assert!(header(4096, u64::MAX, [0; 16], "").is_some());
    }

    /// util-linux reads it as one of its own.
    #[test]
    fn blkid_and_swaplabel_know_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("swap");
        let mut bytes = header(4096, 1 << 20, [0x11; 16], "wiglaf-swap").unwrap();
        bytes.resize(1 << 20, 0);
        fs::write(&file, bytes).unwrap();
        for (program, arguments) in [("blkid", &["-p"][..]), ("swaplabel", &[][..])] {
            let program = format!("/usr/sbin/{program}");
            let Ok(output) = Command::new(&program).args(arguments).arg(&file).output() else {
                println!("SKIPPED: there is no {program}");
                continue;
            };
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{program}: {output:?}");
            assert!(text.contains("wiglaf-swap"), "{program}: {text}");
            assert!(
                text.contains("11111111-1111-1111-1111-111111111111"),
                "{text}"
            );
        }
    }
}
