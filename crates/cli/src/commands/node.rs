//! `wiglaf node …`

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::Subcommand;
use wiglaf_link::JoinToken;
use wiglaf_node::root::{PassThrough, ViewOptions};
use wiglaf_wire::boot::BootRequest;
use wiglaf_wire::client::{NodeChange, NodeState, Reply, Request};

use crate::CommandResult;
use crate::commands::boot::ask;
use crate::commands::{machine, nodes};
use crate::error::CommandError;
use crate::head::Head;
use crate::output;
use crate::view_args::ViewArgs;

/// Where a head listens unless its configuration says otherwise: an unassigned port.
pub(crate) const DEFAULT_PORT: u16 = 7494;

/// Show or change nodes; make this machine one
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show one node
    Show {
        /// Its name
        node: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Change nodes: who may run there, how much, and their state
    Set {
        /// Node set, for example n[1-4]
        nodes: String,
        /// up, drain, unavailable or error
        #[arg(long, value_parser = parse_state)]
        state: Option<NodeState>,
        /// Owner, by name or number
        #[arg(long)]
        user: Option<String>,
        /// Group, by name or number
        #[arg(long)]
        group: Option<String>,
        /// Who may run there: execute bits of owner, group and others, for example 110
        #[arg(long, value_parser = parse_mode)]
        mode: Option<u32>,
        /// Tasks that it takes at once
        #[arg(long)]
        slots: Option<u32>,
        /// Put them into a group, which node sets call @NAME
        #[arg(long, value_name = "NAME")]
        into: Option<String>,
        /// Take them out of a group
        #[arg(long, value_name = "NAME")]
        out_of: Option<String>,
    },
    /// Let nodes finish what they have, and give them nothing new
    Drain {
        /// Node set
        nodes: String,
    },
    /// Give drained nodes work again
    Resume {
        /// Node set
        nodes: String,
    },
    /// Print a token with which other machines can join
    Token {
        /// How long it is valid, in minutes
        #[arg(long, default_value_t = 60, value_name = "MINUTES")]
        valid: u64,
    },
    #[command(flatten)]
    Machine(machine::Action),
    /// Make this machine a node of a head on another machine, until ended
    Agent {
        /// The head: its address, and its port if that is not 7494
        #[arg(long, value_name = "HOST[:PORT]")]
        head: String,
        /// A file with a token from `wiglaf node token`; asked for if left out
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// The node's name
        #[arg(long)]
        name: Option<String>,
        /// Show this machine's own directory there instead of the head's, for file systems that
        /// both mount, such as NFS; may be given several times
        #[arg(long, value_name = "PATH")]
        pass_through: Vec<PathBuf>,
        /// Keep what it reads of the head's files in this directory, on a disk of this machine, so
        /// that it need not be sent again after a restart
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
        #[command(flatten)]
        view: ViewArgs,
    },
}

fn parse_state(text: &str) -> Result<NodeState, String> {
    NodeState::from_name(text).ok_or_else(|| "one of up, drain, unavailable, error".into())
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode & !0o111 == 0 => Ok(mode),
        _ => Err("three digits of 0 or 1: owner, group, others".into()),
    }
}

pub(crate) fn run(args: Args) -> CommandResult {
    match args.action {
        Action::Show { node, json } => show(&node, json),
        Action::Set {
            nodes,
            state,
            user,
            group,
            mode,
            slots,
            into,
            out_of,
        } => {
            let groups = [(into, true), (out_of, false)];
            let groups: Vec<_> = groups
                .into_iter()
                .filter_map(|(group, is_in)| Some((group?, is_in)))
                .collect();
            let mut changes = Vec::new();
            changes.extend(state.map(NodeChange::State));
            if let Some(user) = user {
                changes.push(NodeChange::Owner(id(&user, "/etc/passwd", "user")?));
            }
            if let Some(group) = group {
                changes.push(NodeChange::Group(id(&group, "/etc/group", "group")?));
            }
            changes.extend(mode.map(NodeChange::Mode));
            changes.extend(slots.map(NodeChange::Slots));
            if changes.is_empty() && groups.is_empty() {
                return Err(CommandError::new("nothing to change was given")
                    .hint("for example: wiglaf node set n1 --slots 8"));
            }
            changes
                .into_iter()
                .try_for_each(|change| set(&nodes, change))?;
            for (group, is_in) in groups {
                let nodes = nodes.clone();
                ask(BootRequest::Group {
                    nodes,
                    group,
                    is_in,
                })?;
            }
            Ok(0)
        }
        Action::Drain { nodes } => set(&nodes, NodeChange::Drain).map(|()| 0),
        Action::Resume { nodes } => set(&nodes, NodeChange::Resume).map(|()| 0),
        Action::Machine(action) => machine::run(action),
        Action::Token { valid } => {
            let request = Request::MakeToken {
                valid_ms: valid.saturating_mul(60_000),
            };
            match Head::connect()?.ask(&request)? {
                Reply::Token(token) => output::print(&format!("{token}\n"))?,
                other => return Err(CommandError::from_reply(other)),
            }
            Ok(0)
        }
        Action::Agent {
            head,
            token_file,
            name,
            pass_through,
            keep,
            view,
        } => {
            let pass_through = PassThrough::new(pass_through, view.has_own_tmp())
                .map_err(|error| CommandError::new(error.to_string()))?;
            let view = view.options(pass_through);
            agent(&head, token_file, name, view, keep)
        }
    }
}

