//! What is done with disks.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddrV4;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wiglaf_linux::disk::{reread_partitions, swap_off, swap_on};
use wiglaf_wire::disk::{
    DiskAnswer, DiskInfo, DiskOrder, DiskPart, DiskRule, DiskStep, DiskVerdict, Purpose,
};

use super::super::kept::{self, SharedStore};
use super::look::{self, Seen};
use super::mkfs;
use crate::disk::content::{Content, EXT4};
use crate::disk::layout::{Extent, size};
use crate::disk::plan::{Disk, Planned, Step, list, plan};
use crate::disk::table::{Geometry, Guid, Table, owner};
use crate::disk::{Cluster, MIB, swap};

/// Everybody may make files, and nobody removes others'.
const STICKY: u32 = 0o1777;
const PRIVATE: u32 = 0o700;
const LOST: &str = "lost+found";
/// Until the kernel shows new partitions, and lets go of old ones.
pub(super) const SETTLE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What came of using what is there.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Directories that have a disk now and had none before, or whose disk is to be kept on again.
    pub(super) mounted: Vec<&'static str>,
    /// For the log.
    pub(super) lines: Vec<String>,
}

/// What the agent knows of its disks.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) cluster: Cluster,
    /// Where media come from.
    pub(super) boot: Option<SocketAddrV4>,
    /// Where directories are that tasks see in `/`.
    places: PathBuf,
    /// Partitions that were tried.
    tried: HashSet<String>,
    /// Those that can't be used, and why.
    troubles: HashMap<String, String>,
    /// What is kept on scratch.
    store: SharedStore,
    /// It was closed for what is being applied.
    has_closed: bool,
}

/// A step that went wrong, as a sentence that follows the disk's name.
pub(super) type Failed = String;

impl Ground {
    pub(super) fn new(
        cluster: Cluster,
        boot: Option<SocketAddrV4>,
        places: PathBuf,
        store: SharedStore,
    ) -> Ground {
        Ground {
            cluster,
            boot,
            places,
            tried: HashSet::new(),
            troubles: HashMap::new(),
            store,
            has_closed: false,
        }
    }

    /// Uses what is this cluster's and is not used yet. What can't be used is left as it is.
    pub(super) fn use_ours(&mut self) -> Used {
        let mut used = Used::default();
        let in_use = self.in_use();
        for part in look::named_partitions() {
            let Some((purpose, mark)) = owner(&part.name) else {
                continue;
            };
            if mark != self.cluster.mark() || !self.tried.insert(part.device.clone()) {
                continue;
            }
            if in_use.contains_key(&part.device) {
                continue;
            }
            let path = Path::new(&part.device);
            let (done, how) = match purpose {
                Purpose::Swap => (swap_on_at(path), "swapped to".to_owned()),
                Purpose::Scratch | Purpose::Data => {
                    (self.show(path, purpose), format!("mounted at /{purpose}"))
                }
            };
            match done {
                Ok(()) => {
                    self.troubles.remove(&part.device);
                    if purpose != Purpose::Swap {
                        used.mounted.push(purpose.name());
                    }
                    let text = format!("{} ({}) is {how}", part.device, size(part.bytes));
                    used.lines.push(text);
                }
                Err(why) => {
                    let text = format!(
                        "{} can't be {how}: {why}; nothing was changed on it",
                        part.device
                    );
                    self.troubles.insert(part.device, why);
                    used.lines.push(text);
                }
            }
        }
        used
    }

    fn show(&self, device: &Path, purpose: Purpose) -> Result<(), Failed> {
        let place = self.places.join(purpose.name());
        if mounts().iter().any(|(_, at)| Path::new(at) == place) {
            return Err(format!("another disk is at /{purpose}"));
        }
        let made = fs::create_dir(&place);
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(format!("/{purpose} can't be made: {error}"));
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(device, &place, EXT4, flags, None).map_err(|errno| match errno {
            Errno::NODEV => "this kernel has no ext4: build the image by `wiglaf image build \
                             --disk`"
                .to_owned(),
            errno => format!("{errno} (its file system is damaged, or there is none)"),
        })?;
        if purpose == Purpose::Scratch {
            // Before anybody else can make it. It may be there.
            let private = fs::DirBuilder::new()
                .mode(PRIVATE)
                .create(place.join(kept::DIRECTORY));
            private.ok();
        }
        // Files of data may have been given to somebody.
        if purpose == Purpose::Scratch || is_new(&place) {
            let mode = fs::Permissions::from_mode(STICKY);
            fs::set_permissions(&place, mode)
                .map_err(|error| format!("/{purpose} can't be opened to all: {error}"))?;
        }
        Ok(())
    }

