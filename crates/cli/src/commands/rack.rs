//! `wiglaf rack`: started by `wiglaf up`, not by people.

use std::time::{Duration, Instant};

use wiglaf_head::config::{Config, Layout};
use wiglaf_node::rack::VirtualFiles;
use wiglaf_node::rack::hold::{Hold, hold};
use wiglaf_node::root::PassThrough;

use crate::CommandResult;
use crate::daemons;
use crate::error::CommandError;
use crate::head::Head;
use crate::view_args::ViewArgs;

/// How long a head that has ended unasked stays away before another is started.
const HEAD_RESTART_PAUSE: Duration = Duration::from_millis(200);
/// The longest of the pauses, which double.
const LAST_RESTART_PAUSE: Duration = Duration::from_secs(3);
/// For how long it is tried: whatever keeps a head from starting may pass, and with the nodes
/// their tasks would end.
const HEAD_RESTART_PATIENCE: Duration = Duration::from_secs(60);

/// Hold virtual nodes for the head
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many
    #[arg(long)]
    nodes: u32,
    /// From this machine's disk, not through the view
    #[arg(long)]
    disk: bool,
    #[command(flatten)]
    view: ViewArgs,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let layout = Layout::own()?;
    let _ = rustix::process::setsid();
    daemons::write_pid_file(&layout.run.join("rack.pid"))?;
    let mut head = Head::connect_to(&layout)?;
    let cluster = daemons::status(&mut head)?.cluster;
    let mut hidden = vec![layout.run.clone(), layout.state.clone()];
    hidden.extend(Config::load(&layout.config_file())?.view.hidden);
    let config = Hold {
        tag: cluster,
        names: (1..=args.nodes)
            .map(|number| format!("n{number}"))
            .collect(),
        files: if args.disk {
            VirtualFiles::Disk
        } else {
            VirtualFiles::View(args.view.options(PassThrough::default()))
        },
        hidden,
    };
    // A head that dies is started again: nothing that runs depends on it.
    let start =
        move || -> Result<_, CommandError> { daemons::ensure_head(&layout)?.into_channel() };
    let reconnect = |_: &Hold| {
        let deadline = Instant::now() + HEAD_RESTART_PATIENCE;
        let mut pause = HEAD_RESTART_PAUSE;
        loop {
            std::thread::sleep(pause);
            match start() {
                Ok(head) => return Some(head),
                Err(_) if Instant::now() > deadline => {
                    eprintln!("wiglaf rack: no head can be started (see its log): the nodes end");
                    return None;
                }
                Err(_) => pause = (pause * 2).min(LAST_RESTART_PAUSE),
            }
        }
    };
    hold(config, head.into_channel()?, reconnect)?;
    Ok(0)
}
