//! Damage without nightly: the corpus of the fuzz target, and changed copies of it.

use std::path::PathBuf;

use wiglaf_keep::segment;

#[path = "../../../fuzz/changed.rs"]
mod changed;
#[path = "../../../fuzz/kept.rs"]
mod kept;

#[test]
fn no_segment_does_harm() {
    changed::run("kept", kept::kept);
}

#[test]
fn what_an_earlier_version_has_kept_is_read() {
    for (name, is_indexed) in [("complete", true), ("torn", false)] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/kept");
        let bytes = std::fs::read(folder.join(name)).expect("an input");
        let content = segment::parse(&bytes, &kept::KEY).expect("a segment");
        assert_eq!(content.rows.len(), 4, "{name}");
        assert_eq!(content.is_indexed, is_indexed, "{name}");
    }
}
