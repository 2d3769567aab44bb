//! Cgroups that tell whose CPU time and memory it is: v1's cpuacct and memory, or v2.
//!
//! A child is in the group that we are in when we start it, so we change groups before it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Who is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Group {
    /// The head's daemons, the commands and the ghosts.
    Head,
    /// The virtual nodes: rack, agents and tasks.
    Nodes,
    /// Everybody else.
    Peer,
    /// What plays the cable between two machines.
    Cable,
}

const ALL: [Group; 4] = [Group::Head, Group::Nodes, Group::Peer, Group::Cable];

impl Group {
    fn name(self) -> &'static str {
        match self {
            Group::Head => "head",
            Group::Nodes => "nodes",
            Group::Peer => "peer",
            Group::Cable => "cable",
        }
    }
}

pub(in crate::bench) struct Groups {
    cpu: Hierarchy,
    /// None where it is the same as that of the CPU time, or there is none.
    memory: Option<Hierarchy>,
}

struct Hierarchy {
    base: PathBuf,
    /// Where we came from.
    home: PathBuf,
    is_v2: bool,
}

impl Groups {
    pub(in crate::bench) fn make(name: &str) -> Result<Groups> {
        let cpu = Hierarchy::find("cpuacct")?
            .or(Hierarchy::find("")?)
            .context("no cgroup file system is mounted: CPU time can't be told apart")?;
        let memory = if cpu.is_v2 {
            None
        } else {
            Hierarchy::find("memory")?
        };
        let mut groups = Groups { cpu, memory };
        for hierarchy in groups.hierarchies_mut() {
            hierarchy.make(name)?;
        }
        Ok(groups)
    }

    fn hierarchies_mut(&mut self) -> impl Iterator<Item = &mut Hierarchy> {
        std::iter::once(&mut self.cpu).chain(&mut self.memory)
    }

    fn hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        std::iter::once(&self.cpu).chain(&self.memory)
    }

    /// The folders, for the sweeper.
    pub(in crate::bench) fn bases(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies().map(|hierarchy| hierarchy.base.as_path())
    }

    /// What we start from now on belongs there.
    pub(in crate::bench) fn enter(&self, group: Group) -> Result<()> {
        self.move_there(group, rustix::process::getpid().as_raw_nonzero().get())
    }

    pub(in crate::bench) fn move_there(&self, group: Group, pid: i32) -> Result<()> {
        for hierarchy in self.hierarchies() {
            put(&hierarchy.of(group), pid)?;
        }
        Ok(())
    }

    pub(in crate::bench) fn leave(&self) -> Result<()> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        self.hierarchies()
            .try_for_each(|hierarchy| put(&hierarchy.home, own))
    }

    /// The processes there, but us.
    pub(in crate::bench) fn members(&self, group: Group) -> Result<Vec<i32>> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut pids = members_of(&self.cpu.of(group))?;
        pids.retain(|pid| *pid != own);
        Ok(pids)
    }

    pub(in crate::bench) fn all_members(&self) -> Vec<i32> {
        ALL.iter()
            .filter_map(|group| self.members(*group).ok())
            .flatten()
            .collect()
    }

    /// CPU time spent there until now.
    pub(in crate::bench) fn cpu_ms(&self, group: Group) -> Result<f64> {
        let folder = self.cpu.of(group);
        if self.cpu.is_v2 {
            let text = read(&folder.join("cpu.stat"))?;
            let used = text
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            let used: f64 = used.context("cpu.stat has no usage_usec")?.trim().parse()?;
            return Ok(used / 1e3);
        }
        let used: f64 = read(&folder.join("cpuacct.usage"))?.trim().parse()?;
        Ok(used / 1e6)
    }

    /// Memory charged there now, the kernel's included; None where nobody counts it.
    pub(in crate::bench) fn memory_bytes(&self, group: Group) -> Option<u64> {
        let (folder, file) = match &self.memory {
            Some(hierarchy) => (hierarchy.of(group), "memory.usage_in_bytes"),
            None => (self.cpu.of(group), "memory.current"),
        };
        fs::read_to_string(folder.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    pub(in crate::bench) fn describe(&self) -> &'static str {
        if self.cpu.is_v2 {
            "cgroup v2"
        } else {
            "cgroup v1 (cpuacct, memory)"
        }
    }
}

impl Hierarchy {
    /// By v1 controller, or v2 by the empty name.
    fn find(controller: &str) -> Result<Option<Hierarchy>> {
        let is_v2 = controller.is_empty();
        let kind = if is_v2 { "cgroup2" } else { "cgroup" };
        let mounts = read(Path::new("/proc/mounts"))?;
        let mount = mounts.lines().find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let fits = *fields.get(2)? == kind
                && (is_v2 || fields.get(3)?.split(',').any(|option| option == controller));
            fits.then(|| PathBuf::from(fields[1]))
        });
        let Some(mount) = mount else { return Ok(None) };
        let own = read(Path::new("/proc/self/cgroup"))?;
        let path = own
            .lines()
            .find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let names = fields.nth(1)?;
                names
                    .split(',')
                    .any(|name| name == controller)
                    .then(|| fields.next())?
            })
            .context("we are in no cgroup")?;
        let home = mount.join(path.trim_start_matches('/'));
        Ok(Some(Hierarchy {
            base: mount,
            home,
            is_v2,
        }))
    }

    fn make(&mut self, name: &str) -> Result<()> {
        let mount = self.base.clone();
        self.base = mount.join(name);
        create(&self.base)?;
        if self.is_v2 {
            for folder in [&mount, &self.base] {
                // Without it there is only the CPU time, which v2 always counts.
                let _ = fs::write(folder.join("cgroup.subtree_control"), "+memory");
            }
        }
        ALL.iter().try_for_each(|group| create(&self.of(*group)))
    }

    fn of(&self, group: Group) -> PathBuf {
        self.base.join(group.name())
    }
}

/// The processes in a cgroup's folder.
pub(in crate::bench) fn members_of(folder: &Path) -> Result<Vec<i32>> {
    let text = read(&folder.join("cgroup.procs"))?;
    text.lines().map(|line| Ok(line.trim().parse()?)).collect()
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("can't make {}", folder.display()))
}

fn put(folder: &Path, pid: i32) -> Result<()> {
    let path = folder.join("cgroup.procs");
    if let Err(error) = fs::write(&path, pid.to_string()) {
        bail!("can't put process {pid} into {}: {error}", folder.display());
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}
