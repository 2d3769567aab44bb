//! Tasks in the agent's loop: from the order to start one to its last byte.

use std::time::Instant;

use wiglaf_wire::agent::{FromAgent, MAX_PROCESSES_PER_MESSAGE, MAX_VIEWS_PER_MESSAGE};
use wiglaf_wire::id::{DeputyId, Pid, TaskId};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::Status;
use wiglaf_wire::view::ViewCheck;

use super::super::core::Event;
use super::super::private::End;
use super::super::processes;
use super::super::spawner::{Order, Root};
use super::super::view::{DISK_WAIT, Due};
use super::{Agent, CURSOR_PERIOD, Shown, log};

impl Agent {
    pub(super) fn spawn(
        &mut self,
        task: TaskId,
        pid: Pid,
        credential: Credential,
        deputy: DeputyId,
        mut spec: Box<LaunchSpec>,
    ) {
        self.steer();
        self.cursor_at
            .get_or_insert_with(|| Instant::now() + CURSOR_PERIOD);
        let failed = |reason: String| Event::SpawnFailed {
            task,
            status: Status::cluster_failed(reason),
        };
        let stdio = match self
            .relay
            .open(&self.poll, task, deputy, spec.stdio, spec.window)
        {
            Ok(stdio) => stdio,
            Err(error) => {
                let reason = format!("{}: {error}; run the command again", self.name);
                return self.events.push(failed(reason));
            }
        };
        let root = match &mut self.files {
            Shown::Root(root) => Root::Made(root.clone()),
            Shown::Views(views) => match views.admit(&self.poll, task, (deputy, credential.uid)) {
                Ok(root) => root,
                Err(error) => {
                    self.relay.close(&self.poll, task);
                    let reason = format!("{}: {error}", self.name);
                    return self.events.push(failed(reason));
                }
            },
        };
        self.tell_of_disks(deputy, &mut spec);
        self.mains.starting(task, pid);
        let order = Order {
            task,
            pid,
            credential,
            spec,
            stdio,
            root,
        };
        match &mut self.files {
            Shown::Root(_) => self.give_order(order),
            Shown::Views(views) => views.launch(order),
        }
    }

    pub(super) fn give_order(&mut self, order: Order) {
        let task = order.task;
        if !self
            .spawner
            .as_ref()
            .is_some_and(|spawner| spawner.order(order))
        {
            self.mains.forget(task);
            self.events.push(Event::SpawnFailed {
                task,
                status: Status::cluster_failed(format!("the spawner of {} has ended", self.name)),
            });
        }
    }

    /// All processes of a task are gone. Whether something that they left in its private
    /// directories has to be brought to the head first.
    pub(super) fn is_emptying(&mut self, task: TaskId) -> bool {
        match self.privates.end(task, &self.makers) {
            End::None => false,
            End::Clean(lent) => {
                if let Some(spawner) = &self.spawner {
                    spawner.take_back(lent);
                }
                false
            }
            End::Emptying => true,
        }
    }

    /// What a task has left is on its way; waits until all that it wrote is on the head.
    pub(super) fn wait_written(&mut self, task: TaskId, leave: bool) {
        let is_writing = match &mut self.files {
            Shown::Views(views) => views.ended(task, leave),
            Shown::Root(_) => false,
        };
        if !is_writing {
            self.drain(task, leave);
        }
    }

    /// All processes of a task are gone, and what they wrote to files is on the head.
    pub(super) fn drain(&mut self, task: TaskId, leave: bool) {
        let mut events = Vec::new();
        self.relay.main_ended(&self.poll, task, &mut events);
        if leave {
            self.mains.keep_leftovers(task);
            self.relay.cut_outputs(&self.poll, task, &mut events);
        }
        self.hear_relay(events);
    }

    /// Sends what the views ask, and does what was waiting for them.
    pub(super) fn settle_views(&mut self) {
        let Shown::Views(views) = &mut self.files else {
            return;
        };
        for deputy in views.outdated() {
            self.relay.let_go(&self.poll, deputy);
        }
        for due in views.settle(&self.poll, &mut self.relay) {
            match due {
                Due::Launch(order) => self.give_order(*order),
                Due::Written { task, leave } => self.drain(task, leave),
                Due::Lost { tag, reason } => match self.mains.by_tag(tag) {
                    Some(task) => self.events.push(Event::FilesLost { task, reason }),
                    None => log(&self.name, &reason),
                },
                Due::Gone(deputy) => {
                    if let Some(spawner) = &self.spawner {
                        spawner.forget(deputy);
                    }
                }
                Due::DiskHangs => log(
                    &self.name,
                    &format_args!(
                        "the disk with what it keeps of the head's files has said nothing for \
                         {} s: it reads from the head again",
                        DISK_WAIT.as_secs()
                    ),
                ),
                Due::Checked { request, found } => self.checked(request, found),
            }
        }
    }

    pub(super) fn list_views(&mut self, request: u64) {
        let list = match &self.files {
            Shown::Views(views) => views.states(),
            Shown::Root(_) => Vec::new(),
        };
        self.send_in_parts(list, MAX_VIEWS_PER_MESSAGE, |list, last| FromAgent::Views {
            request,
            list,
            last,
        });
    }

    pub(super) fn check_views(&mut self, request: u64, uid: Option<u32>) {
        let count = match &mut self.files {
            Shown::Views(views) => views.check(request, uid),
            Shown::Root(_) => 0,
        };
        if count > 0 {
            self.checks.insert(request, count);
        } else {
            let list = Vec::new();
            self.send(&FromAgent::ViewsChecked {
                request,
                list,
                last: true,
            });
        }
    }

    pub(super) fn checked(&mut self, request: u64, found: ViewCheck) {
        let Some(count) = self.checks.get_mut(&request) else {
            return;
        };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.checks.remove(&request);
        }
        let list = vec![found];
        self.send(&FromAgent::ViewsChecked {
            request,
            list,
            last,
        });
    }

    pub(super) fn steer(&mut self) {
        if let Some(pids) = self.pids
            && let Err(error) = pids.steer()
        {
            log(&self.name, &error);
            // It will not be allowed the next time either.
            self.pids = None;
        }
    }

    pub(super) fn list(&mut self, request: u64) {
        let list = processes::list(&self.mains);
        self.send_in_parts(list, MAX_PROCESSES_PER_MESSAGE, |list, last| {
            FromAgent::Processes {
                request,
                list,
                last,
            }
        });
    }

    /// Sends a list, which may be empty, in messages of so many.
    pub(super) fn send_in_parts<T: Clone>(
        &mut self,
        list: Vec<T>,
        most: usize,
        message: impl Fn(Vec<T>, bool) -> FromAgent,
    ) {
        if list.len() <= most {
            return self.send(&message(list, true));
        }
        let mut parts = list.chunks(most).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.send(&message(part.to_vec(), last));
        }
    }
}
