//! Where a program's loader finds libraries.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::elf::{self, Object};

/// Where loaders look without being told; Debian's, then what others have.
const STANDARD: &[&str] = &[
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// ld.so.conf may include others, those others.
const MAX_INCLUDES: usize = 8;

/// As much of a library as its processor is named in.
const HEAD_BYTES: u64 = 64;

/// The directories of one machine.
pub(super) struct Libraries {
    /// Of /etc/ld.so.conf.
    configured: Vec<PathBuf>,
    /// A library was found in one of those.
    pub(super) needs_cache: bool,
}

impl Libraries {
    pub(super) fn of_this_machine() -> Libraries {
        let mut configured = Vec::new();
        read_configuration(Path::new("/etc/ld.so.conf"), 0, &mut configured);
        let is_standard =
            |dir: &PathBuf| STANDARD.iter().any(|standard| dir == Path::new(standard));
        configured.retain(|dir| !is_standard(dir));
        Libraries {
            configured,
            needs_cache: false,
        }
    }

    /// A library of that name which the object can be linked with, looked for as ld.so(8) does.
    /// Variants for newer processors are left out: the plain ones run everywhere.
    pub(super) fn find(&mut self, name: &str, object: &Object, at: &Path) -> Option<PathBuf> {
        let fits = |path: &PathBuf| machine_of(path) == Some(object.machine);
        if name.contains('/') {
            return Some(PathBuf::from(name)).filter(fits);
        }
        let origin = at.parent().unwrap_or(Path::new("/"));
        let own = object.search.iter().map(|dir| expand(dir, origin));
        let own = own.map(|dir| dir.join(name)).find(fits);
        let standard = || {
            let dirs = STANDARD.iter().map(|dir| Path::new(dir).join(name));
            dirs.into_iter().find(fits)
        };
        if let Some(path) = own.or_else(standard) {
            return Some(path);
        }
        // Libraries of one package often have no way to each other but the program's own.
        let beside = Some(origin.join(name)).filter(fits);
        let configured = self.configured.iter().map(|dir| dir.join(name)).find(fits);
        self.needs_cache |= configured.is_some();
        configured.or(beside)
    }
}

fn machine_of(path: &Path) -> Option<elf::Machine> {
    let mut head = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    elf::machine(&head)
}

fn expand(dir: &str, origin: &Path) -> PathBuf {
    let origin = origin.to_string_lossy();
    let dir = dir
        .replace("${ORIGIN}", &origin)
        .replace("$ORIGIN", &origin);
    let lib = if Path::new("/usr/lib64").is_dir() {
        "lib64"
    } else {
        "lib"
    };
    let dir = dir.replace("${LIB}", lib).replace("$LIB", lib);
    PathBuf::from(dir)
}

fn read_configuration(path: &Path, depth: usize, dirs: &mut Vec<PathBuf>) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include ") {
            if depth < MAX_INCLUDES {
                for path in matching(path, pattern.trim()) {
                    read_configuration(&path, depth + 1, dirs);
                }
            }
        } else if line.starts_with('/') && !dirs.contains(&PathBuf::from(line)) {
            dirs.push(line.into());
        }
    }
}

/// Distributions write `include ld.so.conf.d/*.conf`; other wildcards are not known to be used.
fn matching(file: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = file.parent().unwrap_or(Path::new("/")).join(pattern);
    let Some((before, after)) = pattern.to_str().and_then(|text| text.split_once('*')) else {
        return vec![pattern];
    };
    let dir = pattern.parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let path = path.to_string_lossy();
            path.starts_with(before) && path.ends_with(after)
        })
        .collect();
    paths.sort();
    paths
}

/// The services that a nsswitch.conf(5) names.
pub(super) fn name_services(text: &str) -> BTreeSet<String> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let lists = lines.filter_map(|line| line.split_once(':'));
    let words = lists.flat_map(|(_, list)| list.split_whitespace());
    // `[NOTFOUND=return]` says what to do, not whom to ask.
    let mut is_action = false;
    let services = words.filter(|word| {
        let was_action = is_action || word.starts_with('[');
        is_action = was_action && !word.ends_with(']');
        !was_action
    });
    let mut services: BTreeSet<String> = services.map(str::to_owned).collect();
    // Asked even where the file does not name them.
    services.extend(["dns".to_owned(), "files".to_owned()]);
    services
}

/// A passwd(5) or group(5) without the hashes that very old ones have.
pub(super) fn without_passwords(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let mut fields: Vec<_> = line.split(':').collect();
        if fields.get(1).is_some_and(|field| field.len() > 1) {
            fields[1] = "x";
        }
        fields.join(":") + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_from_what_to_do() {
        let text = "# passwd: nis\npasswd: files systemd\nhosts: files mymachines [!UNAVAIL=return \
                    TRYAGAIN=continue] resolve [NOTFOUND=return] dns # nis\n";
        let services: Vec<_> = name_services(text).into_iter().collect();
        assert_eq!(
            services,
            ["dns", "files", "mymachines", "resolve", "systemd"]
        );
    }

    #[test]
    fn hashes_stay_here() {
        assert_eq!(
            without_passwords("root:x:0:0::/root:/bin/sh\nold:$1$abc:7:7:::\nn::8:8\n"),
            "root:x:0:0::/root:/bin/sh\nold:x:7:7:::\nn::8:8\n"
        );
    }

    #[test]
    fn configured_directories_are_read_through_includes() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("ld.so.conf");
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(
            &main,
            "include d/*.conf\n/opt/a # own\ninclude ld.so.conf\n",
        )
        .unwrap();
        fs::write(dir.path().join("d/2.conf"), "/opt/c\n").unwrap();
        fs::write(dir.path().join("d/1.conf"), "/opt/b\n/opt/c\n").unwrap();
        fs::write(dir.path().join("d/x.txt"), "/opt/d\n").unwrap();
        let mut dirs = Vec::new();
        read_configuration(&main, 0, &mut dirs);
        assert_eq!(dirs, ["/opt/b", "/opt/c", "/opt/a"].map(PathBuf::from));
    }

    #[test]
    fn origin_is_the_programs_directory() {
        let expanded = expand("$ORIGIN/../lib:", Path::new("/opt/x/bin"));
        assert_eq!(expanded, Path::new("/opt/x/bin/../lib:"));
        let expanded = expand("${ORIGIN}", Path::new("/opt"));
        assert_eq!(expanded, Path::new("/opt"));
    }
}
