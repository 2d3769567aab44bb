use super::*;
use proptest::prelude::*;

const ADAPTIVE: (Compression, Kind) = (Compression::Adaptive, Kind::Message);

fn wire(bytes_per_s: u64) -> Way {
    Way {
        bytes_per_s,
        waiting_bytes: 0,
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn text(length: usize) -> Vec<u8> {
    let words = noise(length).into_iter().map(|byte| byte % 16 + b'a');
    words.collect()
}

fn chosen(judge: &mut Judge, way: Way) -> Option<i32> {
    judge.choose(128 << 10, way).map(|level| level.number)
}

#[test]
fn the_level_follows_the_wire() {
    let mut judge = Judge::default();
    assert_eq!(chosen(&mut judge, wire(1_000_000)), Some(6));
    assert_eq!(chosen(&mut judge, wire(12_000_000)), Some(3));
    assert_eq!(chosen(&mut judge, wire(119_000_000)), Some(1));
    assert_eq!(chosen(&mut judge, wire(1_200_000_000)), None);
    assert_eq!(chosen(&mut judge, wire(0)), Some(3), "not measured yet");
}

#[test]
fn what_waits_behind_others_has_time_to_be_compressed() {
    let fast = 250_000_000;
    let busy = Way {
        bytes_per_s: fast,
        waiting_bytes: 1 << 20,
    };
    let mut judge = Judge::default();
    assert_eq!(chosen(&mut judge, wire(fast)), None);
    assert!(chosen(&mut judge, busy).is_some());
}

#[test]
fn a_slow_processor_and_poor_data_are_learnt_and_forgotten() {
    let gigabit = wire(119_000_000);
    for (zipped, took_ms) in [(120_000, 0), (50_000, 5)] {
        let mut judge = Judge::default();
        for _ in 0..40 {
            let took = Duration::from_millis(took_ms) + Duration::from_micros(300);
            judge.learn(&LEVELS[0], 128 << 10, zipped, took);
        }
        assert_eq!(chosen(&mut judge, gigabit), None);
        let again = (0..500).any(|_| chosen(&mut judge, gigabit).is_some());
        assert!(again, "it is never tried again");
    }
}

#[test]
fn a_burst_is_not_the_speed_of_the_wire() {
    let mut gauge = Gauge::default();
    let mut way = tcp::Way {
        bytes_per_s: 200,
        ..tcp::Way::default()
    };
    assert_eq!(gauge.read(way), 200);
    (way.arrived_bytes, way.busy_us) = (120, 1_000_000);
    assert_eq!(gauge.read(way), 120);
    way.busy_us += GAUGE_US - 1;
    assert_eq!(gauge.read(way), 120, "too short a time to tell");
    way.busy_us += 1_000_000;
    assert_eq!(gauge.read(way), 66, "round trips of small frames");
    way.bytes_per_s = 50;
    assert_eq!(gauge.read(way), 16);
}

#[test]
fn noise_is_hardly_tried_and_text_after_it_is_found_soon() {
    let (noise, text) = (noise(64 << 10), text(64 << 10));
    let mut zipper = Zipper::default();
    let mut tried = 0;
    for _ in 0..640 {
        let way = || {
            tried += 1;
            wire(1_000_000)
        };
        assert!(!zipper.zip(ADAPTIVE, &noise, way));
    }
    assert!(tried <= 26, "{tried} of 640");
    let data = (Compression::Adaptive, Kind::Data);
    assert!(zipper.zip(data, &text, || wire(1_000_000)), "other frames");
    let found = (0..32).position(|_| zipper.zip(ADAPTIVE, &text, || wire(1_000_000)));
    assert!(found.is_some());
}

#[test]
fn short_frames_and_unwilling_links_are_left_alone() {
    let mut zipper = Zipper::default();
    let way = || unreachable!("nothing is asked");
    assert!(!zipper.zip(ADAPTIVE, &text(MIN_BYTES - 1), way));
    let never = (Compression::Never, Kind::Message);
    assert!(!zipper.zip(never, &text(1 << 20), way));
    assert!(zipper.compressor.is_none());
}

#[test]
fn what_expands_too_much_is_padded() {
    for length in [MIN_BYTES, 100_001, 1 << 20, 4 << 20] {
        let zeros = vec![0; length];
        let mut zipper = Zipper::default();
        assert!(zipper.zip(ADAPTIVE, &zeros, || wire(1_000_000)));
        let zipped = zipper.zipped().len();
        assert!(zipped * MAX_EXPANSION >= length && zipped <= length / 8);
        let mut unzipper = Unzipper::default();
        unzipper.open(zipper.zipped(), length).unwrap();
        assert_eq!(unzipper.content(), zeros);
    }
}

#[test]
fn memory_is_given_back_when_nothing_is_compressed_any_more() {
    let (mut zipper, mut unzipper) = (Zipper::default(), Unzipper::default());
    assert!(zipper.zip(ADAPTIVE, &text(1 << 20), || wire(1_000_000)));
    unzipper.open(zipper.zipped(), 1 << 20).unwrap();
    for _ in 0..IDLE_USES {
        assert!(!zipper.zip(ADAPTIVE, b"small", || wire(1_000_000)));
        unzipper.rest();
    }
    assert!(zipper.compressor.is_none() && zipper.zipped.capacity() == 0);
    assert!(unzipper.decompressor.is_none() && unzipper.content.capacity() == 0);
}

#[test]
fn a_bomb_uses_no_more_memory_than_it_declares() {
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    let mut unzipper = Unzipper::default();
    assert_eq!(unzipper.open(&bomb, 1000), Err(FrameError::NotZipped));
    assert!(unzipper.content.capacity() <= 1000);
    // Less than declared is no better.
    let short = zstd::bulk::compress(&[7; 999], 1).unwrap();
    assert_eq!(unzipper.open(&short, 1000), Err(FrameError::NotZipped));
}

proptest! {
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), length in 1usize..5000) {
        let mut unzipper = Unzipper::default();
        if unzipper.open(&bytes, length).is_ok() {
            prop_assert_eq!(unzipper.content().len(), length);
        }
    }
}
