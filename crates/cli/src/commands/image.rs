//! `wiglaf image`

mod write;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use wiglaf_head::config::Layout;
use wiglaf_head::store::Store;
use wiglaf_image::{BuildError, Compression, Images, KernelChoice, Manifest, Recipe, StoreError};
use wiglaf_image::{ByCard, System, SystemChoice};
use wiglaf_link::Authority;
use wiglaf_wire::boot::{BootRequest, Whom};
use wiglaf_wire::client::{Reply, Request};

use crate::CommandResult;
use crate::commands::boot::ask;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

const EXAMPLES: &str = "\
Examples:
  wiglaf image build                        from the kernel that runs here
  wiglaf image build --kernel 6.1.0-50-cloud-amd64
  wiglaf image build --include python3 --include /opt/model --name model
  wiglaf image build --rootfs /srv/bookworm --name full
  wiglaf image use model --nodes n[1-4]     from their next start on
  wiglaf image use --unset --nodes n[1-4]   what their group or all others boot, again
  wiglaf image list
  wiglaf image show default                 the newest of that name, and what is in it";

/// What machines boot that start from the network: a kernel, and an initramfs with wiglaf in it
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build an image; the same inputs give the same bytes, and so the same ID
    ///
    /// Network drivers, the firmware that they ask for and what the view needs are found by
    /// themselves. Nothing of the head's system is in it but what --include names: nodes see the
    /// head's files when they have joined.
    Build(BuildArgs),
    /// List the images
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is in an image
    Show {
        /// Its ID, or its name: the newest one then
        image: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have nodes boot this image from their next start on
    #[command(group = clap::ArgGroup::new("whom").args(["nodes", "group"]))]
    Use {
        /// Its ID, or its name: the newest one then
        #[arg(required_unless_present = "unset")]
        image: Option<String>,
        /// Take back what was said of these nodes or this group: they boot what others do
        #[arg(long, conflicts_with = "image", requires = "whom")]
        unset: bool,
        /// Only these nodes, as a node set; otherwise all for which nothing else was said
        #[arg(long, value_name = "NODES")]
        nodes: Option<String>,
        /// Only the nodes of this group, and those that come into it later
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Write a stick, a CD or a disk that starts machines which can't start from the network
    ///
    /// It finds the head by itself and goes on as if started from the network: when the head has a
    /// newer image for the machine, that is fetched and started. So what is on the medium need not
    /// be renewed, and is never outdated.
    Write(write::Args),
    /// Remove images that no machine boots
    Remove {
        /// Their IDs
        #[arg(required = true, value_name = "ID")]
        images: Vec<String>,
        /// Even if nobody knows whether some machine boots them
        #[arg(long)]
        force: bool,
    },
}

#[derive(clap::Args)]
struct BuildArgs {
    /// What it is called
    #[arg(long, default_value = "default")]
    name: String,
    /// An installed kernel's version, or a kernel's file; by default, the one that runs here
    #[arg(long, value_name = "VERSION|FILE")]
    kernel: Option<PathBuf>,
    /// Where that kernel's modules are, if they are not in /lib/modules
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// A program, with all that it needs, or a directory: for work without the view
    #[arg(long, value_name = "PROGRAM|DIR")]
    include: Vec<PathBuf>,
    /// A kernel module that is loaded in any case, with those that it depends on
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Where firmware is, before /lib/firmware
    #[arg(long, value_name = "DIR")]
    firmware: Vec<PathBuf>,
    /// With what nodes need to use their own disks
    #[arg(long)]
    disk: bool,
    /// A full system that nodes boot: the directory or the tar archive of its root
    ///
    /// It is in the nodes' memory, and what they change in it is gone at their next start. Tasks
    /// see the head's files all the same, unless --files says otherwise. If the system has one
    /// kernel, and --kernel names no other, that is what nodes boot.
    #[arg(long, value_name = "DIR|TAR")]
    rootfs: Option<PathBuf>,
    /// The program of the full system that becomes its PID 1; by default, its /sbin/init
    #[arg(long, value_name = "PATH", requires = "rootfs")]
    init: Option<PathBuf>,
    /// Which files tasks see: the head's, or the full system's own
    #[arg(
        long,
        value_name = "WHOSE",
        value_enum,
        default_value = "head",
        requires = "rootfs"
    )]
    files: Whose,
    /// How the initramfs is compressed: xz is the smallest, zstd the quickest to unpack
    #[arg(long, value_name = "METHOD", value_enum)]
    compress: Option<Method>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whose {
    Head,
    Node,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Xz,
    Zstd,
    None,
}

