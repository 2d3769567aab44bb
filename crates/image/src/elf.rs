//! What programs, libraries and modules say of themselves.

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader};

/// A program or library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Object {
    /// Its processor and word size; libraries of others with the same name are passed over.
    pub(crate) machine: Machine,
    /// The program that loads it.
    pub(crate) interpreter: Option<String>,
    /// Libraries that it is linked with.
    pub(crate) needed: Vec<String>,
    /// Where to look for them first, `$ORIGIN` and all. The old form counts only without the new.
    pub(crate) search: Vec<String>,
}

/// A kind of machine code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    number: u16,
    is_64: bool,
}

impl Machine {
    /// As uname(1) calls it.
    pub(crate) fn name(self) -> &'static str {
        match (elf::Machine(self.number), self.is_64) {
            (elf::EM_X86_64, true) => "x86_64",
            (elf::EM_AARCH64, true) => "aarch64",
            (elf::EM_RISCV, true) => "riscv64",
            _ => "unknown",
        }
    }
}

/// Whether it starts as these files do.
pub(crate) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// For what it is, by the first bytes alone.
pub(crate) fn machine(head: &[u8]) -> Option<Machine> {
    let is_64 = match head.get(4)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let number = head.get(18..20).filter(|_| is_elf(head))?.try_into().ok()?;
    let number = match head[5] {
        1 => u16::from_le_bytes(number),
        _ => u16::from_be_bytes(number),
    };
    Some(Machine { number, is_64 })
}

/// Reads a program or library; none, if it is neither.
pub(crate) fn parse(bytes: &[u8]) -> Option<Object> {
    match bytes.get(4)? {
        1 => parse_as::<elf::FileHeader32<object::Endianness>>(bytes, false),
        2 => parse_as::<elf::FileHeader64<object::Endianness>>(bytes, true),
        _ => None,
    }
}

fn parse_as<Elf: FileHeader<Endian = object::Endianness>>(
    bytes: &[u8],
    is_64: bool,
) -> Option<Object> {
    let header = Elf::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, bytes).ok()?;
    let mut object = Object {
        machine: Machine {
            number: header.e_machine(endian).0,
            is_64,
        },
        ..Object::default()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let mut entries: &[Elf::Dyn] = &[];
    for segment in segments {
        if let Ok(Some(path)) = segment.interpreter(endian, bytes) {
            object.interpreter = text(path);
        }
        if let Ok(Some(found)) = segment.dynamic(endian, bytes) {
            entries = found;
        }
    }
    let entries = || {
        let all = entries
            .iter()
            .map(|entry| (entry.tag(endian), entry.val(endian)));
        all.take_while(|(tag, _)| *tag != elf::DT_NULL)
    };
    let strings = entries().find(|(tag, _)| *tag == elf::DT_STRTAB);
    let Some((_, strings)) = strings else {
        return Some(object);
    };
    let string = |offset: u64| {
        let address = strings.checked_add(offset)?;
        segments.iter().find_map(|segment| {
            let is_loaded = segment.p_type(endian) == elf::PT_LOAD;
            let start: u64 = segment.p_vaddr(endian).into();
            let skip = usize::try_from(address.checked_sub(start)?).ok()?;
            let data = segment.data(endian, bytes).ok().filter(|_| is_loaded)?;
            let data = data.get(skip..)?;
            let end = data.iter().position(|byte| *byte == 0)?;
            text(&data[..end])
        })
    };
    let strings_of = |wanted: elf::DynamicTag| {
        let all = entries().filter(move |(tag, _)| *tag == wanted);
        all.filter_map(|(_, value)| string(value))
            .collect::<Vec<_>>()
    };
    object.needed = strings_of(elf::DT_NEEDED);
    let mut search = strings_of(elf::DT_RUNPATH);
    if search.is_empty() {
        search = strings_of(elf::DT_RPATH);
    }
    object.search = search
        .iter()
        .flat_map(|paths| paths.split(':'))
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect();
    Some(object)
}

/// A section's bytes by its name, in a 64-bit file: a module's description of itself.
pub(crate) fn section<'a>(bytes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let header = elf::FileHeader64::<object::Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, bytes).ok()?;
    let (_, section) = sections.section_by_name(endian, name)?;
    section.data(endian, bytes).ok()
}

