//! What is done on the head and on nodes, at random.

use proptest::prelude::*;

pub(crate) const NODES: usize = 2;
/// What is mounted, mounted on, renamed.
pub(crate) const PLACES: [&str; 6] = ["a", "b", "c", "a/s", "b/s", "e"];
pub(crate) const NAMES: [&str; 3] = ["f", "s", "s/f"];

/// Something that is done on the head.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Bind(usize, usize),
    /// A file system in memory, with files of this content.
    Memory(usize, u8),
    Unmount(usize),
    Detach(usize),
    /// Another file system in the place of one, perhaps with its numbers.
    Replace(usize, u8),
    /// The same with what a bind mount shows.
    BindAgain(usize, usize),
    Move(usize, usize),
    Rename(usize, usize),
    /// Another directory where one was.
    Renew(usize, u8),
    Write(usize, u8),
    /// The keeper looks at the mount table, if it was asked to.
    Keeper,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Head(Deed),
    /// A node looks at a path, so that its kernel keeps what it sees.
    Look(usize, usize, usize),
    List(usize, usize),
    Write(usize, usize, u8),
}

pub(crate) fn deed() -> impl Strategy<Value = Deed> {
    let place = || 0..PLACES.len();
    prop_oneof![
        (place(), place()).prop_map(|(a, b)| Deed::Bind(a, b)),
        (place(), any::<u8>()).prop_map(|(a, n)| Deed::Memory(a, n)),
        place().prop_map(Deed::Unmount),
        place().prop_map(Deed::Detach),
        (place(), any::<u8>()).prop_map(|(a, n)| Deed::Replace(a, n)),
        (place(), place()).prop_map(|(a, b)| Deed::BindAgain(a, b)),
        (place(), place()).prop_map(|(a, b)| Deed::Move(a, b)),
        (place(), place()).prop_map(|(a, b)| Deed::Rename(a, b)),
        (place(), any::<u8>()).prop_map(|(a, n)| Deed::Renew(a, n)),
        (place(), any::<u8>()).prop_map(|(a, n)| Deed::Write(a, n)),
        Just(Deed::Keeper),
    ]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let (node, place) = (|| 0..NODES, || 0..PLACES.len());
    prop_oneof![
        3 => deed().prop_map(Step::Head),
        2 => (node(), place(), 0..=NAMES.len()).prop_map(|(k, a, n)| Step::Look(k, a, n)),
        1 => (node(), place()).prop_map(|(k, a)| Step::List(k, a)),
        1 => (node(), place(), any::<u8>()).prop_map(|(k, a, n)| Step::Write(k, a, n)),
    ]
}

pub(crate) fn fill(place: &str, n: u8) -> String {
    format!("mkdir -p {place}/s; echo {n} > {place}/f; echo s{n} > {place}/s/f")
}

fn memory(place: &str, n: u8) -> String {
    format!("mount -t tmpfs t {place} && {{ {}; }}", fill(place, n))
}

pub(crate) fn command(deed: &Deed) -> Option<String> {
    let at = |place: &usize| PLACES[*place];
    Some(match deed {
        Deed::Bind(a, b) => format!("mount --bind {} {}", at(a), at(b)),
        Deed::Memory(a, n) => memory(at(a), *n),
        Deed::Unmount(a) => format!("umount {}", at(a)),
        Deed::Detach(a) => format!("umount -l {}", at(a)),
        Deed::Replace(a, n) => format!("umount {} && {}", at(a), memory(at(a), *n)),
        Deed::BindAgain(a, b) => {
            let (a, b) = (at(a), at(b));
            format!(
                "umount {b}; mv {a} {a}.old && mkdir {a} && {{ {}; }}; mount --bind {a} {b}; rm -rf {a}.old",
                fill(a, 7)
            )
        }
        Deed::Move(a, b) => format!("mount --move {} {}", at(a), at(b)),
        Deed::Rename(a, b) => format!("mv -T {} {}", at(a), at(b)),
        Deed::Renew(a, n) => {
            format!(
                "mv {0} {0}.old && {{ {1}; }}; rm -rf {0}.old",
                at(a),
                fill(at(a), *n)
            )
        }
        Deed::Write(a, n) => format!("echo {n} > {}/f", at(a)),
        Deed::Keeper => return None,
    })
}
