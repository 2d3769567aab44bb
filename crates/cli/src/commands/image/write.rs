//! `wiglaf image write`

mod node;

use std::io::{IsTerminal, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde::Serialize;
use wiglaf_head::config::{Config, Layout};
use wiglaf_head::store::Store;
use wiglaf_image::{Device, Images, Medium, MediumError, MediumTools, Progress};
use wiglaf_wire::boot::BootRequest;
use wiglaf_wire::client::Reply;

use self::node::NodeDisk;
use super::{store_error, with_hint};
use crate::CommandResult;
use crate::commands::boot::ask;
use crate::commands::node::DEFAULT_PORT;
use crate::error::CommandError;
use crate::output;

/// Where machines find the boot service on the head.
const BOOT_PORT: u16 = 7495;

const EXAMPLES: &str = "\
Examples:
  wiglaf image write --iso medium.iso            for a CD, or for any program that writes sticks
  wiglaf image write --usb /dev/sdb              an empty stick
  wiglaf image write --usb /dev/sdb --overwrite  one that holds data, all of which is lost
  wiglaf image write --disk n1 --device /dev/sda  a disk of a node that is up: it starts from it";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Its ID, or its name: the newest one then; by default, what machines boot
    image: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Write even if the disk holds data: all of it is lost
    #[arg(long, conflicts_with = "iso")]
    overwrite: bool,
    /// Which disk of the node: its path, serial number or WWN
    #[arg(long, value_name = "DISK", conflicts_with_all = ["iso", "usb"])]
    device: Option<String>,
    /// Where the head is, for a wire whose DHCP server can't be told
    #[arg(long, value_name = "ADDRESS")]
    head: Option<Ipv4Addr>,
    /// Always start what is on the medium, even when the head has something newer
    #[arg(long)]
    fixed: bool,
    /// More words for the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    arguments: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// A file that is a CD and a disk at once
    #[arg(long, value_name = "FILE")]
    iso: Option<PathBuf>,
    /// A whole disk, for example a stick
    #[arg(long, value_name = "DEVICE")]
    usb: Option<PathBuf>,
    /// A disk of a node that is up, which starts from it the next time
    #[arg(long, value_name = "NODE", requires = "device")]
    disk: Option<String>,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome<'a> {
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    path: &'a Path,
    size: u64,
    arguments: &'a str,
    secure_boot: bool,
}

pub(super) fn run(layout: &Layout, images: &Images, args: &Args) -> CommandResult {
    // Who may not write to it need not wait.
    let disk = match (&args.place.disk, &args.device) {
        (Some(node), Some(device)) => Some(NodeDisk::plan(node, device, args.overwrite)?),
        _ => None,
    };
    let wanted = match &args.image {
        Some(image) => image.clone(),
        None => booted(layout)?,
    };
    let image = images.get(&wanted).map_err(store_error)?;
    let config = Config::load(&layout.config_file())?;
    let tools = MediumTools::find().map_err(|error| medium_error(error.into()))?;
    let medium = Medium {
        arguments: arguments(&image.id, &config.boot.arguments, args),
        image: &image,
    };
    let (path, size) = if let Some(path) = &args.place.iso {
        let size = medium.write(images, &tools, path).map_err(medium_error)?;
        (path.clone(), size)
    } else if let Some(path) = &args.place.usb {
        let mut device = Device::take(path).map_err(|error| medium_error(error.into()))?;
        if !args.overwrite {
            device
                .must_be_empty()
                .map_err(|error| medium_error(error.into()))?;
        }
        eprintln!(
            "wiglaf: writing {} to {} ({})",
            image.id,
            path.display(),
            device.describe()
        );
        let size = write_disk(&medium, images, &tools, &mut device)?;
        (path.clone(), size)
    } else if let Some(disk) = disk {
        disk.write(&medium, images, &tools)?
    } else {
        return Err(
            CommandError::new("nothing is named to write to").hint("--iso, --usb or --disk")
        );
    };
    let outcome = Outcome {
        image: &image.id,
        node: args.place.disk.as_deref(),
        path: &path,
        size,
        arguments: &medium.arguments,
        secure_boot: tools.is_signed(),
    };
    if args.json {
        output::json(&outcome)?;
        return Ok(0);
    }
    let whose = match &args.place.disk {
        Some(node) => format!(" of {node}"),
        None => String::new(),
    };
    output::print(&format!(
        "{}{whose} starts {}, {}\nmachines with a BIOS or UEFI start from it; with Secure Boot{}\n",
        path.display(),
        image.id,
        output::bytes(size),
        if tools.is_signed() {
            ", too"
        } else {
            " they don't: `apt install shim-signed grub-efi-amd64-signed` first"
        }
    ))?;
    Ok(0)
}

