//! Whether a medium may be written to a disk.

use super::Cluster;
use super::layout::size;
use super::plan::{Disk, Use};
use super::table::Found;

/// Why it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// As things are, in no case.
    Firm(String),
    /// Nobody has said that what is on it may be lost.
    Data(String),
}

/// What is lost by writing so many bytes to a disk, if anything is.
pub(crate) fn may_write(
    disk: &Disk,
    bytes: u64,
    overwrite: bool,
    cluster: &Cluster,
) -> Result<Option<String>, Obstacle> {
    let firm = |why: String| Err(Obstacle::Firm(why));
    match disk.use_ {
        Use::Nobody => {}
        Use::Broken => return firm("it can't be read".into()),
        Use::Us => return firm("it is this node's swap, scratch or data".into()),
        Use::Others => return firm(format!("it is in use, and has {}", disk.content.name())),
    }
    if disk.is_read_only {
        return firm("it can only be read".into());
    }
    if let Some(purposes) = laid_out(disk, cluster) {
        return firm(format!("it is laid out for this cluster ({purposes})"));
    }
    if disk.bytes < bytes {
        return firm(format!(
            "it is too small: {} are needed",
            size(bytes.next_multiple_of(super::MIB))
        ));
    }
    match disk.data(cluster) {
        Some(data) if !overwrite => Err(Obstacle::Data(data)),
        lost => Ok(lost),
    }
}

/// What this cluster has on it, whether that is used now or not.
fn laid_out(disk: &Disk, cluster: &Cluster) -> Option<String> {
    let Found::Table(table) = &disk.table else {
        return None;
    };
    let owners = table.entries.iter().flatten().filter_map(|e| e.owner());
    let ours = owners.filter(|(_, mark)| *mark == cluster.mark());
    let names: Vec<_> = ours.map(|(purpose, _)| purpose.name()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::super::layout::Extent;
    use super::super::table::{Guid, Table};
    use super::*;
    use wiglaf_wire::disk::Purpose;

    const GIB: u64 = 1 << 30;

    fn disk() -> Disk {
        Disk {
            device: "/dev/vda".into(),
            identities: Vec::new(),
            bytes: GIB,
            is_removable: false,
            is_external: false,
            is_read_only: false,
            content: Content::Empty,
            table: Found::None,
            parts: Vec::new(),
            use_: Use::Nobody,
        }
    }

    fn divided(mark: u8) -> Disk {
        let extent = Extent {
            purpose: Purpose::Scratch,
            start: 1 << 20,
            length: 1 << 29,
        };
        let of = Cluster::new(&[mark; 32]);
        let mut guid = || Guid::random([1; 16]);
        Disk {
            content: Content::Known("GPT"),
            table: Found::Table(Table::new(&[extent], &of, &mut guid)),
            ..disk()
        }
    }

    #[test]
    fn data_is_lost_only_if_that_is_said_and_never_ours_or_what_is_in_use() {
        let cluster = Cluster::new(&[7; 32]);
        let may = |disk: &Disk, overwrite| may_write(disk, 1 << 20, overwrite, &cluster);
        assert_eq!(may(&disk(), false), Ok(None));
        for content in [Content::Known("ext4"), Content::Unknown] {
            let disk = Disk { content, ..disk() };
            let found = may(&disk, false);
            assert!(matches!(found, Err(Obstacle::Data(_))), "{found:?}");
            assert!(matches!(may(&disk, true), Ok(Some(_))));
        }
        let another = divided(8);
        assert!(matches!(may(&another, false), Err(Obstacle::Data(_))));
        assert!(matches!(may(&another, true), Ok(Some(_))));

        let firm = |disk: Disk| matches!(may(&disk, true), Err(Obstacle::Firm(_)));
        assert!(firm(divided(7)));
        for use_ in [Use::Us, Use::Others, Use::Broken] {
            assert!(firm(Disk { use_, ..disk() }), "{use_:?}");
        }
        assert!(firm(Disk {
            is_read_only: true,
            ..disk()
        }));
        let small = may_write(&disk(), GIB + 1, true, &cluster);
        assert!(matches!(small, Err(Obstacle::Firm(_))));
    }
}
