//! The released binary stands alone (docs/adr/0001-static-gnu.md).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run;

const PT_INTERP: u32 = 3;
/// Where a 64-bit little-endian ELF header keeps what we read (elf(5)).
const E_PHOFF: usize = 32;
const E_PHENTSIZE: usize = 54;
const E_PHNUM: usize = 56;

pub(crate) fn check_static(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    match has_interpreter(&bytes) {
        None => bail!("{} is no 64-bit little-endian ELF file", path.display()),
        Some(true) => bail!(
            "{} needs a dynamic loader: it must be static to run as a node's /init",
            path.display()
        ),
        Some(false) => {
            println!("{} is static, {} kB", path.display(), bytes.len() / 1000);
            Ok(())
        }
    }
}

fn has_interpreter(elf: &[u8]) -> Option<bool> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = usize::try_from(u64::from_le_bytes(bytes_at(elf, E_PHOFF)?)).ok()?;
    let size = usize::from(u16::from_le_bytes(bytes_at(elf, E_PHENTSIZE)?));
    let count = usize::from(u16::from_le_bytes(bytes_at(elf, E_PHNUM)?));
    for index in 0..count {
        let at = headers.checked_add(index * size)?;
        if u32::from_le_bytes(bytes_at(elf, at)?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Builds the program as users get it, and says where it is.
/// The target's folder bears the host's name, as .cargo/config.toml names the target.
pub(crate) fn build() -> Result<PathBuf> {
    let mut command = run::cargo();
    command.args(["build", "--release", "--locked", "--package", "wiglaf"]);
    run::check(&mut command)?;
    command.args(["--quiet", "--message-format", "json"]);
    let messages = run::output(&mut command)?;
    let executable = cargo_metadata::Message::parse_stream(messages.as_bytes())
        .filter_map(|message| match message {
            Ok(cargo_metadata::Message::CompilerArtifact(artifact)) => artifact.executable,
            _ => None,
        })
        .last()
        .context("cargo named no executable of the package `wiglaf`")?;
    Ok(executable.into_std_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_found_where_there_is_one() {
        let mut elf = vec![0_u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[E_PHOFF] = 64;
        elf[E_PHENTSIZE] = 56;
        elf[E_PHNUM] = 1;
        assert_eq!(has_interpreter(&elf), Some(false));
        elf[64] = 3;
        assert_eq!(has_interpreter(&elf), Some(true));
        assert_eq!(has_interpreter(&elf[..65]), None);
        assert_eq!(has_interpreter(b"#!/bin/sh"), None);
    }
}