/// An image in the list.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Nothing, if the head does not answer.
    in_use: Option<bool>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let layout = Layout::reachable()?;
    let images = Images::of(&layout.state);
    match args.action {
        Action::Build(args) => build(&layout, &images, args),
        Action::List { json } => list(&images, json),
        Action::Show { image, json } => show(&images, &image, json),
        Action::Use {
            image,
            unset: _,
            nodes,
            group,
        } => {
            let image = image.map(|image| images.get(&image).map(|found| found.id));
            let image = image.transpose().map_err(store_error)?;
            let whom = match (nodes, group) {
                (Some(nodes), _) => Whom::Nodes(nodes),
                (None, Some(group)) => Whom::Group(group),
                (None, None) => Whom::All,
            };
            ask(BootRequest::UseImage { image, whom }).map(|_| 0)
        }
        Action::Write(args) => write::run(&layout, &images, &args),
        Action::Remove { images: ids, force } => remove(&images, &ids, force),
    }
}

fn build(layout: &Layout, images: &Images, args: BuildArgs) -> CommandResult {
    let recipe = Recipe {
        name: args.name,
        kernel: KernelChoice {
            kernel: args.kernel,
            modules: args.modules,
        },
        // Even if its file has been replaced meanwhile.
        init: "/proc/self/exe".into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        authority: authority(layout)?,
        include: args.include,
        modules: args.module,
        firmware: args.firmware,
        disk: args.disk,
        system: args.rootfs.map(|rootfs| SystemChoice {
            rootfs,
            init: args.init,
            has_tasks: args.files == Whose::Node,
        }),
        compression: args.compress.map(|method| match method {
            Method::Xz => Compression::Xz,
            Method::Zstd => Compression::Zstd,
            Method::None => Compression::None,
        }),
    };
    let built = recipe
        .build(images, output::unix_now(), &mut |step| {
            eprintln!("wiglaf: {step}")
        })
        .map_err(build_error)?;
    for warning in &built.warnings {
        eprintln!("wiglaf: {warning}");
    }
    let manifest = &built.manifest;
    let is_used = succeed(layout, manifest)?;
    if args.json {
        output::json(manifest)?;
        return Ok(0);
    }
    let id = &manifest.id;
    output::print(&format!(
        "{id}{}\nkernel {} of {}, initramfs of {}{}{}\n",
        if built.is_new {
            " is built"
        } else {
            " is there already: nothing has changed"
        },
        manifest.kernel_version,
        output::bytes(manifest.kernel.size),
        output::bytes(manifest.initramfs.size),
        match &manifest.by_card {
            Some(cards) => format!(", of which most machines fetch {}", between(cards)),
            None => String::new(),
        },
        match &manifest.system {
            Some(system) => format!(", system of {}", output::bytes(system.file.size)),
            None => String::new(),
        },
    ))?;
    let next = if is_used {
        "nodes boot it from their next start on\n".to_owned()
    } else {
        format!("next: `wiglaf image use {id} --nodes NODES`, or for all without --nodes\n")
    };
    output::print(&next)?;
    Ok(0)
}

