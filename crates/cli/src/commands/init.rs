//! `wiglaf init`

use std::path::Path;

use wiglaf_head::config::{COMMENTED_CONFIG, Layout};
use wiglaf_head::daemon::initialise;
use wiglaf_head::store::Store;

use crate::CommandResult;
use crate::error::CommandError;
use crate::output;

/// Make a new cluster: its identifier, its certificate authority and a commented configuration
///
/// `wiglaf up` does this by itself for virtual nodes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do nothing if there is one
    #[arg(long)]
    if_missing: bool,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let layout = Layout::own()?;
    layout.make()?;
    let store = Store::open(&layout.database())?;
    if let Some(secrets) = store.secrets()? {
        if args.if_missing {
            return Ok(0);
        }
        return Err(CommandError::new(format!(
            "cluster {} exists already in {}",
            secrets.cluster,
            layout.state.display()
        ))
        .hint("start its head with `wiglaf head`, or virtual nodes with `wiglaf up -n 4`"));
    }
    let cluster = initialise(&store)?;
    let config = layout.config_file();
    if !config.exists() {
        write_config(&config)?;
    }
    output::print(&format!(
        "cluster {cluster} is made; its state is in {}\n\
         configuration: {}\n\
         next: `wiglaf up -n 4` for virtual nodes here; `wiglaf image build` and `wiglaf boot \
         enable` for\n      machines that start from the network; for others set `listen` there, start \
         `wiglaf head`,\n      and on them `wiglaf node agent --head ADDRESS`\n",
        layout.state.display(),
        config.display()
    ))?;
    Ok(0)
}

fn write_config(path: &Path) -> Result<(), CommandError> {
    std::fs::write(path, COMMENTED_CONFIG)
        .map_err(|error| CommandError::new(format!("{}: {error}", path.display())))
}
