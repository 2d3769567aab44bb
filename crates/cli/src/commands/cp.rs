//! `wiglaf cp`

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::CommandResult;
use crate::daemons::OWN_PROGRAM;
use crate::error::CommandError;

/// Copy files from and to a node's own directories
///
/// Nodes see this machine's files anyway; this is for what is the node's own, such as its /run or
/// /dev/shm. A path on a node is written NODE:PATH; the files are read and written as you.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  wiglaf cp data.bin n1:/dev/shm/data.bin\n  wiglaf cp -r n2:/run/result ./result"
)]
pub(crate) struct Args {
    /// Whole directories
    #[arg(short, long)]
    recursive: bool,
    /// PATH or NODE:PATH
    pub(crate) from: String,
    /// PATH or NODE:PATH
    pub(crate) to: String,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let (from_node, from) = split(&args.from);
    let (to_node, to) = split(&args.to);
    if from_node.is_none() && to_node.is_none() {
        return Err(CommandError::new("neither path is on a node")
            .hint("write the one on a node as NODE:PATH; for two local paths use cp"));
    }
    let (pack, unpack) = if args.recursive {
        // The directory's contents, so that TO is the copy whatever its name is.
        (
            vec!["tar", "-C", from, "-cf", "-", "."],
            vec!["tar", "-C", to, "-xpf", "-"],
        )
    } else {
        (
            vec!["cat", "--", from],
            vec!["dd", "bs=256K", "status=none"],
        )
    };
    let target = format!("of={to}");
    let mut unpack = unpack;
    if args.recursive {
        let made = stage(to_node, &["mkdir", "-p", "--", to])?.status()?;
        if !made.success() {
            return Ok(exit_code(made));
        }
    } else {
        unpack.push(&target);
    }
    let mut reader = stage(from_node, &pack)?
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let pipe = reader
        .stdout
        .take()
        .ok_or_else(|| CommandError::new("no pipe"))?;
    let written = stage(to_node, &unpack)?.stdin(pipe).status()?;
    let read = reader.wait()?;
    Ok(exit_code(read).max(exit_code(written)))
}

fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((node, path)) if !node.is_empty() && !node.contains('/') => (Some(node), path),
        _ => (None, text),
    }
}

/// A command here or on a node.
fn stage(node: Option<&str>, words: &[&str]) -> Result<Command, CommandError> {
    let mut command = match node {
        Some(node) => {
            let mut command = Command::new(OWN_PROGRAM);
            command.arg0("wiglaf");
            command.args(["run", "-w", node, "--", words[0]]);
            command
        }
        None => Command::new(words[0]),
    };
    command.args(&words[1..]);
    Ok(command)
}

fn exit_code(status: std::process::ExitStatus) -> u8 {
    u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_colon_after_a_slash_is_part_of_a_path() {
        assert_eq!(split("n1:/a"), (Some("n1"), "/a"));
        assert_eq!(split("./a:b"), (None, "./a:b"));
        assert_eq!(split("/a"), (None, "/a"));
    }
}
