//! What the agent knows of its machine.

use std::fs;

use wiglaf_wire::agent::Machine;

/// The machine, with its address on the cluster's network.
pub(super) fn describe(address: &str) -> Machine {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Machine {
        arch: uname.machine().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_kib: memory("MemTotal"),
        address: address.to_owned(),
    }
}

/// Memory that programs could have now.
pub(super) fn available_kib() -> u64 {
    memory("MemAvailable")
}

/// The load average of the last minute, times 100.
pub(super) fn load_centi() -> u32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    parse_load(&text).unwrap_or(0)
}

fn memory(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse_memory(&text, field).unwrap_or(0)
}

fn parse_memory(text: &str, field: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

fn parse_load(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, rest.parse().ok()?);
    whole.checked_mul(100)?.checked_add(hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        assert_eq!(parse_load("12.34 0.00 0.00 1/123 4567\n"), Some(1234));
        assert_eq!(parse_load(""), None);
        let text = "MemTotal:       16318480 kB\nMemAvailable:    9012 kB\n";
        assert_eq!(parse_memory(text, "MemAvailable"), Some(9012));
        assert_eq!(parse_memory(text, "Mem"), None);
    }

    #[test]
    fn this_machine_has_memory_and_processors() {
        let machine = describe("10.0.0.1");
        assert!(machine.cpus > 0 && machine.memory_kib > 0 && !machine.arch.is_empty());
        assert!(available_kib() <= machine.memory_kib);
    }
}