/// An image takes the place of the one of the same name that nodes boot now, or of none: whoever
/// has a new kernel wants it to be booted. Whether it is the one that nodes boot.
fn succeed(layout: &Layout, manifest: &Manifest) -> Result<bool, CommandError> {
    let takes_over = |now: Option<&str>| {
        now.is_none_or(|now| {
            now.rsplit_once('-')
                .is_some_and(|(name, _)| name == manifest.name)
        })
    };
    let image = manifest.id.clone();
    let Ok(mut head) = Head::connect_to(layout) else {
        // Nobody else has the database open then.
        let store = Store::open(&layout.database())?;
        let takes_over = takes_over(store.machines()?.image());
        if takes_over {
            store.put_image(&image)?;
        }
        return Ok(takes_over);
    };
    let now = match head.ask(&Request::Boot(BootRequest::Status))? {
        Reply::Boot(status) => status.image,
        other => return Err(CommandError::from_reply(other)),
    };
    let takes_over = takes_over(now.as_deref());
    if takes_over {
        ask(BootRequest::UseImage {
            image: Some(image),
            whom: Whom::All,
        })?;
    }
    Ok(takes_over)
}

/// The hash that nodes know the head by.
fn authority(layout: &Layout) -> Result<[u8; 32], CommandError> {
    let none = || {
        CommandError::new(format!("there is no cluster in {}", layout.state.display()))
            .hint("`wiglaf init` makes one; nodes find it by what the image holds of it")
    };
    match layout.database().try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(none()),
        Err(error) => {
            let path = layout.state.display();
            return Err(CommandError::new(format!("{path}: {error}"))
                .hint("images are built by who made the cluster, mostly root"));
        }
    }
    let secrets = Store::open(&layout.database())?.secrets()?;
    let secrets = secrets.ok_or_else(none)?;
    let authority = Authority::load(secrets.certificate, secrets.key)?;
    Ok(authority.fingerprint())
}

fn list(images: &Images, json: bool) -> CommandResult {
    let all = images.list().map_err(store_error)?;
    let used = used();
    if json {
        let listed: Vec<_> = all
            .iter()
            .map(|manifest| Listed {
                manifest,
                in_use: used.as_ref().map(|used| used.contains(&manifest.id)),
            })
            .collect();
        output::json(&listed)?;
        return Ok(0);
    }
    let columns = [
        Column("IMAGE", Align::Left),
        Column("KERNEL", Align::Left),
        Column("SIZE", Align::Right),
        Column("FETCHED", Align::Right),
        Column("MADE", Align::Left),
        Column("IN USE", Align::Left),
    ];
    let rows: Vec<_> = all
        .iter()
        .map(|image| {
            let is_used = used.as_ref().map(|used| used.contains(&image.id));
            vec![
                image.id.clone(),
                image.kernel_version.clone(),
                output::bytes(image.size()),
                output::bytes(image.fetched()),
                made(image),
                match is_used {
                    Some(true) => "yes".into(),
                    Some(false) => String::new(),
                    None => "?".into(),
                },
            ]
        })
        .collect();
    output::table(&columns, &rows)?;
    Ok(0)
}

fn show(images: &Images, wanted: &str, json: bool) -> CommandResult {
    let image = images.get(wanted).map_err(store_error)?;
    if json {
        output::json(&image)?;
        return Ok(0);
    }
    let modules = |always: bool| {
        let chosen = image
            .modules
            .iter()
            .filter(|module| module.always == always);
        let names: Vec<_> = chosen.map(|module| module.name.as_str()).collect();
        words(&names)
    };
    let text = |list: &[String]| words(&list.iter().map(String::as_str).collect::<Vec<_>>());
    let lines = [
        ("image", image.id.clone()),
        ("made", format!("{}, wiglaf {}", made(&image), image.wiglaf)),
        (
            "kernel",
            format!(
                "{} for {}, {}",
                image.kernel_version,
                image.arch,
                output::bytes(image.kernel.size)
            ),
        ),
        ("", format!("sha256 {}", image.kernel.sha256)),
        (
            "initramfs",
            format!(
                "{} by {}, {} unpacked",
                output::bytes(image.initramfs.size),
                image.compression.name(),
                output::bytes(image.unpacked)
            ),
        ),
        ("", format!("sha256 {}", image.initramfs.sha256)),
        (
            "by card",
            match &image.by_card {
                Some(cards) => format!(
                    "{} of it for machines with one of {} network cards",
                    between(cards),
                    cards.cards
                ),
                None => String::new(),
            },
        ),
        (
            "system",
            image.system.as_ref().map(of_system).unwrap_or_default(),
        ),
        (
            "",
            match &image.system {
                Some(system) => format!("sha256 {}", system.file.sha256),
                None => String::new(),
            },
        ),
        ("trusts", format!("sha256 {}", image.authority)),
        ("modules", modules(true)),
        ("if there", modules(false)),
        ("firmware", text(&image.firmware)),
        ("lacks", text(&image.missing_firmware)),
        ("included", text(&image.included)),
    ];
    let lines = lines.into_iter().filter(|(_, value)| !value.is_empty());
    let lines: String = lines
        .map(|(name, value)| format!("{name:<10}{value}\n"))
        .collect();
    output::print(&lines)?;
    Ok(0)
}

