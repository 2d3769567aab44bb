use proptest::prelude::*;
use wiglaf_wire::disk::Amount;

use super::super::table::{Entry, Guid};
use super::*;

const BYTES: u64 = 1 << 30;

fn cluster(byte: u8) -> Cluster {
    Cluster::new(&[byte; 32])
}

fn empty(device: &str) -> Disk {
    Disk {
        device: device.into(),
        identities: vec![format!("serial of {device}")],
        bytes: BYTES,
        is_removable: false,
        is_external: false,
        is_read_only: false,
        content: Content::Empty,
        table: Found::None,
        parts: Vec::new(),
        use_: Use::Nobody,
    }
}

fn with(device: &str, content: Content) -> Disk {
    Disk {
        content,
        ..empty(device)
    }
}

fn rule(device: &str) -> DiskRule {
    DiskRule {
        device: device.into(),
        parts: vec![
            (Purpose::Swap, Amount::Mib(64)),
            (Purpose::Scratch, Amount::Rest),
        ],
    }
}

/// As [`Step::Divide`] and [`Step::Format`] leave it.
fn carry_out(disk: &mut Disk, step: &Step, cluster: &Cluster) {
    let content = |purpose| {
        Content::Known(match purpose {
            Purpose::Swap => SWAP,
            Purpose::Scratch | Purpose::Data => EXT4,
        })
    };
    match step {
        Step::Divide { extents, .. } => {
            let mut guid = || Guid::default();
            let mut table = Table::new(extents, cluster, &mut guid);
            // As it would be read.
            let own = Guid::random([1; 16]);
            let entries = table.entries.iter_mut().flatten();
            entries.for_each(|entry: &mut Entry| entry.own = own);
            disk.table = Found::Table(table);
            disk.content = Content::Known("GPT");
            let parts = extents.iter().enumerate().map(|(index, extent)| Part {
                device: format!("{}{}", disk.device, index + 1),
                number: u32::try_from(index).unwrap() + 1,
                start: extent.start,
                length: extent.length,
                content: content(extent.purpose),
            });
            disk.parts = parts.collect();
        }
        Step::Format { .. } => {
            let Found::Table(table) = &disk.table else {
                panic!("nothing to format")
            };
            let owned = owned(table, cluster).unwrap();
            for (part, extent) in disk.parts.iter_mut().zip(owned) {
                part.content = content(extent.purpose);
            }
        }
        Step::Nothing | Step::Refuse { .. } => {}
    }
}

fn only(rules: &[DiskRule], disks: &[Disk], erase: &[&str]) -> Step {
    let erase: Vec<_> = erase.iter().map(|name| (*name).to_owned()).collect();
    let mut planned = plan(rules, disks, &erase, &cluster(1));
    assert_eq!(planned.len(), 1, "{planned:?}");
    planned.remove(0).step
}

#[test]
fn what_several_disks_are_called_names_none_of_them() {
    let mut disks = vec![empty("/dev/nvme0n1"), empty("/dev/nvme0n2")];
    for disk in &mut disks {
        // The controller's.
        disk.identities = vec!["S4X".into()];
    }
    for disk in &mut disks {
        disk.content = Content::Known("ext4");
    }
    let rules = [rule("/dev/nvme0n1"), rule("S4X")];
    let planned = plan(&rules, &disks, &["S4X".to_owned()], &cluster(1));
    let is_refused = |line: &Planned| matches!(line.step, Step::Refuse { .. });
    assert!(planned.iter().all(is_refused), "{planned:?}");
    let planned = plan(&rules, &disks, &["/dev/nvme0n1".to_owned()], &cluster(1));
    assert!(matches!(planned[0].step, Step::Divide { .. }));
    assert!(is_refused(&planned[1]));
}

#[test]
fn of_several_disks_of_ours_the_first_is_the_one_that_is_right() {
    let own = cluster(1);
    let mut disks = vec![empty("/dev/vda"), empty("/dev/vdb")];
    let mut rules = [rule(FIRST), rule(FIRST)];
    rules[0].parts = vec![(Purpose::Swap, Amount::Rest)];
    rules[1].parts = vec![(Purpose::Scratch, Amount::Rest)];
    for line in plan(&rules, &disks, &[], &own) {
        carry_out(&mut disks[line.disk.unwrap()], &line.step, &own);
    }
    // The kernel finds them in another order.
    disks.reverse();
    for line in plan(&rules, &disks, &[], &own) {
        assert_eq!(line.step, Step::Nothing);
    }
}

