//! Who may join, and whose code has been compared.

use std::net::{IpAddr, SocketAddr};

use wiglaf_wire::boot::{Mac, Stage};

use super::{Approve, Machine, Machines, Now, subnet};
use crate::placement::Refusal;

/// How long after it was last seen booting a machine may join.
pub(super) const PERMIT_MS: u64 = 10 * 60_000;
/// Ports below this are given to root only (`IPPORT_RESERVED`, netinet/in.h).
const FIRST_ORDINARY_PORT: u16 = 1_024;
/// Keys that wait at once for one machine: more than one only if somebody else asks in its name.
const MAX_KEYS: usize = 4;

/// The digest of a public key (SHA-256). A code is too short to stand for a key by itself:
/// another key with the same code is found in minutes.
pub type Key = [u8; 32];

/// The answer to a machine that asks to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It becomes the node of this name. What the store keeps may have changed.
    Accept {
        /// The name.
        name: String,
    },
    /// Somebody has to compare this code first.
    Await {
        /// The code.
        code: String,
    },
    /// No, with the sentence for its console.
    Refuse {
        /// Why, and what to do.
        reason: String,
    },
}

impl Machines {
    /// A machine asks to join from there, with this key, for which that code stands.
    pub fn may_join(
        &mut self,
        now: Now,
        mac: Mac,
        from: SocketAddr,
        key: Key,
        code: &str,
    ) -> Verdict {
        let refuse = |reason: String| Verdict::Refuse { reason };
        let Some(machine) = self.known.get_mut(&mac) else {
            return refuse(format!(
                "nobody has adopted {mac}: `wiglaf node adopt {mac}` on the head does"
            ));
        };
        let Some(life) = self.lives.get_mut(&mac) else {
            return refuse(format!(
                "the head has not seen {mac} boot: start it from the network"
            ));
        };
        let wire = self.served.get(&life.interface);
        let own = machine
            .address
            .or(life.address)
            .filter(|own| wire.is_some_and(|served| subnet::is_behind(&served.interface, *own)));
        // What somebody else says in its name is not kept: it would hide what the machine says.
        if own.is_none_or(|own| canonical(from.ip()) != IpAddr::V4(own)) {
            return refuse(format!("{} is not the address of {mac}", from.ip()));
        }
        if from.port() >= FIRST_ORDINARY_PORT {
            return refuse(format!("port {} is not one of root's", from.port()));
        }
        if life.permit_until_ms <= now.ms {
            let reason =
                format!("{mac} has joined already since it booted, or too long ago: boot it again");
            life.refusal = Some(reason.clone());
            return refuse(reason);
        }
        life.seen_ms = now.ms;
        let is_confirmed = match life.confirmed {
            Some(only) => only == key,
            None => self.approve == Approve::Once,
        };
        if machine.is_approved && is_confirmed {
            life.permit_until_ms = 0;
            life.asking.clear();
            life.refusal = None;
            if life.stage != Stage::Joining {
                (life.stage, life.stage_s) = (Stage::Joining, now.wall_s);
            }
            return Verdict::Accept {
                name: machine.name.clone(),
            };
        }
        if life.stage != Stage::AwaitsApproval {
            (life.stage, life.stage_s) = (Stage::AwaitsApproval, now.wall_s);
        }
        life.refusal = None;
        if !life.asking.iter().any(|(_, known)| *known == key) {
            if life.asking.len() >= MAX_KEYS {
                life.asking.remove(0);
            }
            life.asking.push((code.to_owned(), key));
        }
        // While somebody waits, the permit does not run out.
        life.permit_until_ms = now.ms + PERMIT_MS;
        Verdict::Await {
            code: code.to_owned(),
        }
    }

    /// Somebody has read this code on the machine's console. Returns what the store has to keep.
    ///
    /// # Errors
    /// No machine shows such a code.
    pub fn approve(&mut self, text: &str, code: &str) -> Result<&Machine, Refusal> {
        let mac = self.find(text)?.mac;
        let digits = |text: &str| {
            text.chars()
                .filter(char::is_ascii_digit)
                .collect::<String>()
        };
        let waiting = self
            .lives
            .get_mut(&mac)
            .filter(|life| !life.asking.is_empty());
        let Some(life) = waiting else {
            return Err(Refusal::new(
                format!("{text} does not wait for approval now"),
                format!("`wiglaf node why {text}` tells how far it is"),
            ));
        };
        let typed = digits(code);
        let shown: Vec<Key> = life
            .asking
            .iter()
            .filter(|(shown, _)| digits(shown) == typed)
            .map(|(_, key)| *key)
            .collect();
        match shown.as_slice() {
            [only] => life.confirmed = Some(*only),
            [] => {
                return Err(Refusal::new(
                    format!("{text} asks with another code than {code}"),
                    "compare it with the machine's console: if it shows this one, somebody else \
                     asks in its name",
                ));
            }
            _ => {
                return Err(Refusal::new(
                    format!("two machines ask as {text} with this code: one of them is forged"),
                    "find out who else is on that wire, and start the machine again",
                ));
            }
        }
        let machine = self.known.get_mut(&mac);
        let machine = machine.ok_or_else(|| Refusal::new("it is gone", "adopt it again"))?;
        machine.is_approved = true;
        Ok(machine)
    }

    /// The node has joined.
    pub fn is_up(&mut self, now: Now, name: &str) {
        let mac = self.known.values().find(|m| m.name == name).map(|m| m.mac);
        if let Some(life) = mac.and_then(|mac| self.lives.get_mut(&mac)) {
            (life.stage, life.stage_s) = (Stage::Up, now.wall_s);
            (life.refusal, life.confirmed) = (None, None);
        }
        if let Some(window) = &mut self.window
            && window.last == mac
        {
            window.last = None;
        }
    }
}

/// An IPv4 address that came by an IPv6 socket is the IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
