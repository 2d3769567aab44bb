//! What is told to the head: at once, or kept for the next one while none is there.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use wiglaf_link::{Channel, LinkError};
use wiglaf_wire::boot::{FromBoot, Mac, Sighting, Stage, ToBoot};

/// Messages that are kept while no head is there; the oldest go first.
const MAX_KEPT: usize = 4096;
/// Bytes of lines among them.
const MAX_KEPT_BYTES: usize = 4 << 20;
/// The same stage of the same machine is told again after this.
const REPEAT_MS: u64 = 10_000;
/// Machines whose last stage is remembered.
const MAX_REMEMBERED: usize = 8192;
/// Sightings per second, of all machines together.
const MAX_SIGHTINGS_PER_S: u32 = 500;

pub(super) type HeadChannel = Channel<ToBoot, FromBoot>;

/// The way to the head.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    head: Option<HeadChannel>,
    kept: VecDeque<FromBoot>,
    kept_bytes: usize,
    told: HashMap<Mac, (Stage, u64)>,
    second: u64,
    in_second: u32,
}

impl Outlet {
    /// A head came; it hears first what the last one has missed.
    pub(super) fn welcome(&mut self, channel: HeadChannel) {
        self.head = Some(channel);
        self.kept_bytes = 0;
        for message in std::mem::take(&mut self.kept) {
            self.tell(message);
        }
    }

    pub(super) fn head(&mut self) -> Option<&mut HeadChannel> {
        self.head.as_mut()
    }

    pub(super) fn drop_head(&mut self) -> Option<HeadChannel> {
        self.head.take()
    }

    /// Queues a message.
    pub(super) fn tell(&mut self, message: FromBoot) {
        let Some(head) = &mut self.head else {
            return self.keep(message);
        };
        match head.queue(&message, Vec::new()) {
            // Too long for a frame: only lines could be, and they are bounded.
            Ok(()) | Err(LinkError::Frame(_)) => {}
            // It is found out at the next flush.
            Err(_) => self.keep(message),
        }
    }

    fn keep(&mut self, message: FromBoot) {
        // The next head is told anew what the settings that it sends come to.
        if matches!(message, FromBoot::Ready { .. }) {
            return;
        }
        self.kept_bytes += bytes_of(&message);
        self.kept.push_back(message);
        while self.kept.len() > MAX_KEPT || self.kept_bytes > MAX_KEPT_BYTES {
            let Some(oldest) = self.kept.pop_front() else {
                return;
            };
            self.kept_bytes -= bytes_of(&oldest);
        }
    }

    /// Tells that a machine has come so far, unless that was told just now.
    pub(super) fn seen(
        &mut self,
        now_ms: u64,
        mac: Mac,
        stage: Stage,
        interface: &str,
        address: Ipv4Addr,
    ) {
        let last = self.told.get(&mac);
        if last.is_some_and(|(told, at_ms)| *told == stage && now_ms - at_ms < REPEAT_MS) {
            return;
        }
        if self.second != now_ms / 1000 {
            self.second = now_ms / 1000;
            self.in_second = 0;
        }
        if self.in_second == MAX_SIGHTINGS_PER_S {
            return;
        }
        self.in_second += 1;
        if self.told.len() >= MAX_REMEMBERED {
            self.told.clear();
        }
        self.told.insert(mac, (stage, now_ms));
        self.tell(FromBoot::Seen(Sighting {
            mac,
            stage,
            interface: interface.to_owned(),
            client: None,
            address: Some(address),
        }));
    }
}

fn bytes_of(message: &FromBoot) -> usize {
    match message {
        FromBoot::Lines { lines, .. } => lines.iter().map(String::len).sum(),
        FromBoot::Seen(_) | FromBoot::Problem { .. } | FromBoot::Ready { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> FromBoot {
        FromBoot::Lines {
            mac: Mac([2; 6]),
            lines: vec![text.to_owned()],
        }
    }

    fn pair() -> (HeadChannel, Channel<FromBoot, ToBoot>) {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        (
            Channel::new(a.into()).unwrap(),
            Channel::new(b.into()).unwrap(),
        )
    }

    #[test]
    fn the_next_head_hears_what_was_missed() {
        let mut outlet = Outlet::default();
        for number in 0..MAX_KEPT + 3 {
            outlet.tell(lines(&number.to_string()));
        }
        let (ours, mut heads) = pair();
        outlet.welcome(ours);
        outlet.tell(lines("last"));
        outlet.head().unwrap().wait_flushed().unwrap();
        assert_eq!(heads.wait_message().unwrap(), lines("3"));
        let mut last = None;
        for _ in 0..MAX_KEPT {
            last = Some(heads.wait_message().unwrap());
        }
        assert_eq!(last, Some(lines("last")));
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes() {
        let mut outlet = Outlet::default();
        for _ in 0..100 {
            outlet.tell(lines(&"x".repeat(1 << 20)));
        }
        assert_eq!(outlet.kept.len(), 4);
    }

    #[test]
    fn a_machine_that_only_repeats_itself_is_told_now_and_then() {
        let mut outlet = Outlet::default();
        let address = Ipv4Addr::new(10, 9, 0, 17);
        let mut see = |now_ms, last, stage| {
            outlet.seen(now_ms, Mac([2, 0, 0, 0, 0, last]), stage, "eth1", address);
            outlet.kept.len()
        };
        assert_eq!(see(0, 1, Stage::Script), 1);
        assert_eq!(see(5000, 1, Stage::Script), 1);
        assert_eq!(see(5000, 1, Stage::Kernel), 2);
        assert_eq!(see(6000, 2, Stage::Script), 3);
        assert_eq!(see(15_000, 1, Stage::Kernel), 4);
        for number in 0..=255 {
            for _ in 0..4 {
                see(20_500, number, Stage::Script);
                see(20_500, number, Stage::Kernel);
            }
        }
        assert_eq!(outlet.kept.len(), 4 + MAX_SIGHTINGS_PER_S as usize);
    }
}
