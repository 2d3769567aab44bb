//! The system packages that building and testing need.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run;

/// Debian's names. The tests use the tools as a user of Wiglaf would.
const PACKAGES: &[&str] = &[
    "acl",
    "atftp",
    "bind9-dnsutils",
    "bootpc",
    "curl",
    "dnsmasq-base",
    "e2fsprogs",
    "gcc",
    "git",
    "htop",
    "iproute2",
    "isc-dhcp-client",
    "less",
    "libc6-dev",
    "make",
    "procps",
    "python3",
    "squashfs-tools",
    "tftp-hpa",
    "udhcpc",
    "util-linux",
    "vim-tiny",
];

/// What is for machines of one kind only: boot media.
const X86_64_PACKAGES: &[&str] = &[
    "grub-common",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "mtools",
    "xorriso",
];

pub(crate) fn install_missing() -> Result<()> {
    let machines = if cfg!(target_arch = "x86_64") {
        X86_64_PACKAGES
    } else {
        &[]
    };
    let wanted = [PACKAGES, machines].concat();
    install(&wanted)?;
    println!("all {} packages are here", wanted.len());
    Ok(())
}

/// Installs those of the packages that are not here.
pub(crate) fn install(wanted: &[&str]) -> Result<()> {
    let Some(installed) = installed(wanted)? else {
        println!(
            "dpkg-query is not here, so the packages are taken for granted: {}",
            wanted.join(" ")
        );
        return Ok(());
    };
    let missing: Vec<&str> = missing(wanted, &installed);
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!(
        "apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    let Some(prefix) = root_prefix()? else {
        bail!(
            "packages are missing, and neither are we root nor does `sudo -n` work; as root run: {install}"
        );
    };
    apt(prefix, &["update"])?;
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(&missing);
    apt(prefix, &args)
}

/// Fetches the machine's package lists anew.
pub(crate) fn update() -> Result<()> {
    let Some(prefix) = root_prefix()? else {
        bail!("package lists are missing or old; as root run: apt-get update");
    };
    apt(prefix, &["update"])
}

fn apt(prefix: &[&str], args: &[&str]) -> Result<()> {
    let mut words = prefix.to_vec();
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
    words.extend(args);
    run::check(Command::new(words[0]).args(&words[1..]))
}

/// What dpkg says of these packages, one `name status` a line; `None` without dpkg.
fn installed(wanted: &[&str]) -> Result<Option<String>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .stdin(Stdio::null())
        .output();
    match output {
        // It also fails when it does not know one of the names; what it knows it prints.
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("can't run dpkg-query"),
    }
}

fn missing<'a>(wanted: &[&'a str], installed: &str) -> Vec<&'a str> {
    let is_installed = |name: &&str| {
        installed
            .lines()
            .any(|line| line.split_once(' ') == Some((name, "installed")))
    };
    wanted
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect()
}

/// The words before a command that root must run, if we can be root.
fn root_prefix() -> Result<Option<&'static [&'static str]>> {
    if run::output(Command::new("id").arg("-u"))?.trim() == "0" {
        return Ok(Some(&[]));
    }
    let sudo = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    Ok(matches!(sudo, Ok(status) if status.success()).then_some(&["sudo", "-n"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dpkg_calls_installed_is_there() {
        let installed = "gcc installed\nhtop config-files\ntmux not-installed\ngcc-12 installed\n";
        assert_eq!(
            missing(&["gcc", "htop", "tmux", "vim-tiny"], installed),
            ["htop", "tmux", "vim-tiny"]
        );
        assert!(missing(&["gcc"], installed).is_empty());
    }
}
