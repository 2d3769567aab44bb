use std::process::Command;

use super::*;
use crate::store::File;

fn image(dir: &Path) -> (Images, Manifest) {
    let images = Images::of(dir);
    let id = "default-0123456789ab";
    let folder = images.dir().join(id);
    fs::create_dir_all(&folder).unwrap();
    let put = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        File {
            size: text.len() as u64,
            sha256: sha256(text.as_bytes()),
        }
    };
    let manifest = serde_json::json!({
        "id": id,
        "name": "default",
        "made_s": 0,
        "wiglaf": "0",
        "kernel_version": "6.1.0",
        "arch": ARCH,
        "authority": "",
        "kernel": put("kernel", "a kernel"),
        "initramfs": put("initramfs", "an initramfs"),
        "compression": "none",
        "unpacked": 0,
        "modules": [],
        "firmware": [],
        "missing_firmware": [],
        "included": [],
    });
    let manifest = serde_json::from_value(manifest).unwrap();
    (images, manifest)
}

fn medium(image: &Manifest) -> Medium<'_> {
    Medium {
        image,
        arguments: "console=ttyS0 wiglaf.medium=default-0123456789ab".into(),
    }
}

fn tools() -> Option<MediumTools> {
    match MediumTools::find() {
        Ok(tools) => Some(tools),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

#[test]
fn the_same_image_gives_the_same_bytes() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (images, manifest) = image(dir.path());
    let write = |name: &str| {
        let path = dir.path().join(name);
        let size = medium(&manifest).write(&images, &tools, &path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes
    };
    // Both signs of xorriso's grammar may be in a name.
    let one = write("one.iso");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(one == write("other = \\ one.iso"));

    // A CD, a disk for a BIOS, and one for UEFI.
    assert_eq!(&one[0x8001..0x8006], b"CD001");
    assert_eq!(&one[510..512], &[0x55, 0xaa]);
    assert_eq!(&one[512..520], b"EFI PART");
    let listed = Command::new("xorriso")
        .args(["-no_rc", "-indev"])
        .arg(dir.path().join("one.iso"))
        .args(["-report_el_torito", "plain", "-find", "/wiglaf", "--"])
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout);
    for wanted in ["BIOS", "UEFI", "/wiglaf/kernel", "/wiglaf/medium-"] {
        assert!(listed.contains(wanted), "{wanted}: {listed}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    // Both media and the folder of images.
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_medium_for_a_node_is_there_as_long_as_somebody_offers_it() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (images, manifest) = image(dir.path());
    // What was killed has left.
    let old = images.dir().join(".medium-4294967295");
    fs::create_dir(&old).unwrap();
    let offered = medium(&manifest).offer(&images, &tools).unwrap();
    assert!(!old.exists());
    let folder = images.dir().join(format!(".medium-{}", offered.number()));
    let bytes = fs::read(folder.join("medium")).unwrap();
    assert_eq!(bytes.len() as u64, offered.size());
    assert_eq!(hex(&offered.sha256()), sha256(&bytes));
    let mode = |path: &Path| {
        let data = fs::metadata(path).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o777
    };
    // The boot service is nobody in particular.
    assert_eq!(
        [mode(&folder), mode(&folder.join("medium"))],
        [0o755, 0o644]
    );
    drop(offered);
    assert!(!folder.exists());

    let kernel = images.dir().join(&manifest.id).join(KERNEL);
    fs::write(kernel, "A kernel").unwrap();
    let error = medium(&manifest).offer(&images, &tools).unwrap_err();
    assert!(matches!(error, MediumError::Damaged { .. }), "{error}");
    assert!(!folder.exists());
}

#[test]
fn a_damaged_image_is_not_written() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (images, manifest) = image(dir.path());
    let kernel = images.dir().join(&manifest.id).join(KERNEL);
    fs::write(kernel, "A kernel").unwrap();
    let path = dir.path().join("medium.iso");
    let error = medium(&manifest).write(&images, &tools, &path).unwrap_err();
    assert!(matches!(error, MediumError::Damaged { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn only_files_are_replaced() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (images, manifest) = image(dir.path());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    for path in [&link, &folder] {
        let error = medium(&manifest).write(&images, &tools, path).unwrap_err();
        assert!(matches!(error, MediumError::NotAFile(_)), "{error}");
    }
    assert!(link.is_symlink() && folder.is_dir());
    let old = dir.path().join("old.iso");
    fs::write(&old, "old").unwrap();
    medium(&manifest).write(&images, &tools, &old).unwrap();
    assert_ne!(fs::read(&old).unwrap(), b"old");
}

#[test]
fn nothing_of_the_command_line_is_grubs() {
    for bad in ["a;b", "$root", "a'b", "x\ny", "{", "é", &"x".repeat(2048)] {
        let error = check_arguments(bad).unwrap_err();
        assert!(matches!(error, MediumError::Arguments(_)), "{bad}: {error}");
    }
    check_arguments("console=ttyS0,115200 wiglaf.head=10.7.0.1:7494 BOOTIF=01-52").unwrap();
    let menu = menu("a-1", "console=ttyS0");
    assert!(menu.contains("  linux /wiglaf/kernel console=ttyS0\n"));
    assert!(menu.contains("  linux /wiglaf/kernel console=ttyS0 wiglaf.debug\n"));
    assert!(menu.contains("\nset timeout=2\n") && menu.contains("\n  boot\n"));
}

#[test]
fn all_that_is_missing_is_named_by_its_package() {
    let empty = tempfile::tempdir().unwrap();
    let folders = [empty.path().to_owned()];
    let error = MediumTools::find_in(&folders, empty.path()).unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "apt install grub-common grub-efi-amd64-bin grub-pc-bin mtools xorriso"
    );
    assert!(error.to_string().contains("xorriso, mformat"), "{error}");
}

#[test]
fn what_is_signed_is_used_if_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    };
    for program in ["grub2-mkimage", "xorriso", "mformat", "mmd", "mcopy"] {
        put(program);
    }
    put("usr/lib/grub/i386-pc/boot_hybrid.img");
    put("usr/lib/grub/x86_64-efi/linux.mod");
    let folders = [dir.path().to_owned()];
    let find = || MediumTools::find_in(&folders, dir.path()).unwrap();
    assert!(!find().is_signed());
    put("usr/lib/shim/shimx64.efi.signed");
    assert!(!find().is_signed());
    put("usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed");
    assert!(find().is_signed());
}