#[test]
fn an_empty_disk_is_divided_once() {
    let mut disks = [empty("/dev/vda")];
    let step = only(&[rule("first")], &disks, &[]);
    assert!(matches!(&step, Step::Divide { erases: None, extents } if extents.len() == 2));
    carry_out(&mut disks[0], &step, &cluster(1));
    assert_eq!(only(&[rule("first")], &disks, &[]), Step::Nothing);
    // Named or not.
    assert_eq!(only(&[rule("first")], &disks, &["vda"]), Step::Nothing);
    // Cut off in the middle of it.
    disks[0].parts[1].content = Content::Empty;
    let step = only(&[rule("first")], &disks, &[]);
    let purposes = vec![Purpose::Scratch];
    assert_eq!(step, Step::Format { purposes });
    // Damaged: nobody formats that by himself.
    disks[0].parts[1].content = Content::Unknown;
    let step = only(&[rule("first")], &disks, &[]);
    assert!(
        matches!(
            step,
            Step::Refuse {
                is_about_data: true,
                ..
            }
        ),
        "{step:?}"
    );
}

#[test]
fn data_is_left_alone_until_it_is_named() {
    let ext4 = with("/dev/vda", Content::Known("ext4"));
    let refused = only(&[rule("first")], std::slice::from_ref(&ext4), &[]);
    assert_eq!(
        refused,
        Step::Refuse {
            why: "it has ext4".into(),
            is_about_data: true
        }
    );
    for name in ["vda", "/dev/vda", "serial of /dev/vda"] {
        let step = only(&[rule("first")], std::slice::from_ref(&ext4), &[name]);
        let why = Some("it has ext4".to_owned());
        assert!(matches!(step, Step::Divide { erases, .. } if erases == why));
    }
    let used = Disk {
        use_: Use::Others,
        ..ext4.clone()
    };
    let step = only(&[rule("first")], &[used], &["vda"]);
    assert!(matches!(
        step,
        Step::Refuse {
            is_about_data: false,
            ..
        }
    ));
    let removable = Disk {
        is_removable: true,
        ..empty("/dev/sda")
    };
    for name in ["first", "sda"] {
        let step = only(&[rule(name)], std::slice::from_ref(&removable), &[]);
        assert!(matches!(
            step,
            Step::Refuse {
                is_about_data: false,
                ..
            }
        ));
    }
    // What hangs on a cable is nobody's first, and used if it is meant.
    let external = Disk {
        is_external: true,
        ..empty("/dev/sda")
    };
    let disks = std::slice::from_ref(&external);
    let planned = plan(&[rule("first")], disks, &[], &cluster(1));
    assert!(
        matches!(planned[0].step, Step::Refuse { .. }),
        "{planned:?}"
    );
    assert!(matches!(
        only(&[rule("sda")], disks, &[]),
        Step::Divide { .. }
    ));
    // Another disk than the layout's.
    let planned = plan(
        &[rule("vda")],
        &[ext4, empty("/dev/vdb")],
        &["vdb".into()],
        &cluster(1),
    );
    assert!(
        planned
            .iter()
            .all(|line| matches!(line.step, Step::Refuse { .. }))
    );
}

#[test]
fn another_clusters_disk_is_not_ours() {
    let mut disks = [empty("/dev/vda")];
    let step = only(&[rule("first")], &disks, &[]);
    carry_out(&mut disks[0], &step, &cluster(2));
    let step = only(&[rule("first")], &disks, &[]);
    let Step::Refuse { why, .. } = step else {
        panic!("{step:?}")
    };
    assert_eq!(why, "it has partitions of another cluster (02020202)");
    // Ours with a stranger's beside it is a stranger's.
    let step = only(&[rule("first")], &disks, &["vda"]);
    carry_out(&mut disks[0], &step, &cluster(1));
    assert_eq!(only(&[rule("first")], &disks, &[]), Step::Nothing);
    if let Found::Table(table) = &mut disks[0].table {
        table.entries[1].as_mut().unwrap().name = "home".into();
    }
    let step = only(&[rule("first")], &disks, &[]);
    assert!(matches!(
        step,
        Step::Refuse {
            is_about_data: true,
            ..
        }
    ));
}

#[test]
fn first_is_the_one_that_is_laid_out() {
    let mut disks = [empty("/dev/vda"), empty("/dev/vdb")];
    let step = only(&[rule("first")], &disks, &[]);
    carry_out(&mut disks[0], &step, &cluster(1));
    disks.reverse();
    let planned = plan(&[rule("first")], &disks, &[], &cluster(1));
    assert_eq!(
        (planned[0].disk, &planned[0].step),
        (Some(1), &Step::Nothing)
    );
    // Scratch is one directory.
    let planned = plan(&[rule("vda"), rule("vdb")], &disks, &[], &cluster(1));
    assert!(matches!(planned[1].step, Step::Refuse { .. }));
    let planned = plan(&[rule("vda"), rule("vda")], &disks, &[], &cluster(1));
    assert!(matches!(planned[1].step, Step::Refuse { .. }));
}

