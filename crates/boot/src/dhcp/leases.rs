//! Addresses that machines which nobody knows hold for a while.
//!
//! All of it is bounded by the pools' sizes. An address that was free longest is given first, so
//! that one whose holder doesn't know that its time is over comes to somebody else last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use wiglaf_wire::boot::Mac;

use super::{Lease, UNKNOWN_LEASE_S};

/// The most addresses that one interface's pool has, whatever the settings say.
pub const MAX_POOL: usize = 65_536;
/// How long an offered address waits to be taken: firmware collects offers for some seconds.
const OFFER_MS: u64 = 30_000;
/// How long nobody is given an address that somebody else on the wire was found to have.
const DECLINED_MS: u64 = 600_000;

/// Who has an address.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Nobody of ours, if it was declined.
    mac: Option<Mac>,
    until_ms: u64,
    /// Taken, not only offered.
    is_lease: bool,
}

/// An interface's pool.
#[derive(Debug)]
struct Pool {
    first: Ipv4Addr,
    last: Ipv4Addr,
    free: BTreeSet<Ipv4Addr>,
    /// Where the search goes on.
    next: Ipv4Addr,
}

/// All pools.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: BTreeMap<Ipv4Addr, Held>,
    of: BTreeMap<Mac, Ipv4Addr>,
    ends: BTreeSet<(u64, Ipv4Addr)>,
    pools: Vec<Pool>,
}

impl Leases {
    /// With what was kept before; a later one about an address replaces an earlier.
    pub(super) fn restore(&mut self, leases: &[Lease]) {
        for lease in leases {
            self.forget(lease.address);
            let until_ms = u64::try_from(lease.until_s)
                .unwrap_or(0)
                .saturating_mul(1_000);
            self.hold(lease.address, Some(lease.mac), until_ms, true);
        }
    }

    /// The pools anew: each interface's first and last address, of which only those that
    /// `is_giveable` says so of are given. What is held stays held until its time is over.
    pub(super) fn configure(
        &mut self,
        pools: impl Iterator<Item = (Ipv4Addr, Ipv4Addr)>,
        is_giveable: impl Fn(usize, Ipv4Addr) -> bool,
    ) {
        self.pools.clear();
        for (index, (first, last)) in pools.enumerate() {
            let free: BTreeSet<Ipv4Addr> = (u32::from(first)..=u32::from(last))
                .take(MAX_POOL)
                .map(Ipv4Addr::from)
                .filter(|address| is_giveable(index, *address))
                .filter(|address| !self.held.contains_key(address))
                .collect();
            self.pools.push(Pool {
                first,
                last,
                free,
                next: first,
            });
        }
    }

    /// Frees what is over.
    pub(super) fn expire(&mut self, now_ms: u64, is_giveable: impl Fn(usize, Ipv4Addr) -> bool) {
        while let Some((until_ms, address)) = self.ends.first().copied()
            && until_ms <= now_ms
        {
            self.forget(address);
            for (index, pool) in self.pools.iter_mut().enumerate() {
                let is_within = (pool.first..=pool.last).contains(&address);
                if is_within && pool.free.len() < MAX_POOL && is_giveable(index, address) {
                    pool.free.insert(address);
                }
            }
        }
    }

