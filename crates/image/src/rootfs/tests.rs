use super::*;

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, makedev, mknodat, setxattr};

/// A file capability as the kernel keeps it: version 2, `CAP_NET_RAW`, effective.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const CAPABILITY_NAME: &str = "security.capability";
const USER: u32 = 65_534;

/// Whether what these tests need is here.
fn can(what: &str) -> bool {
    let has_tool = |tool: &str| Command::new(tool).arg("-version").output().is_ok();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {what}: only root can make devices and give files away");
        return false;
    }
    if !has_tool(MAKE) || !has_tool(UNPACK) {
        eprintln!("SKIPPED: {what}: squashfs-tools are not installed");
        return false;
    }
    true
}

/// A small system that has one of everything.
fn system(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for name in ["bin", "usr/bin", "usr/sbin", "etc", "proc/1", "dev"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    symlink("usr/sbin", root.join("sbin")).unwrap();
    symlink("/lib/systemd/systemd", root.join("usr/sbin/init")).unwrap();
    fs::write(root.join("etc/shadow"), "secret").unwrap();
    std::os::unix::fs::chown(root.join("etc/shadow"), Some(0), Some(42)).unwrap();
    let ping = root.join("usr/bin/ping");
    fs::write(&ping, vec![7; 300_000]).unwrap();
    fs::hard_link(&ping, root.join("usr/bin/ping4")).unwrap();
    setxattr(&ping, CAPABILITY_NAME, CAPABILITY, XattrFlags::empty()).unwrap();
    let su = root.join("usr/bin/su");
    fs::write(&su, "su").unwrap();
    fs::set_permissions(&su, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.join("usr/bin/users"), "own").unwrap();
    std::os::unix::fs::chown(root.join("usr/bin/users"), Some(USER), Some(USER)).unwrap();
    let kind = FileType::CharacterDevice;
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, root.join("dev/null"), kind, mode, makedev(1, 3)).unwrap();
    fs::write(root.join("proc/1/comm"), "not a part of it").unwrap();
    root
}

fn choice(rootfs: &Path) -> SystemChoice {
    SystemChoice {
        rootfs: rootfs.to_owned(),
        init: None,
        has_tasks: false,
    }
}

/// Packs and unpacks it again; what came out is below `out`.
fn through(dir: &Path, rootfs: &Path, out: &str) -> (Vec<u8>, PathBuf) {
    let file = dir.join(format!("{out}.squashfs"));
    let scratch = dir.join(format!("{out}.scratch"));
    let choice = choice(rootfs);
    let state = dir.join("state");
    let opened = Rootfs::open(&choice, &state, &file, &scratch, &mut |_| ()).unwrap();
    assert_eq!(opened.init().as_deref(), Some(Path::new("/sbin/init")));
    opened.pack(&file, &mut |_| ()).unwrap();
    let to = dir.join(out);
    let mut unpack = Command::new(UNPACK);
    unpack.args(["-n", "-q", "-d"]).arg(&to).arg(&file);
    finish(UNPACK, run(UNPACK, &mut unpack).unwrap()).unwrap();
    (fs::read(&file).unwrap(), to)
}

fn assert_whole(root: &Path) {
    let status = |name: &str| root.join(name).symlink_metadata().unwrap();
    assert_eq!(status("etc/shadow").gid(), 42);
    let (ping, ping4) = (status("usr/bin/ping"), status("usr/bin/ping4"));
    assert_eq!((ping.ino(), ping.nlink()), (ping4.ino(), 2));
    let mut value = [0; 64];
    let length = getxattr(root.join("usr/bin/ping4"), CAPABILITY_NAME, &mut value[..]).unwrap();
    assert_eq!(&value[..length], CAPABILITY);
    assert_eq!(status("usr/bin/su").mode() & 0o7777, 0o4755);
    let users = status("usr/bin/users");
    assert_eq!((users.uid(), users.gid()), (USER, USER));
    let null = status("dev/null");
    assert_eq!(
        (null.mode() & 0o170_000, null.rdev()),
        (0o020_000, makedev(1, 3))
    );
    let init = fs::read_link(root.join("usr/sbin/init")).unwrap();
    assert_eq!(init, Path::new("/lib/systemd/systemd"));
}

#[test]
fn a_directory_is_packed_whole_and_to_the_same_bytes() {
    if !can("packing a directory") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = system(dir.path());
    let (first, out) = through(dir.path(), &root, "first");
    assert_whole(&out);
    assert!(!out.join("proc/1").exists() && out.join("proc").exists());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (second, _) = through(dir.path(), &root, "second");
    assert!(first == second, "the same files make other bytes");
}

#[test]
fn archives_are_packed_however_they_are_compressed() {
    if !can("packing archives") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = system(dir.path());
    let tar = dir.path().join("system.tar");
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--xattrs-include=*", "--sort=name"]);
    command.arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".");
    finish("tar", command.output().unwrap()).unwrap();
    let bytes = fs::read(&tar).unwrap();
    let (plain, out) = through(dir.path(), &tar, "plain");
    assert_whole(&out);
    assert_eq!(out.metadata().unwrap().mtime(), 0);
    assert_eq!(out.metadata().unwrap().mode() & 0o7777, 0o755);
    std::thread::sleep(std::time::Duration::from_millis(1100));

    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&bytes).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&bytes).unwrap();
    let zst = zstd::stream::encode_all(&bytes[..], 1).unwrap();
    let all = [
        ("gz", gz.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zst", zst),
    ];
    for (name, bytes) in all {
        // What it is its name need not tell.
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let (packed, _) = through(dir.path(), &path, &format!("of-{name}"));
        assert!(packed == plain, "{name} makes other bytes");
    }
}

