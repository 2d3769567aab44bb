use super::*;
use proptest::prelude::*;

fn linked() -> (Sender, Receiver, Buffers) {
    let (mut sender, mut receiver, mut buffers) =
        (Sender::default(), Receiver::default(), Buffers::default());
    sender.passed_on(receiver.relink(), &mut buffers).unwrap();
    (sender, receiver, buffers)
}

#[test]
fn nothing_is_read_before_the_receiver_speaks() {
    let mut sender = Sender::default();
    assert_eq!(sender.room(), 0);
    sender.passed_on(0, &mut Buffers::default()).unwrap();
    assert_eq!(sender.room() as u64, WINDOW_BYTES);
}

#[test]
fn the_window_closes_and_opens() {
    let (mut sender, mut receiver, mut buffers) = linked();
    sender.push(&mut vec![1; sender.room()]);
    assert_eq!(sender.room(), 0);
    while let Some((offset, piece)) = sender.next_piece() {
        let fresh = receiver.accept(offset, piece).unwrap();
        receiver.keep(fresh);
    }
    assert_eq!(receiver.next_report(), None);
    receiver.wrote_pending(1000);
    assert_eq!(
        receiver.next_report(),
        None,
        "too little to be worth a message"
    );
    receiver.wrote_pending(REPORT_BYTES.try_into().unwrap());
    let report = receiver.next_report().unwrap();
    sender.passed_on(report, &mut buffers).unwrap();
    assert_eq!(sender.room() as u64, report);
}

#[test]
fn gaps_repeats_and_floods_are_errors() {
    let (_, mut receiver, _) = linked();
    receiver.accept(0, b"abc").unwrap();
    let expected = 3;
    assert_eq!(
        receiver.accept(4, b"x"),
        Err(FlowError::Offset { came: 4, expected })
    );
    assert_eq!(
        receiver.accept(2, b"x"),
        Err(FlowError::Offset { came: 2, expected })
    );
    assert_eq!(
        receiver.accept(3, &vec![0; 1 << 20]),
        Err(FlowError::Window)
    );
    assert_eq!(
        receiver.end_at(2),
        Err(FlowError::Offset { came: 2, expected })
    );
    receiver.end_at(3).unwrap();
    assert_eq!(receiver.accept(3, b"x"), Err(FlowError::AfterEnd));
}

#[test]
fn false_reports_are_errors() {
    let (mut sender, _, mut buffers) = linked();
    sender.push(&mut b"abc".to_vec());
    assert!(
        sender.passed_on(1, &mut buffers).is_err(),
        "nothing was sent yet"
    );
    sender.next_piece().unwrap();
    sender.passed_on(2, &mut buffers).unwrap();
    assert!(sender.passed_on(1, &mut buffers).is_err());
    assert!(sender.passed_on(4, &mut buffers).is_err());
}

#[test]
fn the_end_is_told_once_per_link_and_done_when_all_is_passed_on() {
    let (mut sender, mut receiver, mut buffers) = linked();
    sender.push(&mut b"abc".to_vec());
    sender.end();
    assert_eq!(sender.next_end(), None);
    sender.next_piece().unwrap();
    assert_eq!(sender.next_end(), Some(3));
    assert_eq!(sender.next_end(), None);
    sender.unlink();
    sender.passed_on(receiver.relink(), &mut buffers).unwrap();
    let (offset, piece) = sender.next_piece().unwrap();
    let fresh = receiver.accept(offset, piece).unwrap().len();
    receiver.wrote(fresh);
    receiver.end_at(sender.next_end().unwrap()).unwrap();
    assert!(receiver.is_done() && !sender.is_done());
    sender
        .passed_on(receiver.next_report().unwrap(), &mut buffers)
        .unwrap();
    assert!(sender.is_done());
}

#[test]
fn a_broken_stream_is_done_and_lets_late_bytes_fall() {
    let (mut sender, mut receiver, mut buffers) = linked();
    sender.push(&mut b"abc".to_vec());
    receiver.break_off();
    let (offset, piece) = sender.next_piece().unwrap();
    assert_eq!(receiver.accept(offset, piece), Ok(&[][..]));
    sender.break_off();
    assert!(sender.is_done() && sender.room() == 0);
    sender.passed_on(0, &mut buffers).unwrap();
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Read(usize),
    Send,
    Deliver,
    Write(usize),
    Report,
    Reports,
    BreakLink,
    Relink,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..200_000).prop_map(Step::Read),
        4 => (1usize..20).prop_map(Step::Read),
        6 => Just(Step::Send),
        6 => Just(Step::Deliver),
        6 => (1usize..300_000).prop_map(Step::Write),
        3 => Just(Step::Report),
        3 => Just(Step::Reports),
        1 => Just(Step::BreakLink),
        3 => Just(Step::Relink),
    ]
}

/// The byte at an offset of the stream that the test sends.
fn byte_at(offset: u64) -> u8 {
    (offset % 251).to_le_bytes()[0]
}

proptest! {
    #[test]
    fn bytes_arrive_once_and_in_order_within_the_window(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let (mut sender, mut receiver) = (Sender::default(), Receiver::default());
        let mut buffers = Buffers::default();
        let mut forth: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        let mut back: VecDeque<u64> = VecDeque::new();
        let (mut read, mut written, mut up) = (0u64, 0u64, false);
        let mut finishing = Vec::new();
        for _ in 0..400 {
            use Step::*;
            finishing.extend([Relink, Reports, Send, Deliver, Write(300_000), Report]);
        }
        let before = steps.len();
        for (index, step) in steps.into_iter().chain(finishing).enumerate() {
            if index == before {
                sender.end();
            }
            match step {
                Step::Read(count) => {
                    let count = count.min(sender.room());
                    let mut bytes = buffers.take();
                    bytes.extend((read..read + count as u64).map(byte_at));
                    sender.push(&mut bytes);
                    read += count as u64;
                }
                Step::Send => {
                    while let Some((offset, piece)) = sender.next_piece() {
                        forth.push_back((offset, piece.to_vec()));
                    }
                }
                Step::Deliver => {
                    if let Some((offset, bytes)) = forth.pop_front() {
                        let fresh = receiver.accept(offset, &bytes).unwrap().to_vec();
                        let now = if receiver.pending().is_empty() { fresh.len() / 2 } else { 0 };
                        for byte in &fresh[..now] {
                            prop_assert_eq!(*byte, byte_at(written));
                            written += 1;
                        }
                        receiver.wrote(now);
                        receiver.keep(&fresh[now..]);
                    }
                }
                Step::Write(count) => {
                    let count = count.min(receiver.pending().len());
                    for byte in &receiver.pending()[..count] {
                        prop_assert_eq!(*byte, byte_at(written));
                        written += 1;
                    }
                    receiver.wrote_pending(count);
                }
                Step::Report => back.extend(up.then(|| receiver.next_report()).flatten()),
                Step::Reports => {
                    for report in back.drain(..) {
                        sender.passed_on(report, &mut buffers).unwrap();
                    }
                }
                Step::BreakLink => {
                    sender.unlink();
                    forth.clear();
                    back.clear();
                    up = false;
                }
                Step::Relink if !up => {
                    back.push_back(receiver.relink());
                    up = true;
                }
                Step::Relink => {}
            }
            prop_assert!(written <= read && read - sender.passed <= WINDOW_BYTES);
            let flying: usize = forth.iter().map(|(_, bytes)| bytes.len()).sum();
            prop_assert!(flying as u64 <= WINDOW_BYTES);
        }
        prop_assert_eq!(written, read);
        prop_assert!(sender.is_done());
    }
}
