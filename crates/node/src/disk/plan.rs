//! What is to be done about a node's disks.
//!
//! A disk with anything on it is never touched, unless somebody has named it; what is there is
//! decided here from what was read, and looked at again when it is done.

use wiglaf_wire::disk::{DiskRule, Purpose};

use super::Cluster;
use super::content::{Content, EXT4, SWAP};
use super::layout::{Extent, lay_out};
use super::table::{Found, Table};

/// The one that there is.
const FIRST: &str = "first";

/// A disk as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its path, below `/dev`.
    pub(crate) device: String,
    /// Its serial number and its WWN, as far as it has them.
    pub(crate) identities: Vec<String>,
    pub(crate) bytes: u64,
    pub(crate) is_removable: bool,
    /// It hangs on a cable outside: whoever pulls that does not mean the node.
    pub(crate) is_external: bool,
    pub(crate) is_read_only: bool,
    pub(crate) content: Content,
    pub(crate) table: Found,
    /// What the kernel calls partitions: of a table that we can't read, too.
    pub(crate) parts: Vec<Part>,
    /// Somebody uses it or a part of it: it is mounted, swapped to, or a part of another device.
    pub(crate) use_: Use,
}

/// A partition as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) device: String,
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) content: Content,
}

/// Who uses a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Nobody,
    /// This agent, for what it is for.
    Us,
    Others,
    /// It can't be read.
    Broken,
}

/// What is to be done about a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is as it should be.
    Nothing,
    /// All of it is divided anew; what was on it is lost.
    Divide {
        extents: Vec<Extent>,
        /// What somebody has named it in spite of.
        erases: Option<String>,
    },
    /// It is divided rightly, but for these nothing has been written yet.
    Format { purposes: Vec<Purpose> },
    /// As things are, nothing.
    Refuse { why: String, is_about_data: bool },
}

/// A line of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Which disk; none if no disk is meant.
    pub(crate) disk: Option<usize>,
    pub(crate) step: Step,
}

/// Plans.
pub(crate) fn plan(
    rules: &[DiskRule],
    disks: &[Disk],
    erase: &[String],
    cluster: &Cluster,
) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut taken: Vec<usize> = Vec::new();
    let mut purposes: Vec<Purpose> = Vec::new();
    let refuse = |disk, why: String| Planned {
        disk,
        step: Step::Refuse {
            why,
            is_about_data: false,
        },
    };
    // Of several disks none is named by what all of them are called.
    let called = |name: &str| disks.iter().filter(|disk| disk.is_called(name)).count();
    let (erase, unsure): (Vec<_>, Vec<_>) =
        erase.iter().cloned().partition(|name| called(name) < 2);
    let several = |name: &str| format!("several disks are called {name}: name one by its path");
    for rule in rules {
        if called(&rule.device) > 1 {
            planned.push(refuse(None, several(&rule.device)));
            continue;
        }
        let Some(chosen) = choose(rule, rules, disks, &taken, cluster) else {
            planned.push(refuse(None, not_there(rule, disks)));
            continue;
        };
        if taken.contains(&chosen) {
            let why = format!("{} names it, and an entry before does", rule.device);
            planned.push(refuse(Some(chosen), why));
            continue;
        }
        taken.push(chosen);
        let own = rule.parts.iter().map(|(purpose, _)| *purpose);
        let single = own.filter(|purpose| *purpose != Purpose::Swap);
        if let Some(twice) = single.clone().find(|purpose| purposes.contains(purpose)) {
            let why = format!("{twice} is on another disk of this node already");
            planned.push(refuse(Some(chosen), why));
            continue;
        }
        purposes.extend(single);
        let step = step(rule, &disks[chosen], &erase, cluster);
        planned.push(Planned {
            disk: Some(chosen),
            step,
        });
    }
    for name in &unsure {
        planned.push(refuse(None, several(name)));
    }
    for name in &erase {
        if !taken.iter().any(|disk| disks[*disk].is_called(name)) {
            let why = format!("{name} is not erased: no entry of the layout is for such a disk");
            planned.push(refuse(None, why));
        }
    }
    planned
}

fn choose(
    rule: &DiskRule,
    rules: &[DiskRule],
    disks: &[Disk],
    taken: &[usize],
    cluster: &Cluster,
) -> Option<usize> {
    if rule.device != FIRST {
        return disks.iter().position(|disk| disk.is_called(&rule.device));
    }
    let is_named = |disk: &Disk| rules.iter().any(|rule| disk.is_called(&rule.device));
    let free = |disk: &usize| {
        let stays = !disks[*disk].is_removable && !disks[*disk].is_external;
        !taken.contains(disk) && stays && !is_named(&disks[*disk])
    };
    let all = 0..disks.len();
    // What the kernel calls first may be another one tomorrow: the one that is laid out is it, and
    // of several the one that is laid out so.
    let is_right = |disk: &usize| {
        let disk = &disks[*disk];
        let found = disk.ours(cluster);
        found.is_some_and(|found| lay_out(&rule.parts, disk.bytes).is_ok_and(|it| it == found))
    };
    let right = all.clone().find(|disk| free(disk) && is_right(disk));
    let is_ours = |disk: &usize| disks[*disk].ours(cluster).is_some();
    right
        .or_else(|| all.clone().find(|disk| free(disk) && is_ours(disk)))
        .or_else(|| all.clone().find(free))
}