fn amount() -> impl Strategy<Value = Amount> {
    prop_oneof![
        (16_u64..600).prop_map(Amount::Mib),
        (2_u8..70).prop_map(Amount::Percent),
        Just(Amount::Rest)
    ]
}

fn any_rule() -> impl Strategy<Value = DiskRule> {
    let device = prop_oneof![
        Just("first"),
        Just("vda"),
        Just("/dev/vdb"),
        Just("serial of /dev/vdc")
    ];
    let parts = prop::collection::btree_map(
        prop_oneof![
            Just(Purpose::Swap),
            Just(Purpose::Scratch),
            Just(Purpose::Data)
        ],
        amount(),
        0..3,
    );
    (device, parts).prop_map(|(device, parts)| DiskRule {
        device: device.to_owned(),
        parts: parts.into_iter().collect(),
    })
}

fn any_disk() -> impl Strategy<Value = Disk> {
    let content = prop_oneof![
        4 => Just(Content::Empty), 1 => Just(Content::Unknown), 1 => Just(Content::Known("ext4"))
    ];
    let use_ = prop_oneof![4 => Just(Use::Nobody), 1 => Just(Use::Us), 1 => Just(Use::Others), 1 => Just(Use::Broken)];
    // Divided by one of two clusters for one of some layouts, perhaps not to its end.
    let laid = prop::option::of((1_u8..3, any_rule(), prop::option::of(0_usize..3)));
    (content, use_, laid, any::<(u8, bool, bool)>()).prop_map(|(content, use_, laid, rest)| {
        let mut disk = Disk {
            use_,
            is_removable: rest.0 < 30,
            is_read_only: rest.1 && rest.2,
            ..with("", content)
        };
        if let Some((byte, rule, cut)) = laid
            && let Ok(extents) = lay_out(&rule.parts, disk.bytes)
            && !extents.is_empty()
        {
            let step = Step::Divide {
                extents,
                erases: None,
            };
            carry_out(&mut disk, &step, &cluster(byte));
            if let Some(part) = cut.and_then(|cut| disk.parts.get_mut(cut)) {
                part.content = content;
            }
        }
        disk
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn data_is_never_touched_unless_named_and_a_second_time_there_is_nothing_to_do(
        rules in prop::collection::vec(any_rule(), 0..3),
        disks in prop::collection::vec(any_disk(), 0..4),
        erase in prop::collection::vec(prop_oneof![
            Just("vda".to_owned()), Just("/dev/vdb".to_owned()), Just("serial of /dev/vdc".to_owned())
        ], 0..2),
        is_shared in any::<bool>(),
    ) {
        let own = cluster(1);
        let mut disks = disks;
        for (disk, name) in disks.iter_mut().zip(["/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd"]) {
            disk.device = name.into();
            let serial = if is_shared { "/dev/vdc" } else { name };
            disk.identities = vec![format!("serial of {serial}")];
        }
        let planned = plan(&rules, &disks, &erase, &own);
        for line in &planned {
            let Some(index) = line.disk else { continue };
            let disk = &disks[index];
            let is_alone = |name: &str| disks.iter().filter(|disk| disk.is_called(name)).count() == 1;
            let is_named = erase.iter().any(|name| disk.is_called(name) && is_alone(name));
            let is_empty = disk.content == Content::Empty
                && disk.table == Found::None
                && disk.parts.is_empty();
            match &line.step {
                Step::Divide { .. } => {
                    prop_assert!(is_empty || is_named, "{disk:?}");
                    prop_assert!(!matches!(disk.use_, Use::Others | Use::Broken));
                    prop_assert!(!disk.is_removable && !disk.is_read_only);
                }
                Step::Format { purposes } => {
                    let extents = disk.ours(&own).expect("only ours are formatted");
                    for (extent, part) in extents.iter().zip(&disk.parts) {
                        let is_formatted = purposes.contains(&extent.purpose);
                        prop_assert_eq!(is_formatted, part.content == Content::Empty);
                    }
                }
                Step::Nothing | Step::Refuse { .. } => {}
            }
        }
        for line in &planned {
            if let Some(index) = line.disk {
                carry_out(&mut disks[index], &line.step, &own);
            }
        }
        let again = plan(&rules, &disks, &erase, &own);
        for (first, then) in planned.iter().zip(&again) {
            if matches!(first.step, Step::Divide { .. } | Step::Format { .. }) {
                // `first` may now be one that was not there for it the first time.
                let is_first = rules.iter().any(|rule| rule.device == FIRST);
                prop_assert!(
                    is_first || (first.disk, &then.step) == (then.disk, &Step::Nothing),
                    "{first:?} {then:?}"
                );
            }
        }
    }
}
