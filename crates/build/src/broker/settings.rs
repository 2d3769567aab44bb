//! What a build is told about its machine.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// A launch costs the head some 4 ms and the node some 9 ms of processor time (redis' libraries
/// over four virtual nodes): what takes less than this is not worth it.
pub(crate) const SHORT_US: u64 = 15_000;

/// A node that a build may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Tasks that it takes at once.
    pub slots: u32,
    /// Made of namespaces on the head's own machine.
    pub is_virtual: bool,
}

/// What does not change during a build.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the build was started.
    pub tree: PathBuf,
    /// Processors of the head.
    pub head_cores: u32,
    /// Lines in the head's slots; `None`: see [`Settings::head_slots`].
    pub head_slots: Option<u32>,
    /// make's `-j`, if it is known: what the critical path takes for all slots.
    pub jobs: Option<u32>,
    /// Lines that are known to take less processor time are *short*: they run here.
    pub short_us: u64,
    /// Directories that each machine has for itself. Lines that name files in them run here.
    pub own: Vec<PathBuf>,
}

impl Settings {
    /// For a build in this directory.
    pub fn new(tree: PathBuf, head_cores: u32) -> Settings {
        Settings {
            tree,
            head_cores,
            head_slots: None,
            jobs: None,
            short_us: SHORT_US,
            own: ["/dev", "/proc", "/run", "/sys"]
                .map(PathBuf::from)
                .to_vec(),
        }
    }

    /// The head's slots: as set, else none where all nodes are virtual, because they have the
    /// same processors, else one less than it has processors.
    pub fn head_slots(&self, nodes: &[Node]) -> u32 {
        self.head_slots.unwrap_or_else(|| {
            if nodes.iter().all(|node| node.is_virtual) {
                0
            } else {
                self.head_cores.saturating_sub(1)
            }
        })
    }

    /// The directories without a slash at the end; an empty name or `/` would be everything.
    pub(crate) fn own_prefixes(&self) -> Vec<Vec<u8>> {
        let trimmed = self.own.iter().map(|path| {
            let bytes = path.as_os_str().as_bytes();
            bytes.strip_suffix(b"/").unwrap_or(bytes).to_vec()
        });
        trimmed.filter(|path| !path.is_empty()).collect()
    }

    /// The directory of each machine's own that a path lies in.
    pub(crate) fn own_of(&self, path: &Path) -> Option<String> {
        let found = self.own.iter().find(|own| path.starts_with(own))?;
        Some(found.display().to_string())
    }

    /// A path relative to the tree; as it is, if it lies elsewhere.
    pub(crate) fn below_tree(&self, path: &Path) -> Vec<u8> {
        let path = normal(path);
        let tree = normal(&self.tree);
        let relative = path.strip_prefix(&tree).unwrap_or(&path);
        if relative.as_os_str().is_empty() {
            return b".".to_vec();
        }
        relative.as_os_str().as_bytes().to_vec()
    }
}

/// Without `.` and `..`, by their text alone.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if normal.file_name().is_some() => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heads_slots_depend_on_the_nodes() {
        let mut settings = Settings::new("/src".into(), 8);
        let node = |is_virtual| Node {
            name: "n1".into(),
            slots: 2,
            is_virtual,
        };
        assert_eq!(settings.head_slots(&[node(true)]), 0);
        assert_eq!(settings.head_slots(&[node(true), node(false)]), 7);
        settings.head_slots = Some(3);
        assert_eq!(settings.head_slots(&[node(true)]), 3);
    }

    #[test]
    fn directories_are_told_from_the_tree() {
        let settings = Settings::new("/src/linux".into(), 1);
        let below = |path: &str| String::from_utf8(settings.below_tree(Path::new(path)));
        assert_eq!(below("/src/linux"), Ok(".".into()));
        assert_eq!(below("/src/linux/net/./core"), Ok("net/core".into()));
        assert_eq!(below("/src/linux/net/../fs"), Ok("fs".into()));
        assert_eq!(below("/usr/src"), Ok("/usr/src".into()));
        assert_eq!(settings.own_of(Path::new("/run/x")), Some("/run".into()));
        assert_eq!(settings.own_of(Path::new("/runner/x")), None);
    }
}
