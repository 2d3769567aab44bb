//! Where partitions lie.

use wiglaf_wire::disk::{Amount, Purpose};

use super::MIB;

/// Less is of no use: ext4 wants room for a journal.
const SMALLEST_MIB: u64 = 16;
const HUNDRED: u64 = 100;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// What for.
    pub(crate) purpose: Purpose,
    pub(crate) start: u64,
    pub(crate) length: u64,
}

impl Extent {
    /// As people read it.
    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.purpose, size(self.length))
    }
}

/// Why a disk can't be divided so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayoutError {
    /// It is too small.
    #[error("it has room for {}, and {} is wanted", size(.room_mib * MIB), size(.wanted_mib * MIB))]
    Room { room_mib: u64, wanted_mib: u64 },
    /// A part of it would be too small.
    #[error("{purpose} would have {mib}M, which is too little")]
    Small { purpose: Purpose, mib: u64 },
    /// Something is wanted twice.
    #[error("the layout has {0} twice")]
    Twice(Purpose),
}

/// Divides a disk. The same wish has the same result on the same disk, always: that is how a disk
/// that was laid out is known to be right.
pub(crate) fn lay_out(
    parts: &[(Purpose, Amount)],
    disk_bytes: u64,
) -> Result<Vec<Extent>, LayoutError> {
    // The first MiB is the table's, and the last one what its copy is in.
    let room_mib = (disk_bytes / MIB).saturating_sub(2);
    let mut parts = parts.to_vec();
    parts.sort_by_key(|(purpose, _)| *purpose);
    if let Some(twice) = parts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(LayoutError::Twice(twice[0].0));
    }
    let fixed = |amount: Amount| match amount {
        Amount::Mib(mib) => mib,
        Amount::Percent(percent) => {
            let hundredths = u128::from(room_mib) * u128::from(percent) / u128::from(HUNDRED);
            u64::try_from(hundredths).unwrap_or(u64::MAX)
        }
        Amount::Rest => 0,
    };
    let wanted = parts
        .iter()
        .fold(0_u64, |sum, (_, amount)| sum.saturating_add(fixed(*amount)));
    let Some(rest) = room_mib.checked_sub(wanted) else {
        return Err(LayoutError::Room {
            room_mib,
            // Of what was written wrongly, any large number will do.
            wanted_mib: wanted.min(u64::MAX / MIB),
        });
    };
    let sharers = parts.iter().filter(|(_, amount)| *amount == Amount::Rest);
    let share = rest.checked_div(sharers.count() as u64).unwrap_or(0);
    let mut start = MIB;
    let mut extents = Vec::new();
    for (purpose, amount) in parts {
        let mib = match amount {
            Amount::Rest => share,
            amount => fixed(amount),
        };
        if mib < SMALLEST_MIB {
            return Err(LayoutError::Small { purpose, mib });
        }
        let length = mib * MIB;
        extents.push(Extent {
            purpose,
            start,
            length,
        });
        start += length;
    }
    Ok(extents)
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["M", "G", "T", "P"];
    let mut tenths = u128::from(bytes) * 10 / u128::from(MIB);
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match (tenths % 10, tenths < 100) {
        (0, _) | (_, false) => format!("{}{}", tenths / 10, UNITS[unit]),
        (tenth, true) => format!("{}.{tenth}{}", tenths / 10, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_follow_each_other() {
        let wish = [
            (Purpose::Scratch, Amount::Rest),
            (Purpose::Swap, Amount::Mib(256)),
        ];
        let extents = lay_out(&wish, 1 << 30).unwrap();
        let expected = [
            (Purpose::Swap, MIB, 256 * MIB),
            (Purpose::Scratch, 257 * MIB, (1022 - 256) * MIB),
        ];
        let found = extents.iter().map(|e| (e.purpose, e.start, e.length));
        assert!(found.eq(expected));
        assert_eq!(extents[0].describe(), "swap 256M");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let lay = |wish: &[(Purpose, Amount)]| lay_out(wish, 100 * MIB).map(drop);
        let swap = |amount| (Purpose::Swap, amount);
        assert!(lay(&[swap(Amount::Mib(98))]).is_ok());
        assert!(matches!(
            lay(&[swap(Amount::Mib(99))]),
            Err(LayoutError::Room { .. })
        ));
        assert!(matches!(
            lay(&[swap(Amount::Mib(1))]),
            Err(LayoutError::Small { .. })
        ));
        let twice = [swap(Amount::Rest), swap(Amount::Mib(20))];
        assert_eq!(lay(&twice), Err(LayoutError::Twice(Purpose::Swap)));
        let full = [swap(Amount::Mib(98)), (Purpose::Data, Amount::Rest)];
        assert!(matches!(lay(&full), Err(LayoutError::Small { .. })));
        assert!(lay(&[swap(Amount::Mib(u64::MAX))]).is_err());
        assert!(lay_out(&[swap(Amount::Rest)], 0).is_err());
    }

    #[test]
    fn sizes_are_read_easily() {
        let read = [
            size(MIB),
            size(1536 * MIB),
            size(10 << 30),
            size(0),
            size(766 * MIB),
        ];
        assert_eq!(read, ["1M", "1.5G", "10G", "0M", "766M"].map(String::from));
    }

    fn amount() -> impl Strategy<Value = Amount> {
        prop_oneof![
            (0_u64..100_000).prop_map(Amount::Mib),
            (0_u8..=255).prop_map(Amount::Percent),
            Just(Amount::Rest)
        ]
    }

    proptest! {
        #[test]
        fn parts_lie_within_the_disk_and_beside_each_other(
            swap in amount(), scratch in amount(), data in amount(), bytes in 0_u64..(1 << 40),
        ) {
            let wish = [(Purpose::Swap, swap), (Purpose::Scratch, scratch), (Purpose::Data, data)];
            if let Ok(extents) = lay_out(&wish, bytes) {
                prop_assert_eq!(extents[0].start, MIB);
                for pair in extents.windows(2) {
                    prop_assert_eq!(pair[0].start + pair[0].length, pair[1].start);
                }
                let end = extents.last().map_or(0, |last| last.start + last.length);
                prop_assert!(end + MIB <= bytes);
                prop_assert!(extents.iter().all(|e| e.length % MIB == 0 && e.length >= SMALLEST_MIB * MIB));
            }
        }

        #[test]
        fn any_size_can_be_read(bytes in any::<u64>()) {
            prop_assert!(size(bytes).len() <= 12);
        }
    }
}
