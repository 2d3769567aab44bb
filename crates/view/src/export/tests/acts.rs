//! What is done at random to a directory of four names.

use proptest::prelude::*;

use super::{A, APPEND, B, EXCL, LinkId, RDONLY, RDWR, TRUNC, WRONLY};

pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Node(LinkId),
    Head,
}

/// What is done; numbers choose among what there is.
#[derive(Clone, Debug)]
pub(super) enum Act {
    LookUp(usize),
    Attributes(usize),
    Here,
    Create(usize, u32),
    Open(usize, u32),
    Close(usize),
    Write(usize, u8, u8),
    Read(usize),
    Truncate(usize, u8),
    Mode(usize, u8),
    Remove(usize),
    Rename(usize, usize, bool),
    Link(usize, usize),
    MakeDirectory(usize),
    MakeLink(usize),
    SetXattr(usize, u8),
    Xattr(usize),
    Copy(usize, usize),
    List(bool),
    Forget(usize),
    HeadWrites(usize, u8),
    HeadRenames(usize, usize),
    HeadRemoves(usize),
    HeadLinks(usize, usize),
    HeadChangesMode(usize, u8),
}

fn flags() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![
        RDONLY,
        RDWR,
        RDWR | TRUNC,
        RDWR | EXCL,
        WRONLY | APPEND,
        RDWR | APPEND,
    ])
}

pub(super) fn nodes_act() -> impl Strategy<Value = Act> {
    let name = 0..NAMES.len();
    let which = 0..100_usize;
    prop_oneof![
        3 => name.clone().prop_map(Act::LookUp),
        2 => which.clone().prop_map(Act::Attributes),
        2 => Just(Act::Here),
        4 => (name.clone(), flags()).prop_map(|(name, flags)| Act::Create(name, flags)),
        2 => (which.clone(), flags()).prop_map(|(file, flags)| Act::Open(file, flags)),
        1 => which.clone().prop_map(Act::Close),
        4 => (which.clone(), any::<u8>(), any::<u8>())
            .prop_map(|(file, offset, length)| Act::Write(file, offset, length)),
        3 => which.clone().prop_map(Act::Read),
        1 => (which.clone(), any::<u8>()).prop_map(|(file, size)| Act::Truncate(file, size)),
        1 => (which.clone(), any::<u8>()).prop_map(|(file, mode)| Act::Mode(file, mode)),
        2 => name.clone().prop_map(Act::Remove),
        2 => (name.clone(), name.clone(), any::<bool>())
            .prop_map(|(from, to, exchange)| Act::Rename(from, to, exchange)),
        2 => (which.clone(), name.clone()).prop_map(|(file, name)| Act::Link(file, name)),
        1 => name.clone().prop_map(Act::MakeDirectory),
        1 => name.prop_map(Act::MakeLink),
        3 => (which.clone(), any::<u8>()).prop_map(|(file, value)| Act::SetXattr(file, value)),
        3 => which.clone().prop_map(Act::Xattr),
        1 => (which.clone(), which.clone()).prop_map(|(from, to)| Act::Copy(from, to)),
        2 => any::<bool>().prop_map(Act::List),
        2 => which.prop_map(Act::Forget),
    ]
}

pub(super) fn heads_act() -> impl Strategy<Value = Act> {
    let name = 0..NAMES.len();
    prop_oneof![
        (name.clone(), any::<u8>()).prop_map(|(name, length)| Act::HeadWrites(name, length)),
        (name.clone(), name.clone()).prop_map(|(from, to)| Act::HeadRenames(from, to)),
        name.clone().prop_map(Act::HeadRemoves),
        (name.clone(), name.clone()).prop_map(|(from, to)| Act::HeadLinks(from, to)),
        (name, any::<u8>()).prop_map(|(name, mode)| Act::HeadChangesMode(name, mode)),
    ]
}

pub(super) fn node() -> impl Strategy<Value = Who> {
    prop::sample::select(vec![Who::Node(A), Who::Node(B)])
}