/// What machines boot for which nothing else was said.
fn booted(layout: &Layout) -> Result<String, CommandError> {
    let image = match ask(BootRequest::Status) {
        Ok(Reply::Boot(status)) => status.image,
        Ok(other) => return Err(CommandError::from_reply(other)),
        // Nobody else has the database open then.
        Err(_) if !layout.database().exists() => {
            let state = layout.state.display();
            return Err(CommandError::new(format!("there is no cluster in {state}"))
                .hint("`wiglaf init` makes one"));
        }
        Err(_) => {
            let store = Store::open(&layout.database())?;
            store.machines()?.image().map(str::to_owned)
        }
    };
    image.ok_or_else(|| {
        CommandError::new("machines boot no image yet").hint("`wiglaf image build` makes one")
    })
}

/// The words of the configuration come first, as when a machine starts from the network.
fn arguments(image: &str, configured: &str, args: &Args) -> String {
    let mut words: Vec<String> = [configured, args.arguments.as_deref().unwrap_or_default()]
        .iter()
        .flat_map(|text| text.split_whitespace())
        .map(str::to_owned)
        .collect();
    if !args.fixed {
        words.push(format!("wiglaf.medium={image}"));
    }
    if let Some(head) = args.head {
        let at = |port| SocketAddrV4::new(head, port);
        words.push(format!("wiglaf.head={}", at(DEFAULT_PORT)));
        words.push(format!("wiglaf.boot={}", at(BOOT_PORT)));
    }
    words.join(" ")
}

fn write_disk(
    medium: &Medium<'_>,
    images: &Images,
    tools: &MediumTools,
    device: &mut Device,
) -> Result<u64, CommandError> {
    let shows = std::io::stderr().is_terminal();
    let mut last = String::new();
    let size = medium.write_disk(images, tools, device, &mut |progress| {
        let (what, done, of) = match progress {
            Progress::Written(done, of) => ("written", done, of),
            Progress::Compared(done, of) => ("compared", done, of),
        };
        let line = format!("{what} {} %", done * 100 / of.max(1));
        if shows && line != last {
            eprint!("\r{line:<20}");
            let _ = std::io::stderr().flush();
            last = line;
        }
    });
    if shows {
        eprintln!();
    }
    size.map_err(medium_error)
}

fn medium_error(error: MediumError) -> CommandError {
    let hint = error.hint();
    with_hint(CommandError::from(error), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("write").chain(words.split(' '));
        Command::try_parse_from(words).map(|command| command.args)
    }

    #[test]
    fn a_medium_is_told_what_it_is_and_where_the_head_is() {
        let line = |words: &str| {
            let args = parse(words).unwrap();
            arguments("a-1", " console=ttyS0 ", &args)
        };
        assert_eq!(line("--iso x"), "console=ttyS0 wiglaf.medium=a-1");
        assert_eq!(line("--iso x --fixed"), "console=ttyS0");
        assert_eq!(
            line("--usb x --head 10.7.0.1 --arguments quiet"),
            "console=ttyS0 quiet wiglaf.medium=a-1 wiglaf.head=10.7.0.1:7494 \
             wiglaf.boot=10.7.0.1:7495"
        );
    }

    #[test]
    fn one_place_is_written_to() {
        assert!(parse("a-1").is_err());
        assert!(parse("--iso x --usb y").is_err());
        assert!(parse("--iso x --overwrite").is_err());
        assert!(parse("--usb x --overwrite").is_ok());
        assert!(parse("--disk n1 --device vda --overwrite").is_ok());
        assert!(parse("--disk n1").is_err());
        assert!(parse("--usb x --device vda").is_err());
        assert!(parse("--disk n1 --device vda --iso x").is_err());
    }
}
