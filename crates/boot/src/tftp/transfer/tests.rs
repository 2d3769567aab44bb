use super::*;
use proptest::prelude::*;

/// Reads as a ROM does, over a wire that loses, doubles and delays.
struct Client {
    got: Vec<u8>,
    expected: u16,
    block_bytes: usize,
    window: usize,
    in_window: usize,
    is_done: bool,
}

impl Client {
    fn new() -> Client {
        Client {
            got: Vec::new(),
            expected: 1,
            block_bytes: 512,
            window: 1,
            in_window: 0,
            is_done: false,
        }
    }

    fn acknowledgement(block: u16) -> Vec<u8> {
        [[0, 4], block.to_be_bytes()].concat()
    }

    fn receive(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let kind = u16::from_be_bytes([packet[0], packet[1]]);
        if kind == 6 {
            let words: Vec<_> = packet[2..].split(|byte| *byte == 0).collect();
            for pair in words.chunks(2).filter(|pair| pair.len() == 2) {
                let value = || std::str::from_utf8(pair[1]).unwrap().parse().unwrap();
                match pair[0] {
                    b"blksize" => self.block_bytes = value(),
                    b"windowsize" => self.window = value(),
                    _ => {}
                }
            }
            return (self.got.is_empty() && self.expected == 1).then(|| Self::acknowledgement(0));
        }
        assert_eq!(kind, 3);
        let block = u16::from_be_bytes([packet[2], packet[3]]);
        if block != self.expected {
            self.in_window = 0;
            return Some(Self::acknowledgement(self.expected.wrapping_sub(1)));
        }
        self.got.extend(&packet[4..]);
        self.expected = self.expected.wrapping_add(1);
        self.in_window += 1;
        self.is_done = packet.len() - 4 < self.block_bytes;
        if self.is_done || self.in_window == self.window {
            self.in_window = 0;
            return Some(Self::acknowledgement(self.expected.wrapping_sub(1)));
        }
        None
    }
}

fn request(block_bytes: Option<u32>, window: Option<u32>) -> Request {
    Request {
        name: "x".to_owned(),
        block_bytes,
        window,
        ..Request::default()
    }
}

fn file(length: usize) -> Rc<[u8]> {
    (0..=250).cycle().take(length).collect()
}

/// Until the client has it all; each packet's fate comes from `fates`. Returns packets sent.
fn transfer(request: &Request, file: &Rc<[u8]>, fates: &[u8]) -> (Client, Outcome, usize) {
    let mut fates = fates.iter().copied();
    let mut client = Client::new();
    let mut now_ms = 5;
    let (mut transfer, first) = Transfer::new(now_ms, request, Rc::clone(file));
    let mut under_way: std::collections::VecDeque<_> = first.into();
    let mut count = under_way.len();
    while transfer.outcome().is_none() {
        let Some(packet) = under_way.pop_front() else {
            now_ms = transfer.due_ms();
            under_way.extend(transfer.wake(now_ms));
            count += under_way.len();
            continue;
        };
        let times = match fates.next().unwrap_or(9) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..times {
            let Some(answer) = client.receive(&packet) else {
                continue;
            };
            if fates.next().unwrap_or(9) == 0 {
                continue;
            }
            let more = transfer.packet(now_ms, &answer);
            count += more.len();
            under_way.extend(more);
        }
    }
    (client, transfer.outcome().unwrap(), count)
}

#[test]
fn files_arrive_whole_in_blocks_of_any_size() {
    for length in [0, 1, 511, 512, 513, 1024, 100_000] {
        for blocks in [None, Some(8), Some(512), Some(1468), Some(65464)] {
            for window in [None, Some(1), Some(4), Some(64)] {
                let file = file(length);
                let (client, outcome, _) = transfer(&request(blocks, window), &file, &[]);
                assert_eq!(outcome, Outcome::Done);
                assert!(client.is_done && client.got == *file, "{length} {blocks:?}");
            }
        }
    }
}

