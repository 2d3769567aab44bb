//! The end of a turn: what the views ask is sent, and whoever has waited for them goes on.

use std::fs;
use std::time::{Duration, Instant};

use wiglaf_link::Poll;
use wiglaf_process::relay::node::NodeRelay;
use wiglaf_view::Outcome;

use super::super::spawner::UtsTag;
use super::{Due, NodeView, Views, Waits, checked, now_ms};

const SIGKILL_BIT: u64 = 1 << 8;
/// How often processes that were signalled while they wait are looked at: the kernel tells of
/// a request's first signal only, and the deadly one may come later.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

impl Views {
    /// Sends what the views ask, and returns what they have waited for.
    pub(in super::super) fn settle(&mut self, poll: &Poll, relay: &mut NodeRelay) -> Vec<Due> {
        let mut due = Vec::new();
        for lost in relay.take_unlinked() {
            let Some(view) = self.views.get_mut(&lost) else {
                continue;
            };
            if view.tasks.is_empty() {
                self.drop_view(poll, lost);
                due.push(Due::Gone(lost));
            } else {
                view.inbox.lose();
                view.mount.lose();
                view.mount.resume();
                if let Some(kept) = &self.kept {
                    kept.ask_for_filter(lost, view.uid);
                }
                // What stands on names of the head's is gone with them; the next task's root has
                // it again.
                if view.is_covered || self.own.covered().next().is_some() {
                    due.push(Due::Gone(lost));
                }
            }
        }
        due.extend(self.take_vain_checks());
        let now = Instant::now();
        let is_time_to_look = self.look_at.is_some_and(|at| at <= now);
        if is_time_to_look {
            self.look_at = None;
        }
        for (&deputy, view) in &mut self.views {
            if is_time_to_look {
                view.let_go_of_killed();
            }
            let mount = &mut view.mount;
            if view.inbox.look(now, mount) {
                due.push(Due::DiskHangs);
            }
            let mut has_asked = false;
            loop {
                let questions = mount.take_questions();
                if questions.is_empty() {
                    break;
                }
                for question in questions {
                    view.inbox.asked(&question);
                    let (id, has_answer) = (question.id, question.what.has_answer());
                    if relay.prepare_question(deputy, question) {
                        has_asked = true;
                    } else if has_answer {
                        view.inbox.refused(id);
                        mount.refuse(now_ms(), id);
                    }
                }
            }
            if has_asked {
                relay.send_questions(poll, deputy);
            }
            for outcome in mount.take_outcomes() {
                match outcome {
                    Outcome::Passed { token } => match self.waiting.remove(&token) {
                        Some(Waits::Launch(order)) => due.push(Due::Launch(order)),
                        Some(Waits::Written { task, leave }) => {
                            due.push(Due::Written { task, leave });
                        }
                        Some(Waits::Check { .. }) | None => {}
                    },
                    Outcome::Checked {
                        token,
                        compared,
                        differences,
                    } => {
                        if let Some(Waits::Check { request, uid, .. }) = self.waiting.remove(&token)
                        {
                            due.push(checked(request, uid, compared, differences));
                        }
                    }
                    Outcome::CloseFailed {
                        witness,
                        path,
                        errno,
                    } => {
                        let path = String::from_utf8_lossy(&path);
                        let why = rustix::io::Errno::from_raw_os_error(errno);
                        let reason = format!(
                            "{path} could not be written: {why}; the program had ended its work \
                             with it and was not told"
                        );
                        let tag = UtsTag::from_number(witness);
                        due.push(Due::Lost { tag, reason });
                    }
                    Outcome::Interrupted { unique, pid } => {
                        view.signalled.push((unique, pid));
                        self.look_at = Some(now);
                    }
                }
            }
            if !view.signalled.is_empty() {
                self.look_at.get_or_insert(now + LOOK_PERIOD);
            }
        }
        due
    }

    /// When [`Views::settle`] has something to do.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        let disks = self.views.values().filter_map(|view| view.inbox.deadline());
        disks.chain(self.look_at).min()
    }
}

impl NodeView {
    /// Processes that are being killed wait no longer.
    fn let_go_of_killed(&mut self) {
        let mount = &mut self.mount;
        self.signalled.retain(|&(unique, pid)| {
            if mount.awaits(unique) && is_being_killed(pid) {
                mount.abandon(unique);
            }
            mount.awaits(unique)
        });
    }
}

/// Whether a SIGKILL waits for the process: no other signal ends what it is in.
fn is_being_killed(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
        mask.is_some_and(|mask| mask & SIGKILL_BIT != 0)
    };
    pending("SigPnd:") || pending("ShdPnd:")
}