    /// Devices that this agent uses, and for what.
    pub(super) fn in_use(&self) -> HashMap<String, String> {
        let mut used: HashMap<_, _> = swaps()
            .into_iter()
            .map(|swap| (swap, "on".into()))
            .collect();
        for (device, at) in mounts() {
            if let Ok(name) = Path::new(&at).strip_prefix(&self.places) {
                used.entry(device)
                    .or_insert_with(|| format!("at /{}", name.display()));
            }
        }
        used
    }

    /// Does what the head wants.
    pub(super) fn carry_out(&mut self, order: DiskOrder) -> (DiskAnswer, Used) {
        match order {
            DiskOrder::Look => (self.describe(), Used::default()),
            DiskOrder::Plan { rules, erase } => {
                let seen = look::disks(&self.in_use());
                let planned = self.plan(&rules, &seen, &erase);
                let steps = planned.iter().map(|line| planned_step(line, &seen));
                let answer = DiskAnswer {
                    steps: steps.collect(),
                    ..DiskAnswer::default()
                };
                (answer, Used::default())
            }
            DiskOrder::Apply { rules, erase } => self.apply(&rules, &erase),
            DiskOrder::Write(medium) => (self.write(&medium), Used::default()),
        }
    }

    fn describe(&self) -> DiskAnswer {
        let in_use = self.in_use();
        let disks = look::disks(&in_use).into_iter().map(|seen| {
            let ours = seen.disk.ours(&self.cluster);
            let parts = seen.disk.parts.iter().enumerate().map(|(index, part)| {
                let extent = ours.as_ref().and_then(|extents| extents.get(index));
                let state = in_use.get(&part.device).or(self.troubles.get(&part.device));
                DiskPart {
                    device: part.device.clone(),
                    bytes: part.length,
                    content: part.content.name().to_owned(),
                    purpose: extent.map(|extent| extent.purpose),
                    state: state.cloned().unwrap_or_default(),
                }
            });
            DiskInfo {
                parts: parts.collect(),
                model: seen.model,
                serial: seen.disk.identities.first().cloned().unwrap_or_default(),
                bytes: seen.disk.bytes,
                content: seen.disk.content.name().to_owned(),
                device: seen.disk.device,
            }
        });
        DiskAnswer {
            disks: disks.collect(),
            ..DiskAnswer::default()
        }
    }

    fn plan(&self, rules: &[DiskRule], seen: &[Seen], erase: &[String]) -> Vec<Planned> {
        let disks: Vec<Disk> = seen.iter().map(|seen| seen.disk.clone()).collect();
        let mut planned = plan(rules, &disks, erase, &self.cluster);
        if mkfs::program().is_none() {
            for line in &mut planned {
                if makes_files(&line.step) {
                    line.step = Step::Refuse {
                        why: mkfs::NONE.to_owned(),
                        is_about_data: false,
                    };
                }
            }
        }
        planned
    }

    fn apply(&mut self, rules: &[DiskRule], erase: &[String]) -> (DiskAnswer, Used) {
        let until = Instant::now() + mkfs::WAIT;
        let seen = look::disks(&self.in_use());
        let planned = self.plan(rules, &seen, erase);
        let mut steps = Vec::new();
        for line in &planned {
            let mut step = planned_step(line, &seen);
            if let Some(seen) = line.disk.and_then(|disk| seen.get(disk)) {
                let done = match &line.step {
                    Step::Divide { extents, .. } => Some(self.divide(seen, extents, until)),
                    Step::Format { purposes } => Some(self.format(&seen.disk, purposes, until)),
                    Step::Nothing | Step::Refuse { .. } => None,
                };
                match done {
                    Some(Ok(())) => step.verdict = DiskVerdict::Done,
                    Some(Err(why)) => {
                        step.verdict = DiskVerdict::Failed;
                        step.text = why;
                    }
                    None => {}
                }
            }
            steps.push(step);
        }
        // Also what somebody has switched off.
        self.tried.clear();
        let mut used = self.use_ours();
        if std::mem::take(&mut self.has_closed) {
            used.mounted.extend(self.left_on_scratch(&used.mounted));
        }
        for (device, why) in &self.troubles {
            steps.push(DiskStep {
                device: Some(device.clone()),
                verdict: DiskVerdict::Failed,
                text: format!("it can't be used: {why}"),
            });
        }
        let answer = DiskAnswer {
            steps,
            ..DiskAnswer::default()
        };
        (answer, used)
    }