fn id(name: &str, file: &str, what: &str) -> Result<u32, CommandError> {
    output::id_of(name, file).ok_or_else(|| {
        CommandError::new(format!("there is no {what} {name}")).hint("give a name or a number")
    })
}

pub(crate) fn set(nodes: &str, change: NodeChange) -> Result<(), CommandError> {
    match Head::connect()?.ask(&Request::SetNodes {
        nodes: nodes.to_owned(),
        change,
    })? {
        Reply::Done => Ok(()),
        other => Err(CommandError::from_reply(other)),
    }
}

fn show(name: &str, json: bool) -> CommandResult {
    let list = nodes::list(None)?;
    let node = list.iter().find(|node| node.name == name).ok_or_else(|| {
        CommandError::new(format!("there is no node {name}")).hint("`wiglaf nodes` shows them")
    })?;
    if json {
        output::json(&nodes::row(node))?;
        return Ok(0);
    }
    let kind = if node.is_virtual {
        "virtual, on this machine"
    } else {
        "a machine of its own"
    };
    let text = format!(
        "{name}: {} ({kind})\n  number   {}\n  owner    {}:{} mode {:03o}\n  tasks    {} of {} \
         slots\n  load     {}.{:02}\n  memory   {} free of {}\n  machine  {} cpus, {}, Linux {}\n  \
         address  {}\n",
        node.state.name(),
        node.id,
        output::user(node.uid),
        output::group(node.gid),
        node.mode,
        node.tasks,
        node.slots,
        node.load_centi / 100,
        node.load_centi % 100,
        output::size(node.available_kib),
        output::size(node.machine.memory_kib),
        node.machine.cpus,
        node.machine.arch,
        node.machine.kernel,
        node.machine.address,
    );
    output::print(&text)?;
    Ok(0)
}

fn agent(
    head: &str,
    token_file: Option<PathBuf>,
    name: Option<String>,
    view: ViewOptions,
    keep: Option<PathBuf>,
) -> CommandResult {
    let keep = keep.map(|place| {
        std::fs::canonicalize(&place)
            .and_then(|place| std::fs::read_dir(&place).map(|_| place))
            .map_err(|error| {
                CommandError::new(format!("{}: {error}", place.display()))
                    .hint("--keep takes a directory that is there")
            })
    });
    let keep = keep.transpose()?;
    let address = resolve(head)?;
    let text = match &token_file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            CommandError::new(format!("{}: {error}", path.display()))
                .hint("`wiglaf node token > FILE` on the head makes it; copy it here")
        })?,
        None => {
            eprint!("Token (from `wiglaf node token` on the head): ");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            line
        }
    };
    let token: JoinToken = text.parse()?;
    wiglaf_node::agent::run_beside(address, token, name, view, keep)?;
    Ok(0)
}

/// A static program has no name service: numbers, or a name in /etc/hosts.
fn resolve(text: &str) -> Result<SocketAddr, CommandError> {
    let (host, port) = match text.parse::<SocketAddr>() {
        Ok(address) => return Ok(address),
        Err(_) => match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => {
                (host, port.parse().map_err(|_| bad(text))?)
            }
            _ => (text, DEFAULT_PORT),
        },
    };
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let listed = hosts.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let address = words.next()?;
        words.any(|name| name == host).then(|| address.to_owned())
    });
    let address = listed.unwrap_or_else(|| host.to_owned());
    (address.as_str(), port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next())
        .ok_or_else(|| bad(text))
}

fn bad(text: &str) -> CommandError {
    CommandError::new(format!("the head's address {text} is not known"))
        .hint("give its IP address, or put its name into /etc/hosts")
}
