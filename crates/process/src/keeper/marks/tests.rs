//! Mount tables, and the marks that are made of this machine's.

use wiglaf_linux::fanotify::Queue;
use wiglaf_linux::mountinfo::parse;

use super::*;

const TABLE: &str = r"
22 27 0:21 / /proc rw,relatime - proc proc rw
24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,mode=755
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 8:1 / /home rw shared:1 master:2 - xfs /dev/sda1 rw
31 27 0:30 / /mnt/with\040space\011and\134 rw - btrfs /dev/sdb rw,subvol=/
32 27 0:31 / /mnt/nfs rw - nfs4 server:/ rw
33 32 8:2 / /mnt/nfs/deep rw - ext4 /dev/sda2 rw
34 30 0:33 / /home/user/own rw - fuse.sshfs host: rw
35 34 8:3 / /home/user/own/below rw - ext4 /dev/sda3 rw
36 27 0:34 / /boot/efi rw - vfat /dev/sda4 rw
37 36 7:0 / /boot/efi/image ro - squashfs /dev/loop0 ro
38 27 0:35 / /devices rw - tmpfs tmpfs rw
39 99 8:5 / /orphan rw - ext3 /dev/sda5 rw
40 40 0:40 / /loop rw - tmpfs tmpfs rw
cut off line
41 27 8:6 / /unended rw - ";

#[test]
fn only_local_and_lasting_file_systems_are_watched() {
    let mounts = parse(TABLE.as_bytes());
    assert_eq!(mounts.len(), 16);
    let watched = watchable(&mounts);
    let paths: Vec<_> = watched
        .iter()
        .map(|one| one.path.to_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "/",
            "/home",
            "/mnt/with space\tand\\",
            "/boot/efi/image",
            "/devices",
            "/orphan",
            "/loop"
        ]
    );
    assert_eq!(watched[1].device, rustix::fs::makedev(8, 1));
}

#[test]
fn mounts_in_a_circle_are_no_end() {
    let table = b"1 2 8:1 / /a rw - ext4 a rw\n2 1 8:2 / /b rw - ext4 b rw";
    assert!(watchable(&parse(table)).is_empty());
}

proptest::proptest! {
    #[test]
    fn no_table_hurts(table in "([0-9]{1,3} [0-9]{1,3} [0-9:]{1,4} / [a-z/\\\\0-9]{0,9} x - [a-z0-9]{0,5}\n?){0,9}") {
        let _ = watchable(&parse(table.as_bytes()));
    }
}

#[test]
fn this_machine_s_root_is_marked_with_its_number() {
    let group = match Group::new(Queue::Unlimited) {
        Ok(group) => group,
        Err(errno) => return println!("SKIPPED: no fanotify group can be made: {errno}"),
    };
    let marked = mark_all(&group, &BTreeSet::new(), |_| {}).unwrap();
    let root = rustix::fs::stat("/").unwrap();
    let mounts = std::fs::read(MOUNTS).unwrap();
    let kind = parse(&mounts)
        .iter()
        .rfind(|one| one.path == Path::new("/"))
        .unwrap()
        .kind;
    if !["ext4", "xfs", "tmpfs", "f2fs"].contains(&kind) {
        return println!("SKIPPED: the root is {kind}");
    }
    let fsid = handle::file_system_of(std::fs::File::open("/").unwrap().as_fd()).unwrap();
    assert!(marked.contains(&FileSystem {
        device: root.st_dev,
        superblock: root.st_dev,
        fsid
    }));
    // A second time is as the first, but for what is known.
    assert_eq!(mark_all(&group, &BTreeSet::new(), |_| {}).unwrap(), marked);
    let known: BTreeSet<u64> = group.marked_file_systems().unwrap().into_iter().collect();
    assert!(marked.iter().all(|one| known.contains(&one.superblock)));
    assert_eq!(mark_all(&group, &known, |_| {}).unwrap(), []);
    for not_shown in ["/proc", "/sys", "/dev"] {
        let device = rustix::fs::stat(not_shown).unwrap().st_dev;
        assert!(
            !marked.iter().any(|one| one.device == device),
            "{not_shown}"
        );
    }
}
