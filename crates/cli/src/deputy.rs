//! What a deputy serves: the one place that knows both the deputy and the view.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::io::Errno;
use wiglaf_process::deputy::{self, AnswersView, Exports};
use wiglaf_view::{Export, ExportError};
use wiglaf_wire::stream::{ViewAnswer, ViewQuestion};

/// A deputy's life, once it has its user's rights.
pub(crate) fn live(control: OwnedFd, hidden: Vec<PathBuf>) -> ! {
    deputy::run_with(control, Box::new(WholeTree { hidden }))
}

/// The head's files, except what is the cluster's own.
#[derive(Debug)]
struct WholeTree {
    hidden: Vec<PathBuf>,
}

#[derive(Debug)]
struct Served(Export);

impl Exports for WholeTree {
    fn open(&self) -> Result<Box<dyn AnswersView>, Errno> {
        match Export::new(self.hidden.clone()) {
            Ok(export) => Ok(Box::new(Served(export))),
            Err(ExportError::Root(errno) | ExportError::Numbers(errno)) => Err(errno),
        }
    }
}

impl AnswersView for Served {
    fn answer(&mut self, question: ViewQuestion) -> ViewAnswer {
        self.0.answer(question)
    }
}