    /// An address for a machine to take: the one that it has, else the one that it had if that is
    /// free. None if the pool is dry, at the cost of a look.
    pub(super) fn offer(
        &mut self,
        now_ms: u64,
        pool: usize,
        mac: Mac,
        had: Option<Ipv4Addr>,
        is_giveable: impl Fn(usize, Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let until_ms = now_ms.saturating_add(OFFER_MS);
        if let Some((address, is_lease)) = self.of(mac)
            && self.is_in(pool, address)
            && is_giveable(pool, address)
        {
            let until_ms = self.held[&address].until_ms.max(until_ms);
            self.hold(address, Some(mac), until_ms, is_lease);
            return Some(address);
        }
        let pool = self.pools.get_mut(pool)?;
        let had = had.filter(|address| pool.free.contains(address));
        let next = had.or_else(|| pool.free.range(pool.next..).next().copied());
        let address = next.or_else(|| pool.free.first().copied())?;
        if had.is_none() {
            pool.next = Ipv4Addr::from(u32::from(address).saturating_add(1));
        }
        for pool in &mut self.pools {
            pool.free.remove(&address);
        }
        self.hold(address, Some(mac), until_ms, false);
        Some(address)
    }

    /// What a machine holds, and whether it has taken it.
    pub(super) fn of(&self, mac: Mac) -> Option<(Ipv4Addr, bool)> {
        let address = *self.of.get(&mac)?;
        Some((address, self.held.get(&address)?.is_lease))
    }

    /// Who has taken an address, other than this machine.
    pub(super) fn is_leased_to_another(&self, address: Ipv4Addr, mac: Mac) -> bool {
        let held = self.held.get(&address);
        held.is_some_and(|held| held.is_lease && held.mac.is_some_and(|holder| holder != mac))
    }

    /// Makes what a machine holds its own for a while.
    pub(super) fn take(&mut self, now_ms: u64, mac: Mac) -> Option<Lease> {
        let address = *self.of.get(&mac)?;
        // Rounded up: a client must never believe in it for longer than we do.
        let until_s = now_ms
            .div_ceil(1_000)
            .saturating_add(u64::from(UNKNOWN_LEASE_S));
        let until_s = until_s.min(u64::MAX / 1_000);
        self.hold(address, Some(mac), until_s * 1_000, true);
        Some(Lease {
            mac,
            address,
            until_s: i64::try_from(until_s).unwrap_or(i64::MAX),
        })
    }

    /// When it ends, if it was taken.
    pub(super) fn ends_ms(&self, mac: Mac) -> Option<u64> {
        let held = self.held.get(self.of.get(&mac)?)?;
        held.is_lease.then_some(held.until_ms)
    }

    /// A machine gives back what it holds. If it was a lease, that it is over is to be kept.
    pub(super) fn release(&mut self, now_ms: u64, mac: Mac) -> Option<Lease> {
        let (address, is_lease) = self.of(mac)?;
        self.hold(address, Some(mac), now_ms, false);
        is_lease.then(|| over(now_ms, mac, address))
    }

    /// Somebody else has what a machine holds.
    pub(super) fn decline(&mut self, now_ms: u64, mac: Mac) -> Option<Lease> {
        let (address, is_lease) = self.of(mac)?;
        self.forget(address);
        self.hold(address, None, now_ms.saturating_add(DECLINED_MS), false);
        is_lease.then(|| over(now_ms, mac, address))
    }

    /// Nobody is offered it any more: it has become an adopted machine's.
    pub(super) fn withdraw(&mut self, address: Ipv4Addr) {
        if self.held.get(&address).is_some_and(|held| !held.is_lease) {
            self.forget(address);
        }
        for pool in &mut self.pools {
            pool.free.remove(&address);
        }
    }

    pub(super) fn is_in(&self, pool: usize, address: Ipv4Addr) -> bool {
        let pool = self.pools.get(pool);
        pool.is_some_and(|pool| (pool.first..=pool.last).contains(&address))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.held.len().max(self.of.len()).max(self.ends.len())
    }

    fn hold(&mut self, address: Ipv4Addr, mac: Option<Mac>, until_ms: u64, is_lease: bool) {
        let held = Held {
            mac,
            until_ms,
            is_lease,
        };
        if let Some(before) = self.held.insert(address, held) {
            self.ends.remove(&(before.until_ms, address));
        }
        self.ends.insert((until_ms, address));
        if let Some(mac) = mac {
            self.of.insert(mac, address);
        }
    }

    fn forget(&mut self, address: Ipv4Addr) {
        let Some(held) = self.held.remove(&address) else {
            return;
        };
        self.ends.remove(&(held.until_ms, address));
        if let Some(mac) = held.mac
            && self.of.get(&mac) == Some(&address)
        {
            self.of.remove(&mac);
        }
    }
}

fn over(now_ms: u64, mac: Mac, address: Ipv4Addr) -> Lease {
    let until_s = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
    Lease {
        mac,
        address,
        until_s,
    }
}
