//! A DHCP client (RFC 2131) for one network card. Pure: packets and the time in, packets out.
//!
//! It never gives up: a machine without an address is of no use. From a server of ours it gets
//! address and head in one; where another server gives the addresses, ours adds the head in an
//! offer without one (as ProxyDHCP does for firmware), or the kernel's command line names it.

mod packet;

use std::net::Ipv4Addr;

use wiglaf_wire::boot::Mac;

pub(super) use packet::Cluster;
use packet::{Kind, Question, Reply};

/// Wait for answers to the very first message; it doubles with each that follows. The kernel drops
/// what is sent in the moment in which a cable shows.
const QUICK_WAIT_MS: u64 = 125;
/// The same for those that are sent later.
const FIRST_WAIT_MS: u64 = 1_000;
/// Longest wait between two.
const LAST_WAIT_MS: u64 = 8_000;
/// How long an offer without a head waits for one that has it.
const GATHER_MS: u64 = 1_500;
/// A server that has made an offer is asked for it this often.
const REQUEST_TRIES: u32 = 4;
/// Least and most time between two attempts to renew.
const LEAST_RENEWAL_WAIT_MS: u64 = 5_000;
const MOST_RENEWAL_WAIT_MS: u64 = 30_000;
/// Where another server gives the addresses, our boot service is asked so often where the head is.
const INFORM_PERIOD_MS: u64 = 45_000;
const INFINITE: u32 = u32::MAX;
/// For a server that does not say.
const USUAL_LEASE_S: u32 = 3_600;

/// An address and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    /// Bits of the network's part.
    pub(super) prefix: u8,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) name_servers: Vec<Ipv4Addr>,
    pub(super) server: Ipv4Addr,
    pub(super) host_name: Option<String>,
    pub(super) cluster: Option<Cluster>,
    times: Times,
}

/// When a lease is to be renewed, in milliseconds of our clock. `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    renew: Option<u64>,
    rebind: u64,
    end: u64,
}

/// What the client wants of whoever has the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Send this; `None`: to everybody on the wire.
    Send(Vec<u8>, Option<Ipv4Addr>),
    /// It has an address, or has it for longer now, perhaps with other particulars.
    Bound(Lease),
    /// The address is not ours any more.
    Lost,
    /// A server offers addresses, but says of no head.
    Stranger(Ipv4Addr),
}

#[derive(Clone, Debug)]
enum State {
    Selecting {
        next_at: u64,
        /// What there is without a head, and until when one is waited for.
        offer: Option<(Reply, Ipv4Addr)>,
        take_at: Option<u64>,
    },
    Requesting {
        next_at: u64,
        tries: u32,
        offer: Reply,
        server: Ipv4Addr,
    },
    Bound {
        lease: Lease,
        next_at: Option<u64>,
        /// When our boot service is asked, if it is not the one that gave the address.
        inform_at: Option<u64>,
    },
}

/// A client. Its first [`Client::tick`] makes it ask.
#[derive(Debug)]
pub(super) struct Client {
    mac: Mac,
    /// Changes with each transaction, and spreads machines that were switched on together.
    random: u32,
    transaction: u32,
    began: u64,
    wait_ms: u64,
    /// The head is known from elsewhere, so that any server's address will do.
    knows_head: bool,
    /// What a server without addresses said.
    hint: Option<Cluster>,
    state: State,
}

impl Client {
    /// `seed` is any number that other machines are unlikely to have.
    pub(super) fn new(mac: Mac, seed: u32, knows_head: bool, now_ms: u64) -> Client {
        let mut client = Client {
            mac,
            random: seed | 1,
            transaction: 0,
            began: now_ms,
            wait_ms: QUICK_WAIT_MS,
            knows_head,
            hint: None,
            state: State::Selecting {
                next_at: now_ms,
                offer: None,
                take_at: None,
            },
        };
        client.transaction = client.draw();
        client
    }

    /// Asks as if there were no address yet.
    pub(super) fn ask_anew(&mut self, now_ms: u64) {
        self.start_anew(now_ms);
    }

