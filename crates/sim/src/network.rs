//! Connections between agents and the head, as TCP has them: in order, until one end closes, the
//! connection breaks, or a partition holds everything up.

use std::collections::VecDeque;

use wiglaf_node::agent::core;
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::id::NodeId;

use crate::world::{Event, Wire, World};

/// How long a dial may take before the agent's shell gives it up.
const DIAL_TIMEOUT_MS: u64 = 5_000;
/// How long the head waits for a connection's first message (`PROOF_WAIT_MS` of the daemon).
const PROOF_WAIT_MS: u64 = 10_000;

pub(crate) type ConnId = u64;

/// What travels towards the head.
#[derive(Debug)]
pub(crate) enum Up {
    /// The begin of a TLS handshake.
    ClientHello,
    Message(FromAgent),
    Fin,
}

/// What travels towards the agent.
#[derive(Debug)]
pub(crate) enum Down {
    /// Its answer: from here on the agent may speak.
    ServerHello,
    Message(ToAgent),
    Fin,
}

/// The head's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadEnd {
    Closed,
    /// Accepted; nobody has said who calls.
    Unproven {
        until_ms: u64,
    },
    Proven,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) node: NodeId,
    pub(crate) agent_open: bool,
    pub(crate) head: HeadEnd,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
}

impl World {
    pub(crate) fn dial(&mut self, node: NodeId) -> ConnId {
        self.conn_count += 1;
        let id = self.conn_count;
        self.forget_dead_connections();
        let conn = Conn {
            node,
            agent_open: true,
            head: HeadEnd::Closed,
            up: VecDeque::new(),
            down: VecDeque::new(),
        };
        self.conns.insert(id, conn);
        self.push_up(id, Up::ClientHello);
        self.after(DIAL_TIMEOUT_MS, Event::DialTimeout(id));
        id
    }

    pub(crate) fn dial_timeout(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let node = conn.node;
        let Some(life) = self.nodes.get_mut(&node).and_then(|m| m.life.as_mut()) else {
            return;
        };
        if life.dialling == Some(id) {
            life.dialling = None;
            self.close_agent_end(id);
            self.agent_event(node, core::Event::Disconnected);
        }
    }

