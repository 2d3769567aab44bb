//! What a deputy serves: the one place that knows both the deputy and the view.

use std::fmt;
use std::io::Write as _;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::io::Errno;
use wiglaf_process::deputy::{self, Files, LinkId, NoFiles, Told};
use wiglaf_process::keeper::{Marks, Outfit};
use wiglaf_view::watch::{self, Watch};
use wiglaf_view::{Export, export};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::Question;

/// A deputy's life, once it has its user's rights.
pub(crate) fn live(outfit: Outfit) -> ! {
    let watch = outfit.marks.and_then(|marks| {
        Watch::new(watch_with(marks))
            .inspect_err(|errno| log(&format!("it watches no files: {errno}")))
            .ok()
    });
    let files: Box<dyn Files> = match Export::new(outfit.hidden, watch) {
        Ok(export) => Box::new(Served {
            export,
            told: Vec::new(),
        }),
        Err(error) => {
            log(&error.to_string());
            Box::new(NoFiles(Errno::IO))
        }
    };
    deputy::run_with(outfit.control, files)
}

/// To the keeper's log.
fn log(line: &str) {
    let uid = wiglaf_linux::creds::fsuid();
    let _ = writeln!(std::io::stderr(), "wiglaf: deputy of uid {uid}: {line}");
}

fn watch_with(marks: Marks) -> watch::Marks {
    let Marks {
        group,
        mounts,
        keeper,
        file_systems,
    } = marks;
    watch::Marks {
        group,
        mounts,
        keeper,
        file_systems,
    }
}

/// The head's files, except what is the cluster's own.
struct Served {
    export: Export,
    /// Kept for its room.
    told: Vec<(export::LinkId, export::Told)>,
}

impl fmt::Debug for Served {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Served").finish_non_exhaustive()
    }
}

impl Served {
    fn pass_on(&mut self, out: &mut Vec<(LinkId, Told)>) {
        out.extend(self.told.drain(..).map(|(link, told)| {
            let told = match told {
                export::Told::Answer(answer) => Told::Answer(answer),
                export::Told::Changes(changes) => Told::Changes(changes),
                export::Told::Gifts(gifts) => Told::Gifts(gifts),
            };
            (LinkId(link.0), told)
        }));
    }
}

impl Files for Served {
    fn question(&mut self, link: LinkId, question: Question, out: &mut Vec<(LinkId, Told)>) {
        let link = export::LinkId(link.0);
        self.export.question(link, question, &mut self.told);
        self.pass_on(out);
    }

    fn settle(&mut self, out: &mut Vec<(LinkId, Told)>) {
        self.export.settle(&mut self.told);
        self.pass_on(out);
    }

    fn changes(&mut self, out: &mut Vec<(LinkId, Told)>) {
        self.export.changes(&mut self.told);
        self.pass_on(out);
    }

    fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.export.watch_fd()
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<(LinkId, Told)>) {
        self.export.tick(now, &mut self.told);
        self.pass_on(out);
    }

    fn deadline(&self) -> Option<Instant> {
        self.export.deadline()
    }

    fn has_gifts(&self, link: LinkId) -> bool {
        self.export.has_gifts(export::LinkId(link.0))
    }

    fn give(&mut self, link: LinkId, out: &mut Vec<(LinkId, Told)>) {
        self.export.give(export::LinkId(link.0), &mut self.told);
        self.pass_on(out);
    }

    fn undo(&mut self, task: TaskId, out: &mut Vec<(LinkId, Told)>) {
        self.export.undo(task, &mut self.told);
        self.pass_on(out);
    }

    fn keep(&mut self, task: TaskId) {
        self.export.keep_made(task);
    }

    fn stop_giving(&mut self, link: LinkId) {
        self.export.stop_giving(export::LinkId(link.0));
    }

    fn close(&mut self, link: LinkId) {
        self.export.close(export::LinkId(link.0));
    }

    fn wrote(&mut self, file: BorrowedFd<'_>) {
        self.export.wrote(file);
    }
}
