//! Processes of all nodes: their lists and signals to them, as commands ask.

use wiglaf_wire::agent::{SignalScope, ToAgent};
use wiglaf_wire::client::Reply;
use wiglaf_wire::id::Pid;

use super::lists::Found;
use super::requests::refuse;
use super::{Effect, LIST_WAIT_MS, Reactor};
use crate::jobs::{Caller, ClientId};
use crate::node_table::Presence;
use crate::placement::Refusal;

/// Highest signal number of Linux.
const MAX_SIGNAL: u8 = 64;
/// Errno values that a node may answer a signal with, from asm-generic/errno-base.h.
const EPERM: i32 = 1;
const ESRCH: i32 = 3;

impl Reactor {
    pub(super) fn list_processes(
        &mut self,
        now_ms: u64,
        client: ClientId,
        effects: &mut Vec<Effect>,
    ) {
        let nodes = self.connected_nodes();
        let found = Found::Processes(Vec::new());
        let ask = |request| ToAgent::ListProcesses { request };
        self.start_list(now_ms, (client, LIST_WAIT_MS), nodes, found, ask, effects);
    }

    pub(super) fn signal_pid(
        &mut self,
        caller: &Caller,
        pid: Pid,
        signal: u8,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if signal > MAX_SIGNAL {
            return Err(Refusal::new(
                format!("there is no signal {signal}"),
                "see `kill -l`",
            ));
        }
        let unknown = || {
            Refusal::new(
                format!("no process of the cluster has PID {pid}"),
                "`wiglaf ps` shows the processes on all nodes",
            )
        };
        if let Some(id) = self.task_by_pid(pid) {
            let (job, _) = self.task(id).ok_or_else(unknown)?;
            if job.credential.uid != caller.credential.uid && !self.is_admin(&caller.credential) {
                return Err(not_yours(pid));
            }
            if signal != 0 {
                self.signal_task(id, signal, SignalScope::Process, effects);
            }
            effects.push(Effect::Reply(caller.client, Reply::Done));
            return Ok(());
        }
        let node = self
            .nodes
            .of_pid(pid)
            .filter(|node| node.presence == Presence::Connected)
            .map(|node| node.id)
            .ok_or_else(unknown)?;
        let request = self.next_list;
        self.next_list += 1;
        self.signal_requests.insert(request, caller.client);
        let uid = (!self.is_admin(&caller.credential)).then_some(caller.credential.uid);
        effects.push(Effect::ToNode(
            node,
            ToAgent::SignalProcess {
                request,
                pid,
                signal,
                uid,
            },
        ));
        Ok(())
    }

    pub(super) fn process_signalled(
        &mut self,
        request: u64,
        errno: i32,
        effects: &mut Vec<Effect>,
    ) {
        let Some(client) = self.signal_requests.remove(&request) else {
            return;
        };
        let reply = match errno {
            0 => Reply::Done,
            EPERM => refuse(Refusal::new(
                "that process is not yours",
                "only root may signal it",
            )),
            ESRCH => refuse(Refusal::new(
                "no process of the cluster has that PID",
                "`wiglaf ps` shows the processes on all nodes",
            )),
            other => refuse(Refusal::new(
                format!("the node answered errno {other}"),
                "try again",
            )),
        };
        effects.push(Effect::Reply(client, reply));
    }
}

fn not_yours(pid: Pid) -> Refusal {
    Refusal::new(
        format!("process {pid} is not yours"),
        "only its owner and root may signal it",
    )
}
