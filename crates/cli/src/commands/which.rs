//! What commands have in common that ask the agents of some nodes and show what each says.

use crate::CommandResult;
use crate::error::CommandError;

/// Who is asked, and how that is shown.
#[derive(clap::Args)]
pub(crate) struct Which {
    /// Only on these nodes, for example n1 or n[1-4]
    #[arg(short = 'w', long, value_name = "NODES")]
    pub(crate) nodes: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// It is an error if some node has said nothing, after what the others have said.
pub(crate) fn all_have_answered(silent: &[String]) -> CommandResult {
    match silent {
        [] => Ok(0),
        names => Err(
            CommandError::new(format!("no answer from {}", names.join(", ")))
                .hint("`wiglaf nodes` shows their states"),
        ),
    }
}