    pub(crate) fn push_up(&mut self, id: ConnId, message: Up) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.up.push_back(message);
            let delay_ms = self.network_ms();
            self.send(Wire::Up(id), delay_ms, Event::Net { conn: id, up: true });
        }
    }

    pub(crate) fn push_down(&mut self, id: ConnId, message: Down) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.down.push_back(message);
            let delay_ms = self.network_ms();
            self.send(
                Wire::Down(id),
                delay_ms,
                Event::Net {
                    conn: id,
                    up: false,
                },
            );
        }
    }

    /// One message arrives, or waits for the end of a partition.
    pub(crate) fn net(&mut self, id: ConnId, up: bool) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let node = conn.node;
        let until_ms = self
            .nodes
            .get(&node)
            .map_or(0, |machine| machine.partition_until_ms);
        if until_ms > self.now_ms {
            // Retransmissions back off (RFC 6298): a hole lasts up to twice as long for those
            // inside.
            let wire = if up { Wire::Up(id) } else { Wire::Down(id) };
            let hole_ms = until_ms - self.now_ms;
            let delay_ms = hole_ms + self.rng.below(hole_ms) + self.network_ms();
            self.send(wire, delay_ms, Event::Net { conn: id, up });
        } else if up {
            if let Some(message) = conn.up.pop_front() {
                self.note(|_| format!("  head gets from {node} by {id}: {message:?}"));
                self.arrive_up(id, message);
            }
        } else if let Some(message) = conn.down.pop_front() {
            self.note(|_| format!("  {node} gets by {id}: {message:?}"));
            self.arrive_down(id, message);
        }
    }

    fn arrive_up(&mut self, id: ConnId, message: Up) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let node = conn.node;
        match (message, conn.head) {
            (Up::ClientHello, _) if self.head.is_some() => {
                conn.head = HeadEnd::Unproven {
                    until_ms: self.now_ms + PROOF_WAIT_MS,
                };
                self.push_down(id, Down::ServerHello);
            }
            (Up::ClientHello, _) => self.push_down(id, Down::Fin),
            (Up::Fin, HeadEnd::Proven) => {
                conn.head = HeadEnd::Closed;
                self.head_loses_agent(node, id);
            }
            (Up::Fin, _) => conn.head = HeadEnd::Closed,
            (Up::Message(message), HeadEnd::Proven) => {
                self.head_hears_agent(node, id, message);
            }
            (Up::Message(hello), HeadEnd::Unproven { until_ms }) => {
                if until_ms >= self.now_ms {
                    self.head_proves(node, id, hello);
                } else {
                    conn.head = HeadEnd::Closed;
                    self.push_down(id, Down::Fin);
                }
            }
            // What was under way when this end closed.
            (Up::Message(_), HeadEnd::Closed) => {}
        }
    }

    fn arrive_down(&mut self, id: ConnId, message: Down) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let node = conn.node;
        if !conn.agent_open {
            // A machine that is up again answers for a connection that it does not know.
            let is_up = self
                .nodes
                .get(&node)
                .is_some_and(|machine| machine.life.is_some());
            if is_up && !matches!(message, Down::Fin) && conn.head != HeadEnd::Closed {
                self.push_up(id, Up::Fin);
            }
            return;
        }
        let Some(life) = self.nodes.get_mut(&node).and_then(|m| m.life.as_mut()) else {
            return;
        };
        match message {
            Down::ServerHello if life.dialling == Some(id) => {
                life.dialling = None;
                life.conn = Some(id);
                self.agent_event(node, core::Event::Connected);
            }
            Down::ServerHello => {}
            Down::Message(message) if life.conn == Some(id) => {
                self.agent_event(node, core::Event::Message(message));
            }
            Down::Message(_) => {}
            Down::Fin => {
                conn.agent_open = false;
                if life.conn == Some(id) || life.dialling == Some(id) {
                    life.conn = None;
                    life.dialling = None;
                    self.agent_event(node, core::Event::Disconnected);
                }
            }
        }
    }

    /// Closed with all that was sent before, or, if there was something unread, by a reset that
    /// overtakes some of it.
    pub(crate) fn close_agent_end(&mut self, id: ConnId) {
        self.lose_some(id, true);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.agent_open = false;
            self.push_up(id, Up::Fin);
        }
    }

    pub(crate) fn close_head_end(&mut self, id: ConnId) {
        self.lose_some(id, false);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.head = HeadEnd::Closed;
            self.push_down(id, Down::Fin);
        }
    }

    /// The power is gone: nobody says goodbye.
    pub(crate) fn silence_agent_end(&mut self, id: ConnId) {
        self.lose_some(id, true);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.agent_open = false;
        }
    }

    fn lose_some(&mut self, id: ConnId, up: bool) {
        if self.rng.chance(50) {
            return;
        }
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if up {
            conn.up.truncate(self.rng.prefix(conn.up.len()));
        } else {
            conn.down.truncate(self.rng.prefix(conn.down.len()));
        }
    }

    /// Everything that is under way is lost in both directions, and both ends hear of it.
    pub(crate) fn break_connections(&mut self, node: NodeId) {
        let ids: Vec<_> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(conn) = self.conns.get_mut(&id) else {
                continue;
            };
            if !conn.agent_open && conn.head == HeadEnd::Closed {
                continue;
            }
            conn.up.clear();
            conn.down.clear();
            self.push_up(id, Up::Fin);
            self.push_down(id, Down::Fin);
        }
    }

    fn forget_dead_connections(&mut self) {
        self.conns.retain(|_, conn| {
            conn.agent_open
                || conn.head != HeadEnd::Closed
                || !conn.up.is_empty()
                || !conn.down.is_empty()
        });
    }
}
