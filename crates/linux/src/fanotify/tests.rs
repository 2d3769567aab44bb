//! The parser: what it makes of well-formed events, and that nothing else hurts it.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Named {
    kind: u8,
    fsid: [u8; 8],
    handle_kind: i32,
    handle: Vec<u8>,
    name: Option<Vec<u8>>,
}

fn named() -> impl Strategy<Value = Named> {
    let parts = (
        any::<[u8; 8]>(),
        1..0xff,
        vec(any::<u8>(), 1..=128),
        option::of(vec(1..=255u8, 0..=255)),
        any::<bool>(),
    );
    parts.prop_map(|(fsid, handle_kind, handle, name, is_directory)| Named {
        kind: match (&name, is_directory) {
            (Some(_), _) => TYPE_DFID_NAME,
            (None, true) => TYPE_DFID,
            (None, false) => TYPE_FID,
        },
        fsid,
        handle_kind,
        handle,
        name,
    })
}

fn put_record(out: &mut Vec<u8>, record: &Named) {
    let start = out.len();
    out.extend([record.kind, 0, 0, 0]);
    out.extend(record.fsid);
    out.extend(u32::try_from(record.handle.len()).unwrap().to_ne_bytes());
    out.extend(record.handle_kind.to_ne_bytes());
    out.extend(&record.handle);
    if let Some(name) = &record.name {
        out.extend(name);
        out.push(0);
    }
    while !(out.len() - start).is_multiple_of(4) {
        out.push(0);
    }
    let length = u16::try_from(out.len() - start).unwrap();
    out[start + 2..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn put_event(out: &mut Vec<u8>, mask: u64, pid: i32, records: &[Named]) {
    let start = out.len();
    out.extend([0; METADATA_BYTES]);
    for record in records {
        put_record(out, record);
    }
    let length = u32::try_from(out.len() - start).unwrap();
    let metadata = u16::try_from(METADATA_BYTES).unwrap();
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    out[start + 4] = VERSION;
    out[start + 6..start + 8].copy_from_slice(&metadata.to_ne_bytes());
    out[start + 8..start + 16].copy_from_slice(&mask.to_ne_bytes());
    out[start + 20..start + 24].copy_from_slice(&pid.to_ne_bytes());
}

fn read_all(bytes: &[u8]) -> Result<Vec<(u64, i32, Vec<Named>)>, MalformedEvent> {
    let mut found = Vec::new();
    for event in events(bytes) {
        let event = event?;
        let mut records = Vec::new();
        for record in event.records() {
            let record = record?;
            records.push(Named {
                kind: match (record.kind, record.name) {
                    (RecordKind::File, _) => TYPE_FID,
                    (RecordKind::Directory, Some(_)) => TYPE_DFID_NAME,
                    (RecordKind::Directory, None) => TYPE_DFID,
                },
                fsid: record.fsid,
                handle_kind: record.handle_kind,
                handle: record.handle.to_vec(),
                name: record.name.map(<[u8]>::to_vec),
            });
        }
        found.push((event.mask, event.pid, records));
    }
    Ok(found)
}

proptest! {
    #[test]
    fn events_are_read_as_they_were_written(
        wanted in vec((any::<u64>(), any::<i32>(), vec(named(), 0..3)), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for (mask, pid, records) in &wanted {
            put_event(&mut bytes, *mask, *pid, records);
            ends.push(bytes.len());
        }
        let found = read_all(&bytes);
        prop_assert_eq!(found.as_ref(), Ok(&wanted));
        // Cut anywhere else than between two, the last is an error.
        let cut = cut.index(bytes.len() + 1);
        prop_assert_eq!(read_all(&bytes[..cut]).is_ok(), ends.contains(&cut));
    }

    #[test]
    fn no_bytes_hurt(mut bytes in vec(any::<u8>(), 0..512), framed in any::<bool>()) {
        if framed && bytes.len() >= METADATA_BYTES {
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..8].copy_from_slice(&[VERSION, 0, 24, 0]);
        }
        let bound = bytes.len();
        let events: Vec<_> = events(&bytes).collect();
        prop_assert!(events.len() <= bound);
        for event in events.into_iter().flatten() {
            prop_assert!(event.records().count() <= bound);
        }
    }

    #[test]
    fn one_wrong_byte_hurts_nothing(
        records in vec(named(), 0..3),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = Vec::new();
        put_event(&mut bytes, MODIFY, 1, &records);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read_all(&bytes);
    }
}

#[test]
fn a_file_that_the_kernel_could_not_name_is_an_error() {
    let mut bytes = Vec::new();
    let nameless = Named {
        kind: TYPE_FID,
        fsid: [1; 8],
        handle_kind: HANDLE_INVALID,
        handle: vec![],
        name: None,
    };
    put_event(&mut bytes, MODIFY, 1, &[nameless]);
    assert_eq!(read_all(&bytes), Err(MalformedEvent));
}

#[test]
fn records_of_other_kinds_are_skipped() {
    let mut bytes = Vec::new();
    let unknown = Named {
        kind: 99,
        fsid: [1; 8],
        handle_kind: 1,
        handle: vec![1],
        name: None,
    };
    let known = Named {
        kind: TYPE_FID,
        ..unknown.clone()
    };
    put_event(&mut bytes, ATTRIB, 7, &[unknown, known.clone()]);
    assert_eq!(read_all(&bytes), Ok(vec![(ATTRIB, 7, vec![known])]));
}

#[test]
fn marks_of_file_systems_are_told_from_others() {
    let info = "pos:\t0\nfanotify flags:e33 event-flags:8000\n\
        fanotify ino:64048 sdev:fe00000 mflags:0 mask:8000020 ignored_mask:0 fhandle-bytes:8\n\
        fanotify mnt_id:12 mflags:0 mask:2 ignored_mask:0\n\
        fanotify sdev:fe00001 mflags:0 mask:8000006 ignored_mask:0\n\
        fanotify sdev:c7 mflags:0 mask:8000006 ignored_mask:0\nfanotify sdev:x\n";
    let found: Vec<_> = info.lines().filter_map(marked_file_system).collect();
    assert_eq!(
        found,
        [rustix::fs::makedev(254, 1), rustix::fs::makedev(0, 0xc7)]
    );
}

#[test]
fn a_group_knows_what_it_watches() {
    let Ok(group) = Group::new(Queue::Bounded) else {
        return println!("SKIPPED: no fanotify group can be made");
    };
    assert_eq!(group.marked_file_systems().unwrap(), []);
    let place = std::fs::File::open(std::env::temp_dir()).unwrap();
    if let Err(errno) = group.mark_file_system(place.as_fd()) {
        return println!("SKIPPED: {errno}");
    }
    group.mark_opens(place.as_fd()).unwrap();
    let device = rustix::fs::fstat(&place).unwrap().st_dev;
    assert_eq!(group.marked_file_systems().unwrap(), [device]);
}
