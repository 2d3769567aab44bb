//! Kernel modules: those that every machine of the image needs, and those that its devices ask
//! for.
//!
//! The image's builder has put what takes part of depmod and modprobe into two lists, so that
//! nothing is left to be looked up here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::system::finit_module;

/// Paths in the order of loading.
const ALWAYS: &str = "/etc/wiglaf/modules";
/// `PATTERN PATH` a line; all lines that match are loaded in the file's order.
const BY_ALIAS: &str = "/etc/wiglaf/modules.alias";
const DEVICES: &str = "/sys/devices";
/// Devices stand below their buses, which stand below theirs.
const MAX_DEPTH: usize = 24;
/// Each device has one, with nothing in it that is sought.
const POWER: &str = "power";
/// The kernel unpacks the module itself (linux/module.h).
const COMPRESSED: i32 = 4;

/// What can be loaded, and what is.
#[derive(Debug, Default)]
pub(super) struct Modules {
    aliases: Vec<Alias>,
    /// Names of devices that were looked at.
    seen: BTreeSet<String>,
    /// Modules that were tried.
    tried: BTreeSet<PathBuf>,
    /// Drivers of network cards here that only the whole initramfs has.
    absent: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    pattern: String,
    path: PathBuf,
}

/// What became of some modules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Names of those that are loaded now.
    pub(super) names: Vec<String>,
    /// How long that took.
    pub(super) took: Duration,
    /// Those that are not, and why.
    pub(super) failures: Vec<String>,
}

impl Modules {
    /// Reads the list of what devices may ask for. An image may have none.
    pub(super) fn read() -> Modules {
        Modules {
            aliases: parse_aliases(&fs::read_to_string(BY_ALIAS).unwrap_or_default()),
            ..Modules::default()
        }
    }

    /// Loads what every machine needs.
    pub(super) fn load_always(&mut self) -> Loaded {
        let mut loaded = Loaded::default();
        let list = fs::read_to_string(ALWAYS).unwrap_or_default();
        for path in list.lines().map(str::trim) {
            if !path.is_empty() && !path.starts_with('#') {
                self.load(Path::new(path), &mut loaded);
            }
        }
        loaded
    }

    /// Loads what devices ask for that were not there before. A bus that gets its driver has more
    /// devices, so this is to be called until nothing is new, or the kernel to be heard.
    pub(super) fn load_for_devices(&mut self, loaded: &mut Loaded) {
        let mut names = BTreeSet::new();
        collect(Path::new(DEVICES), MAX_DEPTH, &mut names);
        for name in names {
            self.load_for(&name, loaded);
        }
    }

    /// Loads what this device asks for.
    pub(super) fn load_for(&mut self, device: &str, loaded: &mut Loaded) {
        if !self.seen.insert(device.to_owned()) {
            return;
        }
        let wanted: Vec<PathBuf> = wanted(&self.aliases, device)
            .map(Path::to_path_buf)
            .collect();
        // The list is of all modules that there are, and this machine was sent what the card needs
        // that it starts by.
        let (there, missing): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|path| path.exists());
        for path in there {
            self.load(&path, loaded);
        }
        // Before a driver comes what it depends on.
        if let Some(driver) = missing.last()
            && is_network_card(device)
        {
            self.absent.insert(module_name(driver));
        }
    }

    /// Drivers that another network card of this machine needs, and that it was not sent.
    pub(super) fn absent(&self) -> Vec<&str> {
        self.absent.iter().map(String::as_str).collect()
    }

    fn load(&mut self, path: &Path, loaded: &mut Loaded) {
        if !self.tried.insert(path.to_path_buf()) {
            return;
        }
        let name = module_name(path);
        let began = Instant::now();
        match insert(path) {
            Ok(()) => {
                loaded.names.push(name);
                loaded.took += began.elapsed();
            }
            // It is there, or a part of this kernel.
            Err(Errno::EXIST) => {}
            Err(errno) => loaded.failures.push(format!("{name}: {errno}")),
        }
    }
}

fn parse_aliases(text: &str) -> Vec<Alias> {
    text.lines()
        .filter_map(|line| line.trim().split_once(' '))
        .map(|(pattern, path)| Alias {
            pattern: pattern.to_owned(),
            path: path.trim().into(),
        })
        .collect()
}

fn wanted<'a>(aliases: &'a [Alias], device: &str) -> impl Iterator<Item = &'a Path> {
    aliases
        .iter()
        .filter(move |alias| matches(alias.pattern.as_bytes(), device.as_bytes()))
        .map(|alias| alias.path.as_path())
}

fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.split_once(".ko") {
        Some((name, _)) => name.to_owned(),
        None => name.into_owned(),
    }
}

fn insert(path: &Path) -> Result<(), Errno> {
    let file =
        File::open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let is_plain = path.extension().is_some_and(|extension| extension == "ko");
    finit_module(&file, c"", if is_plain { 0 } else { COMPRESSED })
}

