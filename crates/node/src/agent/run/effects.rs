//! What the core wants done, and who does it.

use std::time::Instant;

use rustix::io::Errno;
use wiglaf_linux::process::kill;
use wiglaf_wire::agent::FromAgent;

use super::super::core::Effect;
use super::super::pids::PidBlock;
use super::super::{machine, processes};
use super::{Agent, AgentError, Shown};

const SIGKILL: i32 = 9;
/// `kill(2)`: all processes that the caller may signal, but itself and init.
const EVERYBODY: i32 = -1;

impl Agent {
    pub(super) fn perform(&mut self, effect: Effect) -> Result<(), AgentError> {
        match effect {
            Effect::Dial => self.dial(),
            Effect::HangUp => self.close_link(),
            Effect::Send(message) => self.send(&message),
            Effect::Renew { sequence } => {
                if let Some(clock) = &mut self.clock {
                    clock.asked(sequence, Instant::now());
                }
                self.send(&FromAgent::Renew {
                    sequence,
                    load_centi: machine::load_centi(),
                    available_kib: machine::available_kib(),
                });
            }
            Effect::Welcomed {
                name,
                first_pid,
                end_pid,
                ..
            } => {
                self.welcomed(name, PidBlock::new(first_pid, end_pid))?;
            }
            Effect::Spawn {
                task,
                pid,
                credential,
                deputy,
                spec,
            } => {
                self.spawn(task, pid, credential, deputy, spec);
            }
            Effect::Signal {
                task,
                signal,
                scope,
                ..
            } => self.mains.signal(task, signal, scope),
            Effect::KillTree { task, .. } => self.mains.kill_tree(task),
            // Nobody there is fine.
            Effect::KillEverything => drop(kill(EVERYBODY, SIGKILL)),
            Effect::CutLinks => self.relay.cut_links(&self.poll),
            Effect::CollectLeftovers { task } => self.mains.collect_leftovers(task),
            Effect::WaitDrained { task, leave } => {
                if !self.is_emptying(task) {
                    self.wait_written(task, leave);
                }
            }
            Effect::CloseTask { task } => {
                self.relay.close(&self.poll, task);
                self.privates.close(task);
                self.makers.remove(task);
                // The deputy must forget what it told a view, so it is the link that is let go.
                if let Shown::Views(views) = &mut self.files
                    && let Some(oldest) = views.dismiss(task)
                {
                    self.relay.let_go(&self.poll, oldest);
                }
                self.mains.forget(task);
            }
            Effect::ListProcesses { request } => self.list(request),
            Effect::SignalProcess {
                request,
                pid,
                signal,
                uid,
            } => {
                let result = processes::signal(pid, signal, uid, &self.mains);
                let errno = result.err().map_or(0, Errno::raw_os_error);
                self.send(&FromAgent::Signalled { request, errno });
            }
            Effect::ListViews { request } => self.list_views(request),
            Effect::CheckViews { request, uid } => self.check_views(request, uid),
            Effect::Exit { reason } => self.exit = Some(reason),
        }
        Ok(())
    }
}