    /// Scratch, if it was to be taken away and could not be.
    fn left_on_scratch(&self, mounted: &[&'static str]) -> Option<&'static str> {
        let scratch = Purpose::Scratch.name();
        let place = self.places.join(scratch);
        let is_left =
            !mounted.contains(&scratch) && mounts().iter().any(|(_, at)| Path::new(at) == place);
        is_left.then_some(scratch)
    }

    /// Divides a disk anew. Cut off at any point, what was done so far is either an empty disk or
    /// one that is divided rightly and has empty parts: the next time goes on from there.
    fn divide(&mut self, seen: &Seen, extents: &[Extent], until: Instant) -> Result<(), Failed> {
        self.release(&seen.disk)?;
        let path = Path::new(&seen.disk.device);
        let file = exclusive(path)?;
        self.is_as_planned(&file, seen)?;
        let geometry = Geometry {
            sector_bytes: seen.sector_bytes,
            disk_bytes: seen.disk.bytes,
        };
        let mut failure = None;
        let table = Table::new(extents, &self.cluster, &mut || match random() {
            Ok(bytes) => Guid::random(bytes),
            Err(errno) => {
                failure = Some(errno);
                Guid::default()
            }
        });
        if let Some(errno) = failure {
            return Err(format!("there is no randomness: {errno}"));
        }
        let written = table.write(geometry);
        let written = written.ok_or("its table of partitions would not fit")?;
        let put = || -> io::Result<()> {
            for (start, length) in [(0, seen.disk.bytes)]
                .into_iter()
                .chain(extents.iter().map(|extent| (extent.start, extent.length)))
            {
                wipe_ends(&file, start, length)?;
            }
            file.sync_all()?;
            // The table at the beginning is the one that is read.
            file.write_all_at(&written.head, 0)?;
            file.sync_all()?;
            let tail = seen.disk.bytes - written.tail.len() as u64;
            file.write_all_at(&written.tail, tail)?;
            file.sync_all()
        };
        put().map_err(|error| format!("it can't be written: {error}"))?;
        within(SETTLE, || reread_partitions(&file))
            .map_err(|errno| format!("the kernel does not read its new partitions: {errno}"))?;
        drop(file);
        let divided = self.find_divided(path, extents)?;
        let purposes: Vec<_> = extents.iter().map(|extent| extent.purpose).collect();
        self.format(&divided, &purposes, until)
    }

    /// The disk as the kernel has it when it has read the new table.
    fn find_divided(&self, path: &Path, extents: &[Extent]) -> Result<Disk, Failed> {
        let find = || {
            let disks = look::disks(&self.in_use()).into_iter();
            let mut disks = disks.map(|seen| seen.disk);
            let found = disks.find(|disk| Path::new(&disk.device) == path);
            let is_divided = |disk: &Disk| disk.ours(&self.cluster).as_deref() == Some(extents);
            found.filter(is_divided).ok_or(())
        };
        within(SETTLE, find).map_err(|()| "the kernel does not show its new partitions".to_owned())
    }

    /// Writes what empty parts need before they can be used.
    fn format(&mut self, disk: &Disk, purposes: &[Purpose], until: Instant) -> Result<(), Failed> {
        let extents = disk.ours(&self.cluster).unwrap_or_default();
        for (extent, part) in extents.iter().zip(&disk.parts) {
            if !purposes.contains(&extent.purpose) {
                continue;
            }
            let path = Path::new(&part.device);
            let label = format!("wiglaf-{}", extent.purpose);
            let file = exclusive(path)?;
            let (head, tail) = look::ends(&file, part.length)
                .map_err(|error| format!("{}: {error}", part.device))?;
            if Content::identify(&head, &tail, part.length) != Content::Empty {
                return Err(format!("{} is not empty any more", part.device));
            }
            match extent.purpose {
                Purpose::Swap => make_swap(&file, part.length, &label),
                Purpose::Scratch | Purpose::Data => {
                    // The program wants to have it for itself.
                    drop(file);
                    mkfs::make(path, part.length, &label, until)
                }
            }
            .map_err(|why| format!("{}: {why}", part.device))?;
            self.troubles.remove(&part.device);
        }
        Ok(())
    }

    /// Stops using it.
    fn release(&mut self, disk: &Disk) -> Result<(), Failed> {
        let in_use = self.in_use();
        for part in &disk.parts {
            self.troubles.remove(&part.device);
            let Some(use_) = in_use.get(&part.device) else {
                continue;
            };
            let released = match use_.strip_prefix("at /") {
                Some(name) => {
                    if name == Purpose::Scratch.name() {
                        // Only what tasks have there keeps it.
                        self.store.close();
                        self.has_closed = true;
                    }
                    unmount(self.places.join(name), UnmountFlags::empty())
                }
                None => CString::new(part.device.as_str())
                    .map_err(|_| Errno::INVAL)
                    .and_then(|path| swap_off(&path)),
            };
            released.map_err(|errno| {
                format!("it is in use ({use_}), and can't be taken away from there: {errno}")
            })?;
        }
        Ok(())
    }

    /// It is still what was planned for: it is ours alone since it was opened.
    pub(super) fn is_as_planned(&self, file: &File, seen: &Seen) -> Result<(), Failed> {
        let Disk { bytes, .. } = seen.disk;
        let geometry = Geometry {
            sector_bytes: seen.sector_bytes,
            disk_bytes: bytes,
        };
        let read = look::ends(file, bytes).map_err(|error| format!("it can't be read: {error}"))?;
        let (head, tail) = read;
        let same = look::is_same(file, seen)
            && Content::identify(&head, &tail, bytes) == seen.disk.content
            && Table::read(&head, geometry) == seen.disk.table;
        if same {
            Ok(())
        } else {
            Err("it has changed meanwhile; nothing was done".to_owned())
        }
    }
}

/// A line of a plan, in words.
fn planned_step(line: &Planned, seen: &[Seen]) -> DiskStep {
    let seen = line.disk.and_then(|disk| seen.get(disk));
    let (verdict, text) = match &line.step {
        Step::Nothing => (DiskVerdict::Right, "nothing to do".to_owned()),
        Step::Divide { extents, erases } => {
            let to = list(extents);
            let text = match erases {
                None => format!("divide and format: {to}"),
                Some(what) => format!("erase ({what}), divide and format: {to}"),
            };
            (DiskVerdict::Planned, text)
        }
        Step::Format { purposes } => {
            let names: Vec<_> = purposes.iter().map(|purpose| purpose.name()).collect();
            let text = format!("format what is empty yet: {}", names.join(", "));
            (DiskVerdict::Planned, text)
        }
        Step::Refuse { why, is_about_data } => {
            let name = seen.map_or("", |seen| seen.disk.surest_name());
            let text = if *is_about_data {
                format!("left alone: {why}; to lose all that is on it: --erase NODE:{name}")
            } else {
                format!("left alone: {why}")
            };
            (DiskVerdict::Refused, text)
        }
    };
    DiskStep {
        device: seen.map(|seen| seen.disk.device.clone()),
        verdict,
        text,
    }
}

fn makes_files(step: &Step) -> bool {
    match step {
        Step::Divide { extents, .. } => extents.iter().any(|e| e.purpose != Purpose::Swap),
        Step::Format { purposes } => purposes.iter().any(|purpose| *purpose != Purpose::Swap),
        Step::Nothing | Step::Refuse { .. } => false,
    }
}

/// Nobody else has it as long as it is open.
pub(super) fn exclusive(path: &Path) -> Result<File, Failed> {
    let busy = Some(Errno::BUSY.raw_os_error());
    within(SETTLE, || look::open(path, OFlags::RDWR | OFlags::EXCL)).map_err(|error| {
        if error.raw_os_error() == busy {
            format!(
                "{} is in use; if tasks have had it, start the node anew and apply before there \
                 are others",
                path.display()
            )
        } else {
            format!("{} can't be opened: {error}", path.display())
        }
    })
}

/// Tries again for a while.
pub(super) fn within<T, E>(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(_) if began.elapsed() < limit => std::thread::sleep(POLL),
            result => return result,
        }
    }
}