/// The names that devices have for their drivers.
fn collect(directory: &Path, depth: usize, names: &mut BTreeSet<String>) {
    if let Ok(name) = fs::read_to_string(directory.join("modalias")) {
        names.insert(name.trim_end().to_owned());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Links lead to devices that stand elsewhere below.
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && entry.file_name() != POWER {
            collect(&entry.path(), depth, names);
        }
    }
}

/// By PCI's class.
fn is_network_card(device: &str) -> bool {
    device.starts_with("pci:") && device.contains("bc02")
}

/// As `fnmatch(3)` without flags: `*`, `?` and `[…]`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to go on if what follows the last star did not match: one character further.
    let mut retry = None;
    while from < text.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, from));
                at += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => in_class(&pattern[at + 1..], text[from]).map(|length| length + 1),
            Some(byte) if *byte == text[from] => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                at += length;
                from += 1;
            }
            (None, Some((star, last))) => {
                retry = Some((star, last + 1));
                (at, from) = (star, last + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// The length of the class, its closing bracket included, if the byte is in it.
fn in_class(class: &[u8], byte: u8) -> Option<usize> {
    let length = class.iter().skip(1).position(|byte| *byte == b']')? + 1;
    let (is_negative, mut rest) = match class[..length].split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, &class[..length]),
    };
    let mut is_in = false;
    while let Some((&first, tail)) = rest.split_first() {
        match tail {
            [b'-', last, tail @ ..] => {
                is_in |= (first..=*last).contains(&byte);
                rest = tail;
            }
            _ => {
                is_in |= first == byte;
                rest = tail;
            }
        }
    }
    (is_in != is_negative).then_some(length + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_match(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn patterns_match_as_depmods_do() {
        let card = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00";
        assert!(is_match("pci:v00008086d0000100Esv*sd*bc*sc*i*", card));
        assert!(!is_match("pci:v00008086d0000100Fsv*sd*bc*sc*i*", card));
        assert!(is_match("pci:v*d*sv*sd*bc02sc00i*", card));
        assert!(is_match("virtio:d00000001v*", "virtio:d00000001v00001AF4"));
        let usb = "usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00";
        assert!(is_match("usb:v0BDAp815[2-3]d*dc*dsc*dp*ic*isc*ip*in*", usb));
        assert!(!is_match(
            "usb:v0BDAp815[!2-3]d*dc*dsc*dp*ic*isc*ip*in*",
            usb
        ));
        assert!(is_match("*", "") && is_match("", "") && !is_match("?", "") && !is_match("", "a"));
        assert!(is_match("a[]x]b", "a]b") && !is_match("a[bc", "ab"));
        assert!(is_match("*ab*ab", "abaab") && !is_match("*ab*ab", "abab_"));
    }

    #[test]
    fn all_that_match_are_wanted_in_the_files_order() {
        let aliases = parse_aliases(
            "virtio:d00000001v* /m/failover.ko\n\
             virtio:d00000002v* /m/virtio_blk.ko\n\
             \n\
             virtio:d00000001v* /m/net_failover.ko\n\
             virtio:d00000001v* /m/virtio_net.ko\n",
        );
        let paths: Vec<_> = wanted(&aliases, "virtio:d00000001v00001AF4").collect();
        let expected = ["/m/failover.ko", "/m/net_failover.ko", "/m/virtio_net.ko"];
        assert_eq!(paths, expected.map(Path::new));
        assert_eq!(module_name(Path::new("/m/virtio_net.ko.xz")), "virtio_net");
    }

    #[test]
    fn a_module_that_can_not_be_loaded_is_told_once() {
        let mut modules = Modules {
            aliases: parse_aliases("a* /dev/null"),
            ..Modules::default()
        };
        let mut loaded = Loaded::default();
        for device in ["a1", "a2", "b"] {
            modules.load_for(device, &mut loaded);
        }
        assert_eq!(loaded.failures.len(), 1, "{loaded:?}");
    }

    #[test]
    fn what_is_not_there_is_missed_for_network_cards_only() {
        let mut modules = Modules {
            aliases: parse_aliases("pci:* /none/mii.ko\npci:* /none/such.ko\nusb:* /none/other.ko"),
            ..Modules::default()
        };
        let mut loaded = Loaded::default();
        modules.load_for(
            "pci:v00008086d00001E31sv00001AF4sd00001100bc0Csc03i30",
            &mut loaded,
        );
        modules.load_for("usb:v0BDAp8153", &mut loaded);
        assert!(modules.absent().is_empty());
        modules.load_for(
            "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
            &mut loaded,
        );
        assert_eq!(modules.absent(), ["such"]);
        assert_eq!(loaded, Loaded::default());
    }

    proptest! {
        #[test]
        fn any_pattern_ends(pattern in "[ab*?\\[\\]!^-]{0,12}", text in "[ab\\]-]{0,20}") {
            let _ = is_match(&pattern, &text);
        }

        #[test]
        fn a_text_matches_itself_with_stars_put_in(text in "[a-z]{0,20}", places in prop::collection::vec(0_usize..20, 0..4)) {
            let mut pattern = text.clone();
            for place in places {
                pattern.insert(place.min(pattern.len()), '*');
            }
            prop_assert!(is_match(&pattern, &text));
        }
    }
}