/// A program without what only debuggers read: its sections' names and all that no segment holds.
/// The kernel starts it by its segments. None, if it is not a 64-bit little-endian program.
pub(crate) fn without_sections(bytes: &[u8]) -> Option<Vec<u8>> {
    const SECTIONS_OFFSET: std::ops::Range<usize> = 0x28..0x30;
    const SECTIONS_COUNT_AND_NAMES: std::ops::Range<usize> = 0x3c..0x40;

    let header = elf::FileHeader64::<object::LittleEndian>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, bytes).ok()?;
    let headers = usize::from(header.e_phentsize(endian)) * segments.len();
    let headers_end = usize::try_from(header.e_phoff(endian))
        .ok()?
        .checked_add(headers)?;
    let mut end = headers_end.max(SECTIONS_COUNT_AND_NAMES.end);
    for segment in segments {
        let (offset, size) = segment.file_range(endian);
        let segment_end = usize::try_from(offset.checked_add(size)?).ok()?;
        end = end.max(segment_end);
    }
    let mut kept = bytes.get(..end)?.to_vec();
    kept[SECTIONS_OFFSET].fill(0);
    kept[SECTIONS_COUNT_AND_NAMES].fill(0);
    Some(kept)
}

/// Zeroes a 64-bit program's tables for unwinding, which compress to nothing then. Only for one that
/// aborts when it panics: nobody else reads them.
pub(crate) fn clear_unwinding(bytes: &mut [u8]) {
    const TABLES: [&[u8]; 3] = [b".eh_frame", b".eh_frame_hdr", b".gcc_except_table"];
    for name in TABLES {
        let Some(place) = place_of(bytes, name) else {
            continue;
        };
        if let Some(table) = bytes.get_mut(place) {
            table.fill(0);
        }
    }
}

fn place_of(bytes: &[u8], name: &[u8]) -> Option<std::ops::Range<usize>> {
    let header = elf::FileHeader64::<object::Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, bytes).ok()?;
    let (_, section) = sections.section_by_name(endian, name)?;
    let (offset, size) = section.file_range(endian)?;
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(usize::try_from(size).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_dynamic_program_names_its_libraries() {
        let Ok(bytes) = std::fs::read("/bin/sh") else {
            println!("SKIPPED: no /bin/sh");
            return;
        };
        let object = parse(&bytes).unwrap();
        assert!(object.interpreter.unwrap().contains("ld-"));
        assert!(object.needed.iter().any(|name| name.starts_with("libc")));
        assert_eq!(object.machine.name(), std::env::consts::ARCH);
    }

    #[test]
    fn a_static_program_runs_without_its_sections() {
        let mut bytes = own();
        assert_eq!(parse(&bytes).unwrap().interpreter, None);
        assert!(section(&bytes, b".eh_frame").is_some_and(|table| table.iter().any(|b| *b != 0)));
        clear_unwinding(&mut bytes);
        assert!(section(&bytes, b".eh_frame").is_some_and(|table| table.iter().all(|b| *b == 0)));
        let stripped = without_sections(&bytes).unwrap();
        assert!(stripped.len() < bytes.len());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own");
        std::fs::write(&path, stripped).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        let listed = Command::new(&path).arg("--list").output().unwrap();
        assert!(listed.status.success());
        assert!(String::from_utf8_lossy(&listed.stdout).contains("without_its_sections"));
    }

    static START: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| own()[..4096].to_vec());

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut noise in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400, class in 0u8..4) {
            for (byte, magic) in noise.iter_mut().zip(b"\x7fELF") {
                *byte = *magic;
            }
            if let Some(byte) = noise.get_mut(4) {
                *byte = class;
            }
            parse(&noise);
            section(&noise, b".modinfo");
            without_sections(&noise);
            clear_unwinding(&mut noise);
            let mut bytes = START.clone();
            bytes[at.min(300)] ^= noise.last().copied().unwrap_or(1);
            parse(&bytes);
            section(&bytes, b".modinfo");
            without_sections(&bytes);
            clear_unwinding(&mut bytes);
        }
    }
}