fn not_there(rule: &DiskRule, disks: &[Disk]) -> String {
    match (rule.device.as_str(), disks.len()) {
        (_, 0) => {
            "it has no disk, or no driver for it: `wiglaf image build --disk` puts them into \
                   the image"
                .to_owned()
        }
        (FIRST, _) => "it has no further disk that stays where it is".to_owned(),
        (name, _) => format!("it has no disk {name}"),
    }
}

fn step(rule: &DiskRule, disk: &Disk, erase: &[String], cluster: &Cluster) -> Step {
    let refuse = |why: String| Step::Refuse {
        why,
        is_about_data: false,
    };
    let extents = match lay_out(&rule.parts, disk.bytes) {
        Ok(extents) if extents.is_empty() => return refuse("nothing is wanted of it".into()),
        Ok(extents) => extents,
        Err(error) => return refuse(error.to_string()),
    };
    if disk.use_ == Use::Broken {
        return refuse("it can't be read".into());
    }
    let mut purposes = Vec::new();
    let obstacle = match disk.ours(cluster) {
        Some(found) if found == extents => match disk.unfinished(&extents) {
            Ok(unfinished) if unfinished.is_empty() => return Step::Nothing,
            Ok(unfinished) => {
                purposes = unfinished;
                None
            }
            Err(why) => Some(why),
        },
        Some(found) => Some(format!("it is laid out otherwise: {}", list(&found))),
        None => disk.data(cluster),
    };
    if disk.is_removable {
        return refuse("it is removable: it may be another machine's tomorrow".into());
    }
    if disk.is_read_only {
        return refuse("it can only be read".into());
    }
    if disk.use_ == Use::Others {
        return refuse(format!("it is in use, and has {}", disk.content.name()));
    }
    if !purposes.is_empty() {
        return Step::Format { purposes };
    }
    let is_named = erase.iter().any(|name| disk.is_called(name));
    match obstacle {
        Some(why) if !is_named => Step::Refuse {
            why,
            is_about_data: true,
        },
        erases => Step::Divide { extents, erases },
    }
}

/// As people read it.
pub(crate) fn list(extents: &[Extent]) -> String {
    let extents: Vec<_> = extents.iter().map(Extent::describe).collect();
    extents.join(", ")
}

impl Disk {
    /// By its path, its name, or what is written on it.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.device == name
            || self.device.strip_prefix("/dev/") == Some(name)
            || self.identities.iter().any(|identity| identity == name)
    }

    /// What to call it by, so that it is the same disk tomorrow.
    pub(crate) fn surest_name(&self) -> &str {
        let names = self.identities.iter();
        // It is what somebody may paste into a shell.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let mut plain = names.filter(|name| name.chars().all(is_plain));
        plain.next().unwrap_or(&self.device)
    }

    /// Its partitions, if all of them are this cluster's, and the kernel sees the same.
    pub(crate) fn ours(&self, cluster: &Cluster) -> Option<Vec<Extent>> {
        let Found::Table(table) = &self.table else {
            return None;
        };
        let extents = owned(table, cluster)?;
        let same = |(extent, part): (&Extent, &Part)| {
            (extent.start, extent.length) == (part.start, part.length)
        };
        let is_seen =
            extents.len() == self.parts.len() && extents.iter().zip(&self.parts).all(same);
        (is_seen && !extents.is_empty()).then_some(extents)
    }

    /// Why the disk is not empty.
    pub(super) fn data(&self, cluster: &Cluster) -> Option<String> {
        if let Found::Table(table) = &self.table {
            let entries = table.entries.iter().flatten();
            let marks = entries.filter_map(|entry| entry.owner().map(|(_, mark)| mark));
            let other = marks.into_iter().find(|mark| *mark != cluster.mark());
            return Some(match other {
                Some(mark) => format!("it has partitions of another cluster ({mark})"),
                None => self.has_parts("GPT"),
            });
        }
        if self.table == Found::Damaged {
            return Some("it has a damaged table of partitions (GPT)".to_owned());
        }
        if !self.parts.is_empty() {
            return Some(self.has_parts(self.content.name()));
        }
        (self.content != Content::Empty).then(|| format!("it has {}", self.content.name()))
    }

    fn has_parts(&self, kind: &str) -> String {
        let contents: Vec<_> = self.parts.iter().map(|part| part.content.name()).collect();
        match contents.as_slice() {
            [] => format!("it has a table of partitions ({kind})"),
            contents => format!("it has partitions with {}", contents.join(", ")),
        }
    }

    /// Of a disk that is divided rightly: the parts that nothing has been written to yet.
    fn unfinished(&self, extents: &[Extent]) -> Result<Vec<Purpose>, String> {
        let mut unfinished = Vec::new();
        for (extent, part) in extents.iter().zip(&self.parts) {
            let wanted = match extent.purpose {
                Purpose::Swap => SWAP,
                Purpose::Scratch | Purpose::Data => EXT4,
            };
            match part.content {
                Content::Empty => unfinished.push(extent.purpose),
                Content::Known(found) if found == wanted => {}
                other => {
                    return Err(format!(
                        "its {} has {} instead of {wanted}",
                        extent.purpose,
                        other.name()
                    ));
                }
            }
        }
        Ok(unfinished)
    }
}

/// The partitions of a table that has this cluster's only.
fn owned(table: &Table, cluster: &Cluster) -> Option<Vec<Extent>> {
    let extent = |entry: &Option<super::table::Entry>| {
        let entry = entry.as_ref()?;
        let (purpose, mark) = entry.owner()?;
        (mark == cluster.mark()).then_some(Extent {
            purpose,
            start: entry.start,
            length: entry.length,
        })
    };
    table.entries.iter().map(extent).collect()
}

#[cfg(test)]
mod tests;
