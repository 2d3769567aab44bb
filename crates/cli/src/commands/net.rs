//! `wiglaf net`

use clap::Subcommand;
use serde::Serialize;
use wiglaf_wire::boot::{BootRequest, BootStatus};
use wiglaf_wire::client::Reply;

use crate::CommandResult;
use crate::commands::boot::{ask, default_route};
use crate::error::CommandError;
use crate::output;

/// The nodes' way to other networks
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Let nodes reach the outer network through the head; nobody reaches them from there
    #[command(subcommand)]
    Gateway(Gateway),
}

#[derive(Subcommand)]
enum Gateway {
    /// From now on, also after a restart of the head
    Enable {
        /// The interface that leads outward; that of the default route if left out
        #[arg(long, value_name = "NAME")]
        outer: Option<String>,
    },
    /// No longer
    Disable,
    /// Whether they may
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: Args) -> CommandResult {
    let Part::Gateway(action) = args.part;
    match action {
        Gateway::Enable { outer } => {
            let outer = outer.or_else(default_route).ok_or_else(|| {
                CommandError::new("this machine has no default route itself")
                    .hint("say which interface leads outward: --outer NAME")
            })?;
            status(BootRequest::Gateway { outer: Some(outer) })?;
            output::print(
                "nodes reach the outer network through the head; those that run learn of it when \
                 they start next\n",
            )?;
        }
        Gateway::Disable => {
            status(BootRequest::Gateway { outer: None })?;
        }
        Gateway::Status { json } => {
            let outer = status(BootRequest::Status)?.gateway;
            if json {
                #[derive(Serialize)]
                struct Row {
                    enabled: bool,
                    outer: Option<String>,
                }
                output::json(&Row {
                    enabled: outer.is_some(),
                    outer,
                })?;
            } else {
                let text = match outer {
                    Some(outer) => format!("nodes reach the outer network by {outer}\n"),
                    None => "nodes reach the head and each other only\n".to_owned(),
                };
                output::print(&text)?;
            }
        }
    }
    Ok(0)
}

fn status(request: BootRequest) -> Result<BootStatus, CommandError> {
    match ask(request)? {
        Reply::Boot(status) => Ok(status),
        other => Err(CommandError::from_reply(other)),
    }
}
