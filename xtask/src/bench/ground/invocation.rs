//! How a benchmark is called, and where what it found goes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// All benchmarks are root's: they keep their processes in groups of their own.
pub(in crate::bench) fn need_root(needs: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("run it as root: it needs {needs}");
    }
    Ok(())
}

/// The program that is measured: the one that was named, or one that is built as users get it.
pub(in crate::bench) fn binary(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(path) => path.canonicalize().context("--binary"),
        None => crate::binary::build(),
    }
}

/// The command, with the flags that were given.
pub(in crate::bench) fn command_line(bench: &str, flags: &[(&str, bool)]) -> String {
    let mut text = format!("cargo xtask bench {bench}");
    for (flag, is_given) in flags {
        if *is_given {
            text.push(' ');
            text.push_str(flag);
        }
    }
    text
}

/// Puts a table where the documentation has it.
pub(in crate::bench) fn write_table(root: &Path, table: &str, text: &str) -> Result<()> {
    let path = root.join(table);
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    println!("written to {table}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_has_the_flags_that_were_given() {
        let flags = [("--quick", true), ("--only …", false), ("--peers", true)];
        let text = command_line("launch", &flags);
        assert_eq!(text, "cargo xtask bench launch --quick --peers");
    }
}