#[test]
fn what_is_no_system_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |choice: &SystemChoice| {
        let (file, scratch) = (dir.path().join("file"), dir.path().join("scratch"));
        let state = dir.path().join("root/var/lib/wiglaf");
        fs::create_dir_all(&state).unwrap();
        Rootfs::open(choice, &state, &file, &scratch, &mut |_| ()).unwrap_err()
    };
    let text = dir.path().join("notes");
    fs::write(&text, vec![b'x'; 2000]).unwrap();
    let error = refuse(&choice(&text));
    assert!(matches!(error, RootfsError::Neither(_)), "{error}");
    assert!(error.hint().unwrap().contains("docker export"));
    let error = refuse(&choice(&dir.path().join("root")));
    assert!(matches!(error, RootfsError::State(_)), "{error}");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = refuse(&choice(&empty));
    assert!(matches!(error, RootfsError::NoSystem(_)), "{error}");
    fs::create_dir(empty.join("usr")).unwrap();
    let named = SystemChoice {
        init: Some("/usr/lib/none".into()),
        ..choice(&empty)
    };
    let error = refuse(&named);
    assert!(matches!(error, RootfsError::NoInit { .. }), "{error}");
    let error = refuse(&choice(&dir.path().join("nothing")));
    assert!(
        error.to_string().contains("nothing: No such file"),
        "{error}"
    );
}

/// A tree with kernels of these versions.
fn with_kernels(versions: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("boot")).unwrap();
    fs::create_dir_all(dir.path().join("usr/lib/modules")).unwrap();
    symlink("usr/lib", dir.path().join("lib")).unwrap();
    for version in versions {
        let modules = dir.path().join("usr/lib/modules").join(version);
        fs::create_dir_all(modules.join("kernel")).unwrap();
        let image = dir.path().join(format!("boot/vmlinuz-{version}"));
        fs::write(image, "kernel").unwrap();
    }
    // Left by one that was removed.
    fs::create_dir_all(dir.path().join("usr/lib/modules/5.10.0/updates")).unwrap();
    dir
}

fn chosen(tree: &Path, asked: Option<&str>) -> (Option<PathBuf>, String) {
    let choice = choice(tree);
    let none = Path::new("/nowhere");
    let rootfs = Rootfs::open(&choice, none, none, none, &mut |_| ()).unwrap();
    let asked = KernelChoice {
        kernel: asked.map(PathBuf::from),
        modules: None,
    };
    let mut said = String::new();
    let kernel = rootfs
        .kernel(&asked, &mut |text| said.push_str(text))
        .kernel;
    (kernel, said)
}

#[test]
fn a_systems_only_kernel_is_what_its_nodes_boot() {
    let one = with_kernels(&["6.1.0-50-amd64"]);
    let own = one
        .path()
        .canonicalize()
        .unwrap()
        .join("boot/vmlinuz-6.1.0-50-amd64");
    let (kernel, said) = chosen(one.path(), None);
    assert_eq!(kernel.as_ref(), Some(&own));
    assert!(
        said.contains("6.1.0-50-amd64 is the system's own"),
        "{said}"
    );
    // Another one that is named is another one.
    let (kernel, said) = chosen(one.path(), Some("6.12.3"));
    assert_eq!((kernel, said.as_str()), (Some("6.12.3".into()), ""));
    assert_eq!(chosen(one.path(), Some("6.1.0-50-amd64")).0, Some(own));

    let two = with_kernels(&["6.1.0-50-amd64", "6.12.3"]);
    let (kernel, said) = chosen(two.path(), None);
    assert_eq!(kernel, None);
    assert!(said.contains("6.1.0-50-amd64 and 6.12.3"), "{said}");
    let (kernel, _) = chosen(two.path(), Some("6.12.3"));
    assert!(kernel.unwrap().ends_with("boot/vmlinuz-6.12.3"));

    let none = with_kernels(&[]);
    let (kernel, said) = chosen(none.path(), None);
    assert_eq!(kernel, None);
    assert!(said.contains("no kernel"), "{said}");
}

#[test]
fn no_link_makes_anothers_kernel_the_systems_own() {
    let heads = with_kernels(&["6.1.0-50-amd64"]);
    let of_head = |name: &str| heads.path().join(name);
    let all = with_kernels(&[]);
    fs::remove_dir_all(all.path().join("usr/lib/modules")).unwrap();
    symlink(
        of_head("usr/lib/modules"),
        all.path().join("usr/lib/modules"),
    )
    .unwrap();
    assert_eq!(chosen(all.path(), None).0, None);
    let image = with_kernels(&["6.1.0-50-amd64"]);
    let own = image.path().join("boot/vmlinuz-6.1.0-50-amd64");
    fs::remove_file(&own).unwrap();
    symlink(of_head("boot/vmlinuz-6.1.0-50-amd64"), own).unwrap();
    assert_eq!(chosen(image.path(), None).0, None);
}

#[test]
fn nodes_are_told_what_they_need() {
    let tree = with_kernels(&[]);
    let choice = SystemChoice {
        init: None,
        has_tasks: true,
        ..choice(tree.path())
    };
    let none = Path::new("/nowhere");
    let rootfs = Rootfs::open(&choice, none, none, none, &mut |_| ()).unwrap();
    assert_eq!(rootfs.init(), None);
    assert_eq!(rootfs.describe(7, "ab"), "sha256 ab\nsize 7\nfiles node\n");
}