    #[cfg(test)]
    fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// When [`Client::tick`] is due.
    pub(super) fn deadline(&self) -> Option<u64> {
        match &self.state {
            State::Selecting {
                next_at, take_at, ..
            } => Some(take_at.map_or(*next_at, |take_at| take_at.min(*next_at))),
            State::Requesting { next_at, .. } => Some(*next_at),
            State::Bound {
                next_at, inform_at, ..
            } => next_at.iter().chain(inform_at).min().copied(),
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.deadline().is_none_or(|at| at > now_ms) {
            return;
        }
        match self.state.clone() {
            State::Selecting {
                offer: Some((offer, server)),
                take_at: Some(take_at),
                ..
            } if take_at <= now_ms => self.take(now_ms, offer, server, out),
            State::Selecting { .. } => self.discover(now_ms, out),
            State::Requesting {
                tries,
                offer,
                server,
                ..
            } if tries < REQUEST_TRIES => self.request(now_ms, offer, server, tries + 1, out),
            State::Requesting { .. } => self.start_anew(now_ms),
            State::Bound { lease, .. } if lease.times.end <= now_ms => {
                out.push(Output::Lost);
                self.start_anew(now_ms);
            }
            State::Bound { lease, next_at, .. } if next_at.is_none_or(|at| at > now_ms) => {
                self.transaction = self.draw();
                let question = self.question(now_ms, Kind::Inform, Some(lease.address), None);
                out.push(Output::Send(question.emit(), None));
                self.state = State::Bound {
                    lease,
                    next_at,
                    inform_at: Some(now_ms + INFORM_PERIOD_MS),
                };
            }
            State::Bound {
                lease, inform_at, ..
            } => self.renew(now_ms, lease, inform_at, out),
        }
    }

    /// A packet has come.
    pub(super) fn packet(&mut self, now_ms: u64, bytes: &[u8], out: &mut Vec<Output>) {
        let Some(reply) = Reply::parse(bytes) else {
            return;
        };
        if reply.transaction != self.transaction || reply.mac != self.mac {
            return;
        }
        match (self.state.clone(), reply.kind) {
            (State::Selecting { next_at, offer, .. }, Kind::Offer) => {
                self.offered(now_ms, reply, (next_at, offer), out);
            }
            (State::Requesting { offer, server, .. }, Kind::Ack)
                if reply.address == offer.address =>
            {
                self.bound(now_ms, &reply, server, out);
            }
            (State::Requesting { .. }, Kind::Nak) => self.start_anew(now_ms),
            (State::Bound { lease, .. }, Kind::Ack) if reply.address == lease.address => {
                let server = reply.server.unwrap_or(lease.server);
                self.bound(now_ms, &reply, server, out);
            }
            (
                State::Bound {
                    lease,
                    next_at,
                    inform_at: inform_at @ Some(_),
                },
                Kind::Ack,
            ) if reply.address.is_unspecified() && reply.cluster.is_some() => {
                let lease = Lease {
                    cluster: reply.cluster,
                    ..lease
                };
                out.push(Output::Bound(lease.clone()));
                self.state = State::Bound {
                    lease,
                    next_at,
                    inform_at,
                };
            }
            (State::Bound { .. }, Kind::Nak) => {
                out.push(Output::Lost);
                self.start_anew(now_ms);
            }
            _ => {}
        }
    }

    fn offered(
        &mut self,
        now_ms: u64,
        reply: Reply,
        (next_at, known): (u64, Option<(Reply, Ipv4Addr)>),
        out: &mut Vec<Output>,
    ) {
        if reply.address.is_unspecified() {
            let Some(cluster) = reply.cluster else {
                return;
            };
            self.hint = Some(cluster);
            if let Some((offer, server)) = known {
                self.take(now_ms, offer, server, out);
            }
            return;
        }
        let Some(server) = reply.server else {
            return;
        };
        if reply.cluster.is_some() {
            self.take(now_ms, reply, server, out);
            return;
        }
        if !self.knows_head && self.hint.is_none() {
            out.push(Output::Stranger(server));
        }
        // The first comer has it, unless one that knows more comes soon.
        let is_enough = self.knows_head || self.hint.is_some();
        let take_at = is_enough.then_some(now_ms + GATHER_MS);
        if known.is_none() {
            self.state = State::Selecting {
                next_at,
                offer: Some((reply, server)),
                take_at,
            };
        }
    }

    fn start_anew(&mut self, now_ms: u64) {
        self.transaction = self.draw();
        self.wait_ms = FIRST_WAIT_MS;
        self.state = State::Selecting {
            next_at: now_ms + FIRST_WAIT_MS,
            offer: None,
            take_at: None,
        };
    }

    fn discover(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let next_at = now_ms + self.spread(self.wait_ms);
        self.wait_ms = (self.wait_ms * 2).min(LAST_WAIT_MS);
        out.push(Output::Send(
            self.question(now_ms, Kind::Discover, None, None).emit(),
            None,
        ));
        // An offer that nobody wants now may be wanted when a server of ours wakes up, but by then
        // it is made again.
        let (offer, take_at) = match &mut self.state {
            State::Selecting {
                offer,
                take_at: Some(at),
                ..
            } => (offer.take(), Some(*at)),
            _ => (None, None),
        };
        self.state = State::Selecting {
            next_at,
            offer,
            take_at,
        };
    }

    fn take(&mut self, now_ms: u64, offer: Reply, server: Ipv4Addr, out: &mut Vec<Output>) {
        self.request(now_ms, offer, server, 1, out);
    }

    fn request(
        &mut self,
        now_ms: u64,
        offer: Reply,
        server: Ipv4Addr,
        tries: u32,
        out: &mut Vec<Output>,
    ) {
        let offered = Some((offer.address, server));
        out.push(Output::Send(
            self.question(now_ms, Kind::Request, None, offered).emit(),
            None,
        ));
        let wait = self.spread(FIRST_WAIT_MS << (tries - 1));
        self.state = State::Requesting {
            next_at: now_ms + wait,
            tries,
            offer,
            server,
        };
    }

    fn bound(&mut self, now_ms: u64, reply: &Reply, server: Ipv4Addr, out: &mut Vec<Output>) {
        let known = match &self.state {
            State::Requesting { offer, .. } => offer.cluster.clone(),
            State::Bound { lease, .. } => lease.cluster.clone(),
            State::Selecting { .. } => None,
        };
        let times = times(now_ms, reply);
        let lease = Lease {
            address: reply.address,
            prefix: prefix(reply.mask, reply.address),
            router: reply.routers.first().copied(),
            name_servers: reply.name_servers.clone(),
            server,
            host_name: reply.host_name.clone(),
            cluster: reply.cluster.clone().or(self.hint.clone()).or(known),
            times,
        };
        let is_anothers = lease
            .cluster
            .as_ref()
            .is_some_and(|cluster| *cluster.head.ip() != server);
        out.push(Output::Bound(lease.clone()));
        self.state = State::Bound {
            lease,
            next_at: times.renew,
            inform_at: is_anothers.then_some(now_ms + INFORM_PERIOD_MS),
        };
    }

    fn renew(&mut self, now_ms: u64, lease: Lease, inform_at: Option<u64>, out: &mut Vec<Output>) {
        self.transaction = self.draw();
        let is_rebinding = lease.times.rebind <= now_ms;
        let until = if is_rebinding {
            lease.times.end
        } else {
            lease.times.rebind
        };
        let question = self.question(now_ms, Kind::Request, Some(lease.address), None);
        let server = (!is_rebinding).then_some(lease.server);
        out.push(Output::Send(question.emit(), server));
        // RFC 2131 has half of what is left; with a long lease that would be hours.
        let wait =
            (until.saturating_sub(now_ms) / 2).clamp(LEAST_RENEWAL_WAIT_MS, MOST_RENEWAL_WAIT_MS);
        let next_at = (now_ms + wait).min(lease.times.end);
        self.state = State::Bound {
            lease,
            next_at: Some(next_at),
            // Two questions at once would have one transaction.
            inform_at: inform_at.map(|at| at.max(now_ms + LEAST_RENEWAL_WAIT_MS)),
        };
    }

    fn question(
        &self,
        now_ms: u64,
        kind: Kind,
        own: Option<Ipv4Addr>,
        offered: Option<(Ipv4Addr, Ipv4Addr)>,
    ) -> Question {
        let seconds = now_ms.saturating_sub(self.began) / 1000;
        Question {
            kind,
            transaction: self.transaction,
            mac: self.mac,
            seconds: u16::try_from(seconds).unwrap_or(u16::MAX),
            own,
            offered,
        }
    }

    /// Between three quarters and five quarters of it.
    fn spread(&mut self, wait_ms: u64) -> u64 {
        wait_ms * 3 / 4 + wait_ms * u64::from(self.draw() & 0xff) / 512
    }

    /// Marsaglia's xorshift: good enough to differ from a neighbour.
    fn draw(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }
}

fn times(now_ms: u64, reply: &Reply) -> Times {
    let lease_s = reply.lease_s.unwrap_or(USUAL_LEASE_S);
    if lease_s == INFINITE {
        return Times {
            renew: None,
            rebind: u64::MAX,
            end: u64::MAX,
        };
    }
    let lease = u64::from(lease_s.max(10)) * 1000;
    // RFC 2131, section 4.4.5.
    let usual = (lease / 2, lease / 8 * 7);
    let told = |seconds: Option<u32>| seconds.map(|seconds| u64::from(seconds) * 1000);
    let rebind = told(reply.rebind_s)
        .filter(|at| *at < lease)
        .unwrap_or(usual.1);
    let renew = told(reply.renew_s)
        .filter(|at| *at < rebind)
        .unwrap_or(usual.0.min(rebind));
    Times {
        renew: Some(now_ms + renew),
        rebind: now_ms + rebind,
        end: now_ms + lease,
    }
}

fn prefix(mask: Option<Ipv4Addr>, address: Ipv4Addr) -> u8 {
    let bits = match mask {
        Some(mask) if mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() >= 32 => {
            mask.to_bits().leading_ones()
        }
        // Before there were masks, the address told.
        _ => match address.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            _ => 24,
        },
    };
    u8::try_from(bits).unwrap_or(24)
}

#[cfg(test)]
mod tests;
