//! The guide for a first node, as it stands.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::run;
use crate::vm::guest::{Firmware, Guest, Plan};
use crate::vm::guide::{Block, blocks, mac_in, word_after};
use crate::vm::head::{BOOT, CODE, Head, code_in, ended, said};
use crate::vm::stage::Stage;
use crate::vm::wire::{PORT, Wire};

const GUIDE: &str = "docs/guide/first-node.md";
const STEP: Duration = Duration::from_secs(300);
/// What would change the machine that the test runs on, or is there already.
const LEFT_OUT: &[&str] = &["apt", "apt-get", "cargo", "git", "cp", "install", "scp"];

pub(super) fn guide(stage: &Stage<'_>) -> Result<()> {
    let path = stage.workspace.join(GUIDE);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // The steps; what follows them is for later.
    let steps = text.split("\n## ").next().unwrap_or_default();
    let blocks = blocks(steps);
    // What a reader replaces we have by these very names.
    let port = word_after(&blocks, "--interface").unwrap_or_else(|| PORT.to_owned());
    let mac = mac_in(&text).with_context(|| format!("{GUIDE} names no machine"))?;
    let head = Head::bare(stage, Wire::lay(&port, None)?);
    let bin = stage.folder("bin")?;
    symlink(stage.binary, bin.join("wiglaf"))?;
    own_kernel(stage)?;
    let reader = Reader {
        head: &head,
        bin: &bin,
        mac: &mac,
    };
    let result = reader.follow(&blocks);
    run::output(Command::new("umount").args(["-l", "/boot", "/lib/modules"]))?;
    result
}

/// The kernel of this machine is none of Debian's, and may have no modules: for us, it is the
/// guests' kernel.
fn own_kernel(stage: &Stage<'_>) -> Result<()> {
    let release = run::output(Command::new("uname").arg("-r"))?;
    let release = release.trim();
    let modules = Path::new("/lib/modules");
    fs::create_dir_all(modules)?;
    for dir in ["/boot", "/lib/modules"] {
        run::output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", dir]))?;
    }
    fs::copy(&stage.kernel.image, format!("/boot/vmlinuz-{release}"))?;
    symlink(&stage.kernel.modules, modules.join(release))?;
    Ok(())
}

struct Reader<'a> {
    head: &'a Head<'a>,
    bin: &'a Path,
    mac: &'a str,
}

impl Reader<'_> {
    fn follow(&self, blocks: &[Block]) -> Result<()> {
        let mut guest: Option<Guest<'_>> = None;
        let mut count = 0;
        for block in blocks {
            if LEFT_OUT.contains(&block.program()) || !self.has(block.program()) {
                self.tell(block, "not run");
                continue;
            }
            let mut text = block.text.clone();
            if let Some(guest) = &guest {
                if text.contains("--unknown") || text.contains(self.mac) {
                    guest.wait_for("wiglaf node", BOOT)?;
                }
                if let Some(code) = code_in(&text) {
                    let line = guest.wait_for(CODE, BOOT)?;
                    let shown = code_in(&line).context("there is no code at the console")?;
                    text = text.replace(&code, &shown);
                }
            }
            self.tell(block, "run");
            self.act(block, &text)?;
            count += 1;
            if guest.is_none() && text.contains("boot enable") {
                // The spare PC is switched on.
                let plan = Plan::new("guest", Firmware::BiosIpxe);
                let plan = plan.mac(self.mac);
                guest = Some(self.head.stage.guest(&self.head.wire, plan)?);
            }
        }
        ensure!(guest.is_some(), "{GUIDE} enables no interface");
        self.head.wait_up(1)?;
        let stage = self.head.stage;
        stage.say(&format!(
            "all {count} blocks of commands did as they should"
        ));
        Ok(())
    }

    fn act(&self, block: &Block, text: &str) -> Result<()> {
        let is_head = text.lines().any(|line| {
            let line = line.split('#').next().unwrap_or_default().trim();
            line == "wiglaf head" || line.starts_with("systemctl ")
        });
        if is_head {
            return self.head.start();
        }
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bin.display());
        let mut command = self.head.shell(text, block.before.contains("user"));
        let output = ended(command.env("PATH", path).stdin(Stdio::null()), STEP)?;
        let output_text = said(&output);
        for line in output_text.lines() {
            println!("             {line}");
        }
        if !output.status.success() {
            bail!("{GUIDE}, line {}: {output_text}", block.line);
        }
        Ok(())
    }

    fn has(&self, program: &str) -> bool {
        let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        self.bin.join(program).exists()
            || dirs.iter().any(|dir| Path::new(dir).join(program).exists())
    }

    fn tell(&self, block: &Block, what: &str) {
        let stage = self.head.stage;
        stage.say(&format!(
            "line {}, {what}: {}",
            block.line,
            block.text.replace('\n', "; ")
        ));
    }
}