/// What machines fetch whose card is known.
fn between(cards: &ByCard) -> String {
    let (smallest, largest) = (output::bytes(cards.smallest), output::bytes(cards.largest));
    if smallest == largest {
        smallest
    } else {
        format!("{smallest} to {largest}")
    }
}

fn of_system(system: &System) -> String {
    let init = match &system.init {
        Some(init) => format!("init is {init}"),
        None => "without an init".into(),
    };
    let tasks = if system.has_tasks {
        "tasks see it"
    } else {
        "tasks see the head's files"
    };
    format!(
        "{} from {}, {init}, {tasks}",
        output::bytes(system.file.size),
        system.rootfs
    )
}

fn remove(images: &Images, ids: &[String], force: bool) -> CommandResult {
    let used = used();
    if used.is_none() && !force {
        return Err(CommandError::new(
            "the head does not answer, so that nobody knows what machines boot",
        )
        .hint("start it with `wiglaf head`, or remove them in any case by --force"));
    }
    for id in ids {
        if used.as_ref().is_some_and(|used| used.contains(id)) {
            return Err(CommandError::new(format!("{id} is what machines boot"))
                .hint("choose another one first: `wiglaf image use ID`"));
        }
        images.remove(id).map_err(store_error)?;
    }
    Ok(0)
}

/// Images that some machine boots; none, if the head does not answer.
fn used() -> Option<BTreeSet<String>> {
    let mut used = BTreeSet::new();
    match ask(BootRequest::Status) {
        Ok(Reply::Boot(status)) => {
            used.extend(status.image);
            // Nodes that come into the group later boot it.
            used.extend(status.group_images.into_iter().map(|(_, image)| image));
        }
        _ => return None,
    }
    match ask(BootRequest::Machines) {
        Ok(Reply::Machines(machines)) => {
            used.extend(machines.into_iter().filter_map(|machine| machine.image));
        }
        _ => return None,
    }
    Some(used)
}

fn made(image: &Manifest) -> String {
    output::ago(image.made_s)
}

fn build_error(error: BuildError) -> CommandError {
    let hint = error.hint();
    with_hint(CommandError::from(error), hint)
}

fn store_error(error: StoreError) -> CommandError {
    let hint = match &error {
        StoreError::Disk { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Some("images belong to who made the cluster: use the same user, mostly root".to_owned())
        }
        _ => None,
    };
    with_hint(CommandError::from(error), hint)
}

fn with_hint(error: CommandError, hint: Option<String>) -> CommandError {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// In lines that fit a terminal, under each other.
fn words(names: &[&str]) -> String {
    const WIDTH: usize = 80;
    let mut lines = vec![String::new()];
    for name in names {
        let line = lines
            .last_mut()
            .filter(|line| line.len() + name.len() < WIDTH);
        match line {
            Some(line) if line.is_empty() => line.push_str(name),
            Some(line) => {
                line.push(' ');
                line.push_str(name);
            }
            None => lines.push((*name).to_owned()),
        }
    }
    lines.join("\n          ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_broken() {
        let names = vec!["module_name"; 10];
        let text = words(&names);
        assert_eq!(text.lines().count(), 2);
        assert_eq!(text.split_whitespace().count(), 10);
        assert_eq!(words(&[]), "");
    }
}
