use super::*;

const USER: u32 = 1000;
const OTHER: u32 = 1001;
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

fn found(node: u64, ino: u64, mode: u32) -> ViewAttributes {
    ViewAttributes {
        node,
        ino,
        mode,
        links: 1,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        rdev: 0,
        times: [(0, 0); 3],
    }
}

#[test]
fn the_heads_inode_number_is_used_while_it_is_free() {
    let mut table = Table::new();
    let one = table.enter(USER, ROOT, b"one", &found(2, 70, FILE));
    let two = table.enter(USER, ROOT, b"two", &found(3, 70, FILE));
    let root = table.enter(USER, ROOT, b"three", &found(4, ROOT, FILE));
    assert_eq!(one, Ok(70));
    assert_eq!(two, Ok(SPARE_FIRST), "another file system's inode 70");
    assert_eq!(root, Ok(SPARE_FIRST + 1));
}

#[test]
fn hard_links_are_one_file_and_a_replaced_file_is_another() {
    let mut table = Table::new();
    let one = table.enter(USER, ROOT, b"one", &found(2, 70, FILE));
    assert_eq!(table.enter(USER, ROOT, b"link", &found(2, 70, FILE)), one);
    let new = table.enter(USER, ROOT, b"one", &found(3, 71, FILE));
    assert_eq!(new, Ok(71));
    // The old file is still known, by its other name.
    assert_eq!(
        table.walk(OTHER, 70).map(|walk| walk.steps),
        Ok(vec![(70, b"link".to_vec())])
    );
}

#[test]
fn each_user_has_numbers_of_its_own_deputy() {
    let mut table = Table::new();
    let directory = table
        .enter(USER, ROOT, b"dir", &found(2, 50, DIRECTORY))
        .expect("entered");
    let file = table
        .enter(USER, directory, b"file", &found(3, 51, FILE))
        .expect("entered");
    let walk = table.walk(OTHER, file).expect("a walk");
    assert_eq!(walk.number, ROOT);
    assert_eq!(
        walk.steps,
        [(file, b"file".to_vec()), (directory, b"dir".to_vec())]
    );
    assert_eq!(
        table.attach(OTHER, directory, &found(90, 50, DIRECTORY)),
        Ok(90)
    );
    assert_eq!(table.walk(OTHER, file).expect("a walk").number, 90);
    // Another file of that name is not this file.
    assert_eq!(
        table.attach(OTHER, file, &found(91, 52, FILE)),
        Err(Errno::STALE)
    );
    // And a lookup of the same file by name finds the same node.
    assert_eq!(
        table.enter(OTHER, directory, b"file", &found(92, 51, FILE)),
        Ok(file)
    );
    assert_eq!(table.walk(USER, file).expect("a walk").number, 3);
    assert_eq!(table.walk(OTHER, file).expect("a walk").number, 92);
}

#[test]
fn what_the_kernel_forgets_the_deputies_get_back() {
    let mut table = Table::new();
    let directory = table
        .enter(USER, ROOT, b"dir", &found(2, 50, DIRECTORY))
        .expect("entered");
    let file = table
        .enter(USER, directory, b"file", &found(3, 51, FILE))
        .expect("entered");
    table
        .enter(USER, directory, b"file", &found(3, 51, FILE))
        .expect("entered");
    // A directory stays while the way to a file leads through it.
    assert_eq!(table.forget(directory, 1), []);
    assert_eq!(table.forget(file, 1), []);
    let back = |number, count| GivenBack {
        uid: USER,
        number,
        count,
    };
    assert_eq!(table.forget(file, 1), [back(3, 2), back(2, 1)]);
    assert_eq!(table.nodes.len(), 1);
    assert!(table.names.is_empty() && table.given.is_empty());
}

#[test]
fn a_moved_directory_makes_no_circle() {
    let mut table = Table::new();
    let a = table
        .enter(USER, ROOT, b"a", &found(2, 50, DIRECTORY))
        .expect("entered");
    let b = table
        .enter(USER, a, b"b", &found(3, 51, DIRECTORY))
        .expect("entered");
    // On the head: mv a/b b; mv a b/a; the kernel still knows b as a/b.
    assert_eq!(table.enter(USER, b, b"a", &found(2, 50, DIRECTORY)), Ok(a));
    assert_eq!(table.walk(OTHER, a).expect("a walk").steps.len(), 1);
    assert_eq!(
        table.enter(USER, ROOT, b"b", &found(3, 51, DIRECTORY)),
        Ok(b)
    );
    assert_eq!(table.enter(USER, b, b"a", &found(2, 50, DIRECTORY)), Ok(a));
    assert_eq!(table.walk(OTHER, a).expect("a walk").steps.len(), 2);
    assert_eq!(table.forget(b, 2), []);
    assert_eq!(table.forget(a, 3).len(), 2);
    assert_eq!(table.nodes.len(), 1);
}

#[test]
fn a_lost_deputys_numbers_mean_nothing() {
    let mut table = Table::new();
    let file = table
        .enter(USER, ROOT, b"file", &found(2, 50, FILE))
        .expect("entered");
    table
        .attach(OTHER, file, &found(2, 50, FILE))
        .expect("attached");
    table.lose(USER);
    assert_eq!(table.walk(USER, file).expect("a walk").number, ROOT);
    // The new deputy's 2 is another file.
    assert_eq!(
        table.enter(USER, ROOT, b"else", &found(2, 60, FILE)),
        Ok(60)
    );
    assert_eq!(table.walk(OTHER, file).expect("a walk").number, 2);
    let back = table.forget(file, 1);
    assert_eq!(
        back.iter().map(|back| back.uid).collect::<Vec<_>>(),
        [OTHER]
    );
}

#[test]
fn a_cache_is_good_for_the_same_version_only() {
    let mut table = Table::new();
    let mut file = found(2, 50, FILE);
    let node = table.enter(USER, ROOT, b"file", &file).expect("entered");
    assert!(!table.unchanged_since_last_open(node, &file));
    assert!(table.unchanged_since_last_open(node, &file));
    file.times[1] = (5, 0);
    assert!(!table.unchanged_since_last_open(node, &file));
    file.size = 9;
    assert!(!table.unchanged_since_last_open(node, &file));
}