#[test]
fn block_numbers_roll_over() {
    let file = file(70_000 * 8 + 3);
    for window in [None, Some(7)] {
        let (client, outcome, _) = transfer(&request(Some(8), window), &file, &[]);
        assert_eq!(outcome, Outcome::Done);
        assert!(client.got == *file);
    }
}

#[test]
fn duplicates_do_not_multiply() {
    let file = file(100 * 512);
    // One packet of the first blocks comes twice: the Sorcerer's Apprentice would send every
    // later block twice.
    let (client, outcome, count) = transfer(&request(None, None), &file, &[9, 9, 1, 9, 9, 9]);
    assert_eq!(outcome, Outcome::Done);
    assert!(client.got == *file);
    assert_eq!(count, 101);
}

#[test]
fn options_are_answered_and_bounded() {
    let wish = Request {
        name: "x".to_owned(),
        block_bytes: Some(65464),
        window: Some(65535),
        timeout_s: Some(3),
        wants_size: true,
    };
    let (transfer, packets) = Transfer::new(0, &wish, file(1000));
    let expected = b"\0\x06blksize\x001468\0timeout\x003\0tsize\x001000\0windowsize\x0032\0";
    assert_eq!(packets, [expected.to_vec()]);
    assert_eq!(transfer.due_ms(), 3000);
    // What can't be is not agreed to.
    let (_, packets) = Transfer::new(
        0,
        &Request {
            block_bytes: Some(7),
            window: Some(0),
            timeout_s: Some(0),
            ..wish
        },
        file(1000),
    );
    assert_eq!(packets, [b"\0\x06tsize\x001000\0".to_vec()]);
}

#[test]
fn a_silent_client_is_given_up_after_pauses_that_grow() {
    let (mut transfer, first) = Transfer::new(0, &request(None, None), file(2000));
    assert_eq!(first.len(), 1);
    let mut dues = Vec::new();
    while transfer.outcome().is_none() {
        assert!(transfer.wake(transfer.due_ms() - 1).is_empty());
        dues.push(transfer.due_ms());
        let again = transfer.wake(transfer.due_ms());
        assert!(again == first || transfer.outcome().is_some());
    }
    assert_eq!(dues, [500, 1500, 3500, 7500, 15_500, 23_500, 31_500]);
    assert_eq!(transfer.outcome(), Some(Outcome::Silent));
}

#[test]
fn an_error_ends_it() {
    let (mut transfer, _) = Transfer::new(0, &request(Some(512), None), file(2000));
    assert!(transfer.packet(1, b"\0\x05\0\x08no\0").is_empty());
    assert_eq!(transfer.outcome(), Some(Outcome::Refused));
}

proptest! {
    #[test]
    fn a_bad_wire_only_delays(
        fates in proptest::collection::vec(0_u8..10, 0..400),
        length in 0_usize..20_000,
        window in proptest::option::of(1_u32..10),
    ) {
        let file = file(length);
        let (client, outcome, _) = transfer(&request(Some(100), window), &file, &fates);
        // Only what is lost every time does not arrive, or is not known to have.
        let lost = fates.iter().filter(|fate| **fate == 0).count();
        prop_assert!(outcome == Outcome::Done || lost > MAX_REPEATS as usize);
        prop_assert!(outcome != Outcome::Done || client.got == *file);
        prop_assert!(file.starts_with(&client.got));
    }

    #[test]
    fn strange_packets_do_no_harm(packets in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..20), 0..50)) {
        let (mut transfer, _) = Transfer::new(0, &request(None, Some(4)), file(5000));
        for packet in packets {
            prop_assert!(transfer.packet(1, &packet).len() <= 4);
            let as_acknowledgement = [[0, 4].as_slice(), &packet].concat();
            prop_assert!(transfer.packet(1, &as_acknowledgement).len() <= 4);
        }
    }
}