/// Zeros where something would be known by its signature.
pub(super) fn wipe_ends(file: &File, start: u64, length: u64) -> io::Result<()> {
    let room = length.min(MIB);
    let zeros = vec![0; usize::try_from(room).unwrap_or(0)];
    file.write_all_at(&zeros, start)?;
    file.write_all_at(&zeros, start + length - room)
}

fn make_swap(file: &File, bytes: u64, label: &str) -> Result<(), Failed> {
    let uuid = random().map_err(|errno| format!("there is no randomness: {errno}"))?;
    let Guid(uuid) = Guid::random(uuid);
    let header = swap::header(rustix::param::page_size(), bytes, uuid, label);
    let header = header.ok_or("it is too small for swap")?;
    file.write_all_at(&header, 0)
        .and_then(|()| file.sync_all())
        .map_err(|error| format!("can't write to it: {error}"))
}

fn swap_on_at(path: &Path) -> Result<(), Failed> {
    let path =
        CString::new(path.to_string_lossy().as_bytes()).map_err(|error| error.to_string())?;
    swap_on(&path).map_err(|errno| match errno {
        Errno::INVAL => "it has no swap area".to_owned(),
        errno => errno.to_string(),
    })
}

fn swaps() -> Vec<String> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let names = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// Devices that are mounted, and where, as this process sees it.
fn mounts() -> Vec<(String, String)> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    lines
        .filter(|(device, _)| device.starts_with("/dev/"))
        .collect()
}

/// Nobody has made anything in it.
fn is_new(place: &Path) -> bool {
    fs::read_dir(place)
        .is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == LOST))
}

fn random() -> Result<[u8; 16], Errno> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(bytes)
}
