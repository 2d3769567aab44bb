//! Options of nodes that show the head's files.

use wiglaf_node::root::{PassThrough, ViewOptions};
use wiglaf_view::Bounds;

const BYTES_PER_MIB: u64 = 1 << 20;
/// A program like a compiler uses some hundred.
const MIN_FILES: u64 = 1000;
/// A terabyte: surely a slip.
const MAX_MEMORY_MIB: u64 = 1 << 20;

#[derive(clap::Args)]
pub(crate) struct ViewArgs {
    /// Give tasks a /tmp of the node's own, in its memory, instead of the head's
    #[arg(long)]
    own_tmp: bool,
    /// Files that a node remembers for each user, besides those that its kernel does [default:
    /// 100000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(MIN_FILES..=u64::from(u32::MAX)))]
    view_files: Option<u64>,
    /// Memory that a node spends for each user on the contents of small files, besides what its
    /// kernel does [default: 64]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MAX_MEMORY_MIB))]
    view_memory: Option<u64>,
}

impl ViewArgs {
    pub(crate) fn has_own_tmp(&self) -> bool {
        self.own_tmp
    }

    pub(crate) fn options(&self, pass_through: PassThrough) -> ViewOptions {
        let usual = Bounds::default();
        let files = self.view_files.and_then(|files| files.try_into().ok());
        let memory = self.view_memory.map(|mib| mib * BYTES_PER_MIB);
        ViewOptions {
            own_tmp: self.own_tmp,
            pass_through,
            bounds: Bounds {
                files: files.unwrap_or(usual.files),
                content_bytes: memory.unwrap_or(usual.content_bytes),
            },
        }
    }

    /// The same for another command that takes them.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.own_tmp {
            all.push("--own-tmp".to_owned());
        }
        let numbers = [
            ("--view-files", self.view_files),
            ("--view-memory", self.view_memory),
        ];
        for (name, value) in numbers {
            all.extend(value.map(|value| format!("{name}={value}")));
        }
        all
    }
}
