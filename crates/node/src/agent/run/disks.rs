//! The node's disks in the agent's loop.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use rustix::io::Errno;
use wiglaf_link::{Interest, Poll};
use wiglaf_wire::agent::FromAgent;
use wiglaf_wire::disk::{DiskAnswer, DiskOrder};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::launch::LaunchSpec;

use super::super::disk::{Disks, Said};
use super::super::kept::SharedStore;
use super::{Agent, DISKS, Shown, log};
use crate::root::OwnDirectories;

/// Where tasks see files that are on the node for a while.
const SCRATCH: &str = "scratch";
/// What only tasks have whose environment is the cluster's as well.
const JOB_VARIABLE: &[u8] = b"WIGLAF_JOB=";
const SCRATCH_VARIABLE: &[u8] = b"WIGLAF_SCRATCH=";
/// Nodes beside another system, or with one of their own.
const NOT_OURS: &str = "the disks of this machine are its own system's";

/// What the agent begins with.
pub(super) struct Began {
    pub(super) disks: Disks,
    /// For the node's log.
    pub(super) lines: Vec<String>,
    /// Where scratch is, if there is one.
    pub(super) scratch: Option<PathBuf>,
}

/// Uses what is laid out for this cluster.
pub(super) fn begin(
    authority: &[u8; 32],
    boot: Option<SocketAddrV4>,
    own: &mut OwnDirectories,
    store: &SharedStore,
    poll: &Poll,
) -> Result<Began, Errno> {
    let (disks, lines) = Disks::begin(authority, boot, own, store.clone())?;
    poll.add(disks.bell(), DISKS, Interest::Read)?;
    Ok(Began {
        disks,
        lines,
        scratch: own.has(SCRATCH).then(|| own.disk_places().join(SCRATCH)),
    })
}

impl Agent {
    pub(super) fn start_disks(&mut self) {
        if let Some(disks) = &mut self.disks
            && let Err(error) = disks.start()
        {
            log(
                &self.name,
                &format_args!("can't look after its disks: {error}"),
            );
        }
    }

    pub(super) fn order_disks(&mut self, request: u64, order: DiskOrder) {
        // What it starts must not have a ghost's number.
        self.steer();
        match &self.disks {
            Some(disks) => disks.order(request, order),
            None => {
                let answer = Box::new(DiskAnswer::refused(NOT_OURS));
                self.send(&FromAgent::Disk { request, answer });
            }
        }
    }

    pub(super) fn hear_disks(&mut self) {
        for said in self.disks.as_ref().map(Disks::said).unwrap_or_default() {
            match said {
                Said::Answer(asked, answer) => {
                    let wanted = self.disks.as_ref();
                    if let Some(request) = wanted.and_then(|disks| disks.is_wanted(asked)) {
                        let answer = Box::new(answer);
                        self.send(&FromAgent::Disk { request, answer });
                    }
                }
                Said::Mounted(names) => self.show_disks(&names),
                Said::Line(line) => log(&self.name, &line),
            }
        }
    }

    fn show_disks(&mut self, names: &[&'static str]) {
        let Shown::Views(views) = &mut self.files else {
            return;
        };
        views.show_disks(names);
        if names.contains(&SCRATCH) {
            let place = views.disk_places().join(SCRATCH);
            self.keep_on(&place);
        }
    }

    /// Tells a task where scratch is, if it sees one.
    pub(super) fn tell_of_disks(&self, deputy: DeputyId, spec: &mut LaunchSpec) {
        let has = |name: &[u8]| spec.env.iter().any(|variable| variable.starts_with(name));
        if let Shown::Views(views) = &self.files
            && views.shows(deputy, SCRATCH)
            && has(JOB_VARIABLE)
            && !has(SCRATCH_VARIABLE)
        {
            spec.env.push([SCRATCH_VARIABLE, b"/scratch"].concat());
        }
    }
}
