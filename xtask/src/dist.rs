//! `cargo xtask dist`: what a user installs without compiling: a tarball and a Debian package.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::{binary, packages, run};

/// What the package's files are, from the workspace: path there, path on the user's machine.
const FILES: &[(&str, &str)] = &[
    ("README.md", "usr/share/doc/wiglaf/README.md"),
    ("CHANGELOG.md", "usr/share/doc/wiglaf/CHANGELOG.md"),
    ("LICENSE-MIT", "usr/share/doc/wiglaf/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/wiglaf/LICENSE-APACHE"),
    (
        "packaging/wiglaf.service",
        "lib/systemd/system/wiglaf.service",
    ),
];
/// Folders whose text goes along.
const FOLDERS: &[(&str, &str)] = &[("docs/guide", "usr/share/doc/wiglaf/guide")];
/// BProc's commands are the same program by other names.
const LINKS: &[&str] = &["bpsh", "bpstat", "bpctl", "bpcp"];
const PROGRAM: &str = "usr/bin/wiglaf";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Package this program rather than build one
    #[arg(long, value_name = "WIGLAF")]
    binary: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .context("can't read the workspace")?;
    let workspace = metadata.workspace_root.as_std_path();
    std::env::set_current_dir(workspace)?;
    packages::install(&["dpkg-dev", "xz-utils"])?;
    let binary = match &args.binary {
        Some(path) => path.canonicalize().context("--binary")?,
        None => binary::build()?,
    };
    let version = version(&metadata)?;
    let architecture = run::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let out = metadata.target_directory.as_std_path().join("dist");
    let stage = out.join("stage");
    let _ = fs::remove_dir_all(&out);
    let name = format!("wiglaf_{version}_{architecture}");

    let root = stage.join(&name);
    lay(workspace, &binary, &root)?;
    control(&root, &version, architecture)?;
    let package = out.join(format!("{name}.deb"));
    run::check(
        reproducible(Command::new("dpkg-deb"))
            .args(["--root-owner-group", "-Zxz", "--build"])
            .args([&root, &package]),
    )?;

    let folder = format!("wiglaf-{version}-linux-{}", std::env::consts::ARCH);
    let flat = stage.join(&folder);
    fs::create_dir_all(&flat)?;
    copy(&binary, &flat.join("wiglaf"), 0o755)?;
    for (from, to) in FILES {
        let name = Path::new(to).file_name().context("a file has a name")?;
        copy(&workspace.join(from), &flat.join(name), 0o644)?;
    }
    for (from, _) in FOLDERS {
        let name = Path::new(from).file_name().context("a folder has a name")?;
        copy_folder(&workspace.join(from), &flat.join(name))?;
    }
    let tarball = out.join(format!("{folder}.tar.xz"));
    run::check(
        Command::new("tar")
            .args([
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mtime=@0",
            ])
            .arg("-C")
            .arg(&stage)
            .arg("-cJf")
            .args([&tarball])
            .arg(&folder),
    )?;
    fs::remove_dir_all(&stage)?;
    check(&package, &out)?;
    for path in [&package, &tarball] {
        let size = path.metadata()?.len();
        println!("{}: {:.1} MB", path.display(), size as f64 / 1e6);
    }
    Ok(())
}

fn version(metadata: &Metadata) -> Result<String> {
    let package = metadata
        .packages
        .iter()
        .find(|package| *package.name == "wiglaf");
    Ok(package
        .context("there is no package wiglaf")?
        .version
        .to_string())
}

/// Times inside the archives are the Epoch, so that the same sources make the same bytes.
fn reproducible(mut command: Command) -> Command {
    command.env("SOURCE_DATE_EPOCH", "0");
    command
}

fn lay(workspace: &Path, binary: &Path, root: &Path) -> Result<()> {
    copy(binary, &root.join(PROGRAM), 0o755)?;
    for (from, to) in FILES {
        copy(&workspace.join(from), &root.join(to), 0o644)?;
    }
    for (from, to) in FOLDERS {
        copy_folder(&workspace.join(from), &root.join(to))?;
    }
    for link in LINKS {
        let link = root.join("usr/bin").join(link);
        std::os::unix::fs::symlink("wiglaf", &link)?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()), 0o644)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The program needs nothing to be installed; iPXE is what machines boot by, if any do.
fn control(root: &Path, version: &str, architecture: &str) -> Result<()> {
    let folder = root.join("DEBIAN");
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let text = format!(
        "Package: wiglaf\nVersion: {version}\nArchitecture: {architecture}\nSection: admin\n\
         Priority: optional\nMaintainer: The Wiglaf authors <wiglaf@localhost>\n\
         Recommends: ipxe\nSuggests: nftables, ieee-data\n\
         Description: turns a pile of Linux machines into one computer\n \
         Commands run on any node as if they ran here: same user, files, terminal and PID.\n \
         Nodes boot from the network into memory, or run an agent beside their own system.\n"
    );
    fs::write(folder.join("control"), text)?;
    // The unit is not enabled by itself: a head is made by somebody who wants one.
    let reload =
        "#!/bin/sh\nset -e\nif [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n";
    for name in ["postinst", "postrm"] {
        let path = folder.join(name);
        fs::write(&path, reload)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Unpacks the package and runs what is in it.
fn check(package: &Path, out: &Path) -> Result<()> {
    let root = out.join("check");
    run::check(Command::new("dpkg-deb").arg("-x").args([package, &root]))?;
    let said = run::output(Command::new(root.join(PROGRAM)).arg("--version"))?;
    let linked = fs::read_link(root.join("usr/bin/bpsh"))?;
    fs::remove_dir_all(&root)?;
    if !said.starts_with("wiglaf ") || linked != Path::new("wiglaf") {
        bail!("what was packaged does not run: it says {said:?}");
    }
    Ok(())
}
