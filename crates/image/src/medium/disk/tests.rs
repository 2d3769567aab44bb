use std::process::Command;

use super::*;

/// A file as a disk; none where that can't be had.
struct Loop {
    name: String,
    _dir: tempfile::TempDir,
}

impl Loop {
    fn of(content: &[u8], size: u64) -> Option<Loop> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: only root makes disks");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, content).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(size)
            .unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--partscan"])
            .arg(&path)
            .output();
        match made {
            Ok(output) if output.status.success() => Some(Loop {
                name: String::from_utf8(output.stdout).unwrap().trim().to_owned(),
                _dir: dir,
            }),
            other => {
                println!("SKIPPED: no loop devices here: {other:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        Path::new(&self.name)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.name]).status();
    }
}

const SIZE: u64 = 8 << 20;

#[test]
fn an_empty_disk_is_written_and_compared() {
    let Some(disk) = Loop::of(&[], SIZE) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let medium = dir.path().join("medium");
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|n| n.to_le_bytes())
        .take(5_000_123)
        .collect();
    fs::write(&medium, &bytes).unwrap();
    {
        let mut device = Device::take(disk.path()).unwrap();
        assert_eq!(device.size(), SIZE);
        assert!(
            device.describe().ends_with("8.3 MB"),
            "{}",
            device.describe()
        );
        device.must_be_empty().unwrap();
        // Nobody else gets it meanwhile.
        let error = Device::take(disk.path()).unwrap_err();
        assert!(matches!(error, DiskError::InUse { .. }), "{error}");
        let mut told = Vec::new();
        let written = device.write(&medium, &mut |each| told.push(each)).unwrap();
        let size = bytes.len() as u64;
        assert_eq!(written, size);
        assert!(told.contains(&Progress::Written(size, size)));
        assert_eq!(told.last(), Some(&Progress::Compared(size, size)));
    }
    let mut found = vec![0; bytes.len()];
    let file = File::open(disk.path()).unwrap();
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes);
    // It is one that holds data now.
    let device = Device::take(disk.path()).unwrap();
    let error = device.must_be_empty().unwrap_err();
    assert!(error.hint().unwrap().contains("--overwrite"), "{error}");
}

#[test]
fn what_is_at_the_end_of_a_disk_counts() {
    let mut content = vec![0; usize::try_from(SIZE).unwrap()];
    let at = content.len() - 512;
    content[at..at + 8].copy_from_slice(b"EFI PART");
    let Some(disk) = Loop::of(&content, SIZE) else {
        return;
    };
    let device = Device::take(disk.path()).unwrap();
    let error = device.must_be_empty().unwrap_err();
    assert!(matches!(error, DiskError::Holds { .. }), "{error}");
}

#[test]
fn a_medium_that_does_not_fit_changes_nothing() {
    let Some(disk) = Loop::of(b"precious", SIZE) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let medium = dir.path().join("medium");
    File::create(&medium).unwrap().set_len(SIZE + 1).unwrap();
    let mut device = Device::take(disk.path()).unwrap();
    let error = device.write(&medium, &mut |_| {}).unwrap_err();
    assert!(matches!(error, DiskError::Small { .. }), "{error}");
    let mut first = [0; 8];
    device.file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(&first, b"precious");
}

#[test]
fn only_disks_are_disks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.as_path(), Path::new("/dev/null"), dir.path()] {
        let error = Device::take(path).unwrap_err();
        assert!(matches!(error, DiskError::NotADisk(_)), "{error}");
    }
    let error = Device::take(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn a_mounted_disk_is_in_use() {
    let numbers = BTreeSet::from([Number(8, 16), Number(8, 17)]);
    let by_name = |path: &str| (path == "/dev/sdb1").then_some(Number(8, 17));
    let user = |mounts: &str, swaps: &str| user_among(&numbers, mounts, swaps, &by_name);
    let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                  31 22 8:17 / /media/stick rw,nosuid shared:9 - vfat /dev/sdb1 rw\n";
    let how = user(mounts, "").unwrap();
    assert_eq!(how, "it is mounted at /media/stick");
    // Btrfs has a number of its own.
    let mounts = "31 22 0:44 / /data rw - btrfs /dev/sdb1 rw\n";
    assert!(user(mounts, "").unwrap().contains("/data"));
    let swaps = "Filename\tType\n/dev/sdb1 partition 1 0 -2\n";
    assert_eq!(user("", swaps).unwrap(), "/dev/sdb1 is swap space");
    let others = "22 1 254:0 / / rw - ext4 /dev/vda rw\n";
    assert_eq!(user(others, "Filename\n/dev/vdb x\n"), None);
}

#[test]
fn data_is_called_by_its_name() {
    let with = |at: usize, text: &[u8]| {
        let mut first = vec![0; 0x10100];
        first[at..at + text.len()].copy_from_slice(text);
        kind_of(&first)
    };
    assert_eq!(with(512, b"EFI PART"), "partitions (GPT)");
    assert_eq!(with(0x8001, b"CD001"), "a CD's file system");
    assert_eq!(with(82, b"FAT32   "), "a FAT file system");
    assert_eq!(with(9, b"x"), "something that is not known");
    assert_eq!(
        describe(Some("SanDisk Ultra"), 15_630_000_000),
        "SanDisk Ultra, 15.6 GB"
    );
    assert_eq!(describe(None, 900_000), "a disk, 900.0 kB");
}
