//! Two machines with one Ethernet address, as copied virtual machines have.
//!
//! A machine's UUID is the same in all that runs on it. Its client identifier is not: firmware,
//! iPXE and the system each have their own, and an initramfs may have another than the system
//! after it. So a new UUID tells at once, an identifier only when the one before comes again.

/// What spoke longer ago than this may have been switched off since, or its card moved.
const ACTIVE_MS: u64 = 600_000;

/// An identifier, with what it came from and when.
#[derive(Clone, Debug)]
struct Named {
    words: &'static str,
    identifier: Vec<u8>,
    at_ms: u64,
}

/// What was last heard under one Ethernet address.
#[derive(Clone, Debug, Default)]
pub(super) struct Twins {
    uuid: Option<([u8; 16], u64)>,
    current: Option<Named>,
    former: Option<Named>,
}

/// By what two machines are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Both UUIDs, the earlier first.
    Uuids([u8; 16], [u8; 16]),
    /// Their client identifiers.
    Identifiers,
}

impl Twins {
    /// Whether the one heard now is another than one that is active.
    pub(super) fn heard(
        &mut self,
        now_ms: u64,
        words: &'static str,
        uuid: Option<[u8; 16]>,
        identifier: Option<&[u8]>,
    ) -> Option<Sign> {
        let mut sign = None;
        if let Some(uuid) = uuid {
            if let Some((before, at_ms)) = self.uuid
                && now_ms.saturating_sub(at_ms) < ACTIVE_MS
                && before != uuid
                && before != swapped(uuid)
            {
                sign = Some(Sign::Uuids(before, uuid));
            }
            self.uuid = Some((uuid, now_ms));
        }
        let Some(identifier) = identifier else {
            return sign;
        };
        let named = Named {
            words,
            identifier: identifier.to_vec(),
            at_ms: now_ms,
        };
        let is_same = |other: &Named| other.words == words && other.identifier == identifier;
        if !self.current.as_ref().is_some_and(is_same) {
            let comes_again = self.former.as_ref().is_some_and(|former| {
                is_same(former) && now_ms.saturating_sub(former.at_ms) < ACTIVE_MS
            });
            let is_alike = self
                .current
                .as_ref()
                .is_some_and(|current| current.words == words);
            if comes_again && is_alike {
                sign = sign.or(Some(Sign::Identifiers));
            }
            self.former = self.current.take();
        }
        self.current = Some(named);
        sign
    }
}

/// The same UUID as firmware writes it that takes its first three numbers for little-endian.
fn swapped(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

/// As people read it elsewhere: firmware sends it as it stands in its tables.
pub(super) fn uuid_text(uuid: [u8; 16]) -> String {
    let uuid = swapped(uuid);
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
