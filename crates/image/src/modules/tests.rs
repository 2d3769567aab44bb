use super::*;
use std::fs;
use std::path::Path;

/// An ELF file with a `.modinfo` and nothing else.
fn module(modinfo: &str) -> Vec<u8> {
    let modinfo = modinfo.replace('\n', "\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16] = 1;
    bytes[18] = 62;
    bytes[20] = 1;
    bytes.extend(modinfo.as_bytes());
    let names_at = bytes.len();
    bytes.extend(names);
    let table = bytes.len().next_multiple_of(8);
    bytes.resize(table, 0);
    let mut section = |name: u32, kind: u32, at: usize, size: usize| {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        bytes.extend(header);
    };
    section(0, 0, 0, 0);
    section(1, 1, 64, modinfo.len());
    section(10, 3, names_at, names.len());
    bytes[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    for (at, value) in [(0x34, 64u16), (0x3a, 64), (0x3c, 3), (0x3e, 2)] {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn kernel(modules: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, modinfo) in modules {
        let path = dir.path().join("kernel").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, module(modinfo)).unwrap();
    }
    fs::write(
        dir.path().join("modules.builtin"),
        "kernel/drivers/net/mii.ko\n",
    )
    .unwrap();
    dir
}

fn selected(dir: &Path, wanted: &Wanted) -> Selection {
    select(&mut Tree::open(dir).unwrap(), wanted).unwrap()
}

const FUSE: (&str, &str) = ("fs/fuse/fuse.ko", "alias=fs-fuse\ndepends=");

#[test]
fn dependencies_come_first_and_once() {
    let dir = kernel(&[
        FUSE,
        (
            "net/tg3.ko",
            "depends=libphy,ptp\nalias=pci:v1 x*\nalias=of:N\nfirmware=tigon/a.bin",
        ),
        ("net/phy/libphy.ko", "depends=mii"),
        ("net/phy/broadcom.ko", "depends=libphy,bcm-phy-lib"),
        ("net/phy/bcm-phy-lib.ko", "depends=libphy"),
        ("net/ptp.ko", "depends="),
        // It may be loaded before what is loaded in any case.
        (
            "net/igb.ko",
            "depends=ptp,fuse\nalias=pci:v2*\nalias=pci:v0*",
        ),
        ("net/other.ko", "depends="),
    ]);
    let selection = selected(dir.path(), &Wanted::default());
    assert_eq!(selection.always, ["fuse"]);
    let lines: Vec<_> = selection
        .aliases
        .iter()
        .map(|(pattern, name)| format!("{pattern} {name}"))
        .collect();
    assert_eq!(
        lines,
        [
            "pci:v0* ptp",
            "pci:v0* fuse",
            "pci:v0* igb",
            "pci:v2* ptp",
            "pci:v2* fuse",
            "pci:v2* igb",
            "pci:v1?x* libphy",
            "pci:v1?x* ptp",
            "pci:v1?x* bcm_phy_lib",
            "pci:v1?x* broadcom",
            "pci:v1?x* tg3",
        ]
    );
    assert_eq!(selection.firmware, [("tg3".into(), "tigon/a.bin".into())]);
    let files: Vec<_> = selection.files.keys().map(String::as_str).collect();
    assert_eq!(
        files,
        [
            "bcm_phy_lib",
            "broadcom",
            "fuse",
            "igb",
            "libphy",
            "ptp",
            "tg3"
        ]
    );
}

#[test]
fn soft_wishes_are_met_by_name_or_by_what_answers() {
    let dir = kernel(&[
        FUSE,
        (
            "fs/ext4.ko",
            "depends=jbd2\nsoftdep=pre: crypto-crc32c nothing post: later",
        ),
        ("fs/jbd2.ko", "depends="),
        (
            "crypto/crc32c-generic.ko",
            "alias=crypto-crc32c\nalias=crc32c\nsoftdep=pre: ext4",
        ),
        ("later.ko", "depends="),
    ]);
    let wanted = Wanted {
        named: vec!["ext4".into()],
        disk: false,
        system: false,
    };
    assert_eq!(
        selected(dir.path(), &wanted).always,
        ["fuse", "jbd2", "crc32c_generic", "ext4", "later"]
    );
}

#[test]
fn a_module_that_is_missing_is_named() {
    let dir = kernel(&[FUSE, ("a.ko", "depends=b")]);
    let mut tree = Tree::open(dir.path()).unwrap();
    let wanted = |name: &str| Wanted {
        named: vec![name.into()],
        disk: false,
        system: false,
    };
    let error = select(&mut tree, &wanted("a")).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has no module b, which a needs")
    );
    // What the kernel has built in is there already.
    assert!(select(&mut tree, &wanted("mii")).is_ok());
    fs::write(dir.path().join("kernel/a.ko"), "text").unwrap();
    let mut tree = Tree::open(dir.path()).unwrap();
    let error = select(&mut tree, &wanted("a")).unwrap_err();
    assert!(matches!(error, ModuleError::NotAModule(_)));

    let dir = kernel(&[]);
    let error = select(&mut Tree::open(dir.path()).unwrap(), &Wanted::default()).unwrap_err();
    assert!(error.to_string().ends_with("has no module fuse"), "{error}");
}

#[test]
fn updates_stand_before_the_kernels_own_and_compressed_ones_are_read() {
    let dir = kernel(&[FUSE, ("net/igb.ko", "alias=pci:old*")]);
    let updates = dir.path().join("updates");
    fs::create_dir(&updates).unwrap();
    let newer = zstd::stream::encode_all(&module("alias=pci:new*")[..], 3).unwrap();
    fs::write(updates.join("igb.ko.zst"), newer).unwrap();
    let selection = selected(dir.path(), &Wanted::default());
    assert_eq!(selection.aliases, [("pci:new*".into(), "igb".into())]);
    assert_eq!(selection.files["igb"], module("alias=pci:new*"));
}
