//! Whole images, from a kernel that is one only by its header.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wiglaf_image::{BuildError, Built, Compression, Images, KernelChoice, Recipe, StoreError};

const VERSION: &str = "6.1.0-50-test";

/// An ELF file with a `.modinfo` and nothing else.
fn module(modinfo: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16] = 1;
    bytes[18] = 62;
    bytes.extend(modinfo.as_bytes());
    let names_at = bytes.len();
    bytes.extend(names);
    let table = bytes.len().next_multiple_of(8);
    bytes.resize(table, 0);
    for (name, kind, at, size) in [
        (0u32, 0u32, 0, 0),
        (1, 1, 64, modinfo.len()),
        (10, 3, names_at, names.len()),
    ] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        bytes.extend(header);
    }
    bytes[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    for (at, value) in [(0x34, 64u16), (0x3a, 64), (0x3c, 3), (0x3e, 2)] {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// A machine with a kernel, firmware and a program, written in the order that is given.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(is_reversed: bool) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let modules = format!("lib/modules/{VERSION}/kernel");
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = format!("{VERSION} (nobody)\0");
        kernel[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        let mut files: Vec<(String, Vec<u8>)> = vec![
            ("boot/vmlinuz".into(), kernel),
            (
                format!("boot/config-{VERSION}"),
                b"CONFIG_RD_XZ=y\n# CONFIG_RD_ZSTD is not set\n".to_vec(),
            ),
            (
                format!("{modules}/fs/fuse.ko"),
                module("depends=\0alias=fs-fuse"),
            ),
            (
                format!("{modules}/net/igb.ko"),
                module(
                    "depends=dca\0alias=pci:v00008086d00001521sv*\0firmware=igb/own.bin\0\
                     alias=pci:v00008086d00001522sv*",
                ),
            ),
            (format!("{modules}/net/dca.ko"), module("depends=")),
            (
                format!("{modules}/net/e1000.ko"),
                module("depends=\0alias=pci:v00008086d0000100Esv*"),
            ),
            (
                format!("{modules}/usb/xhci-pci.ko"),
                module("depends=usbcore\0alias=pci:v*d*sv*sd*bc0Csc03i30*"),
            ),
            (format!("{modules}/usb/usbcore.ko"), module("depends=")),
            (
                format!("{modules}/net/r8152.ko"),
                module("depends=usbcore\0alias=usb:v0BDAp8153d*"),
            ),
            ("firmware/igb/own.bin".into(), b"firmware".to_vec()),
            ("tools/a/data".into(), vec![7; 100_000]),
            ("tools/b".into(), b"#!/nowhere\n".to_vec()),
        ];
        if is_reversed {
            files.reverse();
        }
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        Machine { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn images(&self) -> Images {
        Images::of(&self.path("state"))
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            name: "default".into(),
            kernel: KernelChoice {
                kernel: Some(self.path("boot/vmlinuz")),
                modules: None,
            },
            init: "/proc/self/exe".into(),
            version: "0.1.0".into(),
            authority: [0xab; 32],
            include: Vec::new(),
            modules: Vec::new(),
            firmware: vec![self.path("firmware")],
            disk: false,
            system: None,
            compression: Some(Compression::None),
        }
    }

    fn build(&self, recipe: &Recipe, made_s: i64) -> Built {
        recipe.build(&self.images(), made_s, &mut |_| ()).unwrap()
    }

    /// What a machine with this card fetches, and its name, by the list that the boot service
    /// reads.
    fn by_card(&self, built: &Built, card: &str) -> (String, Vec<u8>) {
        let dir = self.images().dir().join(&built.manifest.id);
        let list = fs::read_to_string(dir.join("cards")).unwrap();
        let value = |start: String| list.lines().find_map(|line| line.strip_prefix(&start));
        let name = value(format!("card {card} ")).unwrap();
        let whole = self.initramfs(built);
        let parts = value(format!("file {name} ")).unwrap();
        let parts = parts.split(' ').map(|part| {
            let (start, end) = part.split_once('-').unwrap();
            &whole[start.parse().unwrap()..end.parse().unwrap()]
        });
        (name.to_owned(), parts.flatten().copied().collect())
    }

    fn initramfs(&self, built: &Built) -> Vec<u8> {
        let dir = self.images().dir().join(&built.manifest.id);
        fs::read(dir.join("initramfs")).unwrap()
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, other) = (Machine::new(false), Machine::new(true));
    // Different modes of creation, times and inodes; the same names and contents.
    let earlier = fs::File::open(one.path("firmware/igb/own.bin")).unwrap();
    earlier.set_modified(std::time::UNIX_EPOCH).unwrap();
    let first = one.build(&one.recipe(), 1);
    let second = other.build(&other.recipe(), 2);
    assert_eq!(first.manifest.id, second.manifest.id);
    assert_eq!(first.manifest.initramfs, second.manifest.initramfs);
    assert!(one.initramfs(&first) == other.initramfs(&second));
    assert_eq!(first.manifest.by_card, second.manifest.by_card);
    for card in ["8086-1521", "8086-100e"] {
        assert!(one.by_card(&first, card) == other.by_card(&second, card));
    }

    // Another authority makes another image.
    let mut recipe = one.recipe();
    recipe.authority = [0xac; 32];
    assert_ne!(one.build(&recipe, 1).manifest.id, first.manifest.id);
}

#[test]
fn compressed_ones_are_the_same_too_and_the_kernel_has_its_say() {
    let machine = Machine::new(false);
    let mut recipe = machine.recipe();
    recipe.compression = None;
    let first = machine.build(&recipe, 1);
    assert_eq!(first.manifest.compression, Compression::Xz);
    assert!(first.is_new);
    let again = machine.build(&recipe, 5);
    assert!(!again.is_new);
    assert_eq!(again.manifest.id, first.manifest.id);
    assert_eq!(machine.images().get("default").unwrap().made_s, 1);

    recipe.compression = Some(Compression::Zstd);
    let error = recipe.build(&machine.images(), 1, &mut |_| ()).unwrap_err();
    assert!(matches!(error, BuildError::Compression { .. }), "{error}");
}

#[test]
fn what_init_reads_is_there() {
    let machine = Machine::new(false);
    let mut recipe = machine.recipe();
    recipe.modules = vec!["dca".into()];
    recipe.include = vec![machine.path("tools")];
    let built = machine.build(&recipe, 1);
    let initramfs = machine.initramfs(&built);
    let place = |name: &str| format!("/lib/modules/{VERSION}/{name}.ko");
    let texts = [
        format!("{}\n{}\n", place("fuse"), place("dca")),
        format!("pci:v00008086d00001521sv* {}\n", place("igb")),
        format!("{}\n", "ab".repeat(32)),
        "usr/lib/firmware/igb/own.bin\0".to_owned(),
    ];
    for text in texts {
        assert!(contains(&initramfs, &text), "{text}");
    }
    assert_eq!(built.warnings.len(), 1, "{:?}", built.warnings);
    assert!(built.warnings[0].contains("/nowhere"));
    let manifest = &built.manifest;
    assert_eq!(manifest.kernel_version, VERSION);
    assert_eq!(manifest.arch, std::env::consts::ARCH);
    assert_eq!(manifest.firmware, ["igb/own.bin"]);
    let modules = manifest.modules.iter();
    let always = modules.filter(|module| module.always);
    let always: Vec<_> = always.map(|module| module.name.as_str()).collect();
    assert_eq!(always, ["dca", "fuse"]);
    assert_eq!(manifest.initramfs.size, initramfs.len() as u64);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let dir = machine.images().dir().join(&manifest.id);
    assert_eq!(mode(&dir), 0o755);
    assert_eq!(mode(&dir.join("initramfs")), 0o644);
}

#[test]
fn a_machine_whose_card_is_known_fetches_what_that_needs() {
    let machine = Machine::new(false);
    let recipe = machine.recipe();
    let built = machine.build(&recipe, 1);
    let has = |bytes: &[u8], names: [&str; 6]| {
        names.map(|name| contains(bytes, &format!("{VERSION}/{name}\0")))
    };
    let names = [
        "igb.ko",
        "dca.ko",
        "e1000.ko",
        "xhci_pci.ko",
        "fuse.ko",
        "r8152.ko",
    ];
    let (igb, bytes) = machine.by_card(&built, "8086-1521");
    let only_igb = [true, true, false, false, true, false];
    assert_eq!(has(&bytes, names), only_igb);
    // The list of all that there is tells /init what it lacks.
    for name in ["e1000", "xhci_pci", "igb"] {
        assert!(
            contains(&bytes, &format!("{VERSION}/{name}.ko\n")),
            "{name}"
        );
    }
    let firmware = |bytes: &[u8]| {
        let name = b"usr/lib/firmware/igb/own.bin\0";
        bytes
            .windows(name.len())
            .filter(|part| part == name)
            .count()
    };
    let with_firmware = firmware(&bytes);
    assert_eq!(machine.by_card(&built, "8086-1522").0, igb);
    let (e1000, bytes) = machine.by_card(&built, "8086-100e");
    assert_ne!(e1000, igb);
    assert_eq!(has(&bytes, names), [false, false, true, false, true, false]);
    // It stands in this program, too, which is /init here.
    assert_eq!(with_firmware, firmware(&bytes) + 1);
    let whole = machine.initramfs(&built);
    assert_eq!(has(&whole, names), [true; 6]);

    let manifest = &built.manifest;
    let by_card = manifest.by_card.clone().unwrap();
    assert_eq!(by_card.cards, 3);
    assert_eq!(manifest.fetched(), manifest.kernel.size + by_card.largest);
    assert!(by_card.smallest < by_card.largest && by_card.largest < manifest.initramfs.size);
    // Who fetches it with the kernel can check both by its name.
    let sha256 = |bytes: &[u8]| {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    };
    let both = format!("{}{}", manifest.kernel.sha256, sha256(&bytes));
    assert_eq!(
        e1000,
        format!("initramfs-{}", &sha256(both.as_bytes())[..12])
    );

    // A driver that was asked for is everybody's, and a USB one with what it needs.
    let mut recipe = machine.recipe();
    recipe.modules = vec!["r8152".into()];
    let built = machine.build(&recipe, 1);
    let (_, bytes) = machine.by_card(&built, "8086-100e");
    assert_eq!(has(&bytes, names), [false, false, true, true, true, true]);
    recipe.modules = vec!["igb".into(), "e1000".into(), "r8152".into()];
    let built = machine.build(&recipe, 1);
    assert_eq!(built.manifest.by_card, None);

    // Without its list an image is not whole; one of an earlier version has none.
    let old = machine.build(&machine.recipe(), 1).manifest;
    let dir = machine.images().dir().join(&old.id);
    fs::remove_file(dir.join("cards")).unwrap();
    assert!(machine.images().get(&old.id).is_err());
    let text = fs::read(dir.join("manifest.json")).unwrap();
    let mut earlier: serde_json::Value = serde_json::from_slice(&text).unwrap();
    earlier.as_object_mut().unwrap().remove("by_card").unwrap();
    fs::write(dir.join("manifest.json"), earlier.to_string()).unwrap();
    assert_eq!(machine.images().get(&old.id).unwrap().by_card, None);
}

#[test]
fn images_are_listed_found_and_removed() {
    let machine = Machine::new(false);
    let images = machine.images();
    assert_eq!(images.list().unwrap(), []);
    let error = images.get("default").unwrap_err();
    assert!(error.to_string().contains("`wiglaf image build` makes one"));

    let old = machine.build(&machine.recipe(), 10).manifest;
    let mut recipe = machine.recipe();
    recipe.disk = true;
    recipe.authority = [1; 32];
    let new = machine.build(&recipe, 20).manifest;
    recipe.name = "../x".into();
    let error = recipe.build(&images, 1, &mut |_| ()).unwrap_err();
    assert!(matches!(error, BuildError::Name(_)));
    assert_eq!(images.list().unwrap(), [new.clone(), old.clone()]);
    assert_eq!(images.get("default").unwrap(), new);
    assert_eq!(images.get(&old.id).unwrap(), old);

    // What a killed builder left; this one's process can't be there.
    let left = images.dir().join(".new-4999999");
    fs::create_dir(&left).unwrap();
    machine.build(&machine.recipe(), 30);
    assert!(!left.exists());

    for name in ["..", ".new-1", "nothing", "", "../state"] {
        let error = images.remove(name).unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }), "{name}");
    }
    images.remove(&new.id).unwrap();
    assert_eq!(images.list().unwrap(), std::slice::from_ref(&old));

    // One that is not whole is not offered, and says so when it is asked for.
    fs::write(images.dir().join(&old.id).join("initramfs"), "half").unwrap();
    assert_eq!(images.list().unwrap(), []);
    let error = images.get(&old.id).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    // Built again, it is whole.
    let again = machine.build(&machine.recipe(), 40);
    assert!(again.is_new);
    assert_eq!(images.get(&old.id).unwrap().id, old.id);
}

#[test]
fn an_image_that_a_disk_has_changed_is_put_right_by_building_it_anew() {
    let machine = Machine::new(false);
    let recipe = machine.recipe();
    let built = machine.build(&recipe, 1);
    let path = machine.images().dir().join(&built.manifest.id);
    for name in ["kernel", "initramfs"] {
        let whole = fs::read(path.join(name)).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(path.join(name), &changed).unwrap();
        let again = machine.build(&recipe, 2);
        assert_eq!(again.manifest.id, built.manifest.id);
        assert_eq!(fs::read(path.join(name)).unwrap(), whole, "{name}");
    }
    assert!(!machine.build(&recipe, 3).is_new);
}

#[test]
fn a_program_with_libraries_is_no_init() {
    let machine = Machine::new(false);
    let mut recipe = machine.recipe();
    recipe.init = "/bin/sh".into();
    let error = recipe.build(&machine.images(), 1, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("linked with libraries"));
    recipe.init = machine.path("boot/vmlinuz");
    let error = recipe.build(&machine.images(), 1, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("it is no program"));
    assert!(machine.images().list().unwrap().is_empty());
}
