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
                module("depends=dca\0alias=pci:v1d2*\0firmware=igb/own.bin"),
            ),
            (format!("{modules}/net/dca.ko"), module("depends=")),
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
        format!("pci:v1d2* {}\n", place("igb")),
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
    let always: Vec<_> = manifest.modules.iter().map(|one| one.always).collect();
    assert_eq!(always, [true, true, false]);
    assert_eq!(manifest.initramfs.size, initramfs.len() as u64);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let dir = machine.images().dir().join(&manifest.id);
    assert_eq!(mode(&dir), 0o755);
    assert_eq!(mode(&dir.join("initramfs")), 0o644);
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
