//! `unsafe` lives in crates/linux only. The compiler's `forbid` covers libraries and
//! binaries; tests, build scripts and examples are read here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::Metadata;
use proc_macro2::{TokenStream, TokenTree};

use crate::run;

/// The one folder whose files may say `unsafe`.
const UNSAFE_FOLDER: &str = "crates/linux/";
const UNSAFE_PACKAGE: &str = "wiglaf-linux";

pub(crate) fn check(metadata: &Metadata) -> Result<()> {
    let root = metadata.workspace_root.as_std_path();
    let mut complaints = Vec::new();
    for package in metadata.workspace_packages() {
        if package.name.as_str() == UNSAFE_PACKAGE {
            continue;
        }
        let roots = package.targets.iter().filter(|t| t.is_lib() || t.is_bin());
        for target in roots {
            let text = read(target.src_path.as_std_path())?;
            if !forbids_unsafe(&text) {
                complaints.push(format!(
                    "{}: `#![forbid(unsafe_code)]` is missing",
                    target.src_path
                ));
            }
        }
    }
    let files = rust_files(root)?;
    for file in files.iter().filter(|file| !file.starts_with(UNSAFE_FOLDER)) {
        let path = root.join(file);
        // Listed by git, but removed and not yet committed so.
        if !path.exists() {
            continue;
        }
        for line in
            unsafe_lines(&read(&path)?).with_context(|| format!("can't read {file} as Rust"))?
        {
            complaints.push(format!(
                "{file}:{line}: `unsafe` belongs in {UNSAFE_FOLDER}"
            ));
        }
    }
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    println!(
        "{} Rust files, `unsafe` only in {UNSAFE_FOLDER}",
        files.len()
    );
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

/// What git tracks, and what it would if it were added.
fn rust_files(root: &Path) -> Result<Vec<String>> {
    // A fresh clone may belong to another user than the one who runs CI.
    let list = run::output(
        Command::new("git")
            .current_dir(root)
            .args(["-c", "safe.directory=*", "ls-files", "-z"])
            .args(["--cached", "--others", "--exclude-standard", "*.rs"]),
    )?;
    let files: Vec<String> = list.split_terminator('\0').map(str::to_owned).collect();
    if files.is_empty() {
        bail!("git lists no Rust file in {}", root.display());
    }
    Ok(files)
}

fn forbids_unsafe(text: &str) -> bool {
    text.lines()
        .any(|line| line.trim() == "#![forbid(unsafe_code)]")
}

/// The lines where the keyword stands; comments and strings may name it.
fn unsafe_lines(text: &str) -> Result<Vec<usize>> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut lines = Vec::new();
    let mut open = vec![tokens.into_iter()];
    while let Some(stream) = open.last_mut() {
        match stream.next() {
            None => {
                open.pop();
            }
            Some(TokenTree::Group(group)) => open.push(group.stream().into_iter()),
            Some(TokenTree::Ident(ident)) if ident == "unsafe" => {
                lines.push(ident.span().start().line);
            }
            Some(_) => {}
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_found_and_its_mention_is_not() {
        let text = "//! unsafe\n#![forbid(unsafe_code)]\n/* unsafe */ fn f() { \"unsafe\"; r#\"unsafe\"#; }\nfn g() {\n  x!(unsafe { h() })\n}\n#[unsafe(no_mangle)] fn i() {}";
        assert_eq!(unsafe_lines(text).ok(), Some(vec![5, 7]));
        assert!(unsafe_lines("fn f( {").is_err());
    }

    #[test]
    fn a_commented_forbid_is_none() {
        assert!(forbids_unsafe("//! x\n#![forbid(unsafe_code)]\n"));
        assert!(!forbids_unsafe("// #![forbid(unsafe_code)]\n"));
    }
}
