//! Framing seen from outside: the fixtures that clang made, streams cut everywhere, and programs
//! compared with two other interpreters.

use std::num::NonZeroUsize;
use std::time::Duration;

use bus_core::framing::bpf::{Fault, Outcome, Program, VerifyError};
use bus_core::framing::object::ObjectError;
use bus_core::framing::{
    Assembly, BpfFramer, Endianness, FrameError, Framer, LengthPrefix, LoadError, Unisono, Unread,
    Width,
};
use bus_core::wire::MAGIC;
use proptest::prelude::*;

use generate::{Kinds, ins, program};
use rules::{MAXIMUM_BYTES, frames, hold_to_the_rules, same_as_the_reference};

#[path = "framing/generate.rs"]
mod generate;
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "naive on purpose")]
#[path = "framing/reference.rs"]
mod reference;
#[path = "framing/rules.rs"]
mod rules;

#[expect(clippy::disallowed_methods, reason = "the caller brings the clock, and that is here")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

const THRIFT: &[u8] = include_bytes!("fixtures/thrift.bpf.o");
const NETSTRING: &[u8] = include_bytes!("fixtures/netstring.bpf.o");
const VARINT: &[u8] = include_bytes!("fixtures/varint.bpf.o");
const MAP: &[u8] = include_bytes!("fixtures/map.bpf.o");

fn load(object: &[u8]) -> BpfFramer {
    BpfFramer::load(object).expect("the fixture is good")
}

fn measure(framer: &dyn Framer, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let found = framer.measure(Unread::from(bytes))?;
    Ok(found.map(NonZeroUsize::get))
}

fn assembly(timeout: Option<Duration>) -> Assembly {
    let maximum = NonZeroUsize::new(MAXIMUM_BYTES).expect("is not 0");
    Assembly::new(maximum, timeout)
}

/// A name, its framer, and messages in its format.
type Format = (&'static str, Box<dyn Framer>, Vec<Vec<u8>>);

fn formats() -> Vec<Format> {
    let thrift = |length: u8| [&[0, 0, 0, length][..], &vec![length; length.into()]].concat();
    let varint = |length: u8| match length {
        0..128 => [&[length][..], &vec![1; length.into()]].concat(),
        // The longest form of it.
        _ => vec![0x80 | (length - 128), 0x80, 0x80, 0],
    };
    let frame = |length: u8| {
        let mut frame = vec![length; length.into()];
        frame[..4].copy_from_slice(&[length, 0, 0, 0]);
        frame
    };
    let big = LengthPrefix::new(0, Width::Four, Endianness::Big, 4).expect("frames something");
    let two = LengthPrefix::new(3, Width::Two, Endianness::Little, 0).expect("frames something");
    vec![
        ("Thrift, by the program", Box::new(load(THRIFT)), [0, 1, 5, 96].map(thrift).to_vec()),
        ("Thrift, by the prefix", Box::new(big), [0, 1, 5, 96].map(thrift).to_vec()),
        (
            "netstrings",
            Box::new(load(NETSTRING)),
            vec![
                b"0:,".to_vec(),
                b"5:hello,".to_vec(),
                b"12:hello, world,".to_vec(),
                b"01:x,".to_vec(),
            ],
        ),
        ("varints", Box::new(load(VARINT)), [0, 1, 99, 128].map(varint).to_vec()),
        (
            "little-endian at an offset",
            Box::new(two),
            vec![vec![9, 9, 9, 5, 0], vec![9, 9, 9, 7, 0, 1, 2], vec![0, 0, 0, 6, 0, 0]],
        ),
        ("Unisono", Box::new(Unisono), vec![MAGIC.to_vec(), frame(16), frame(17), frame(99)]),
    ]
}

#[test]
fn the_thrift_program_of_the_seed_runs_unchanged() {
    let thrift = load(THRIFT);
    assert_eq!(thrift.program().instructions(), 4);
    for short in 0..4 {
        assert_eq!(measure(&thrift, &[0, 0, 0, 16][..short]), Ok(None), "{short} bytes");
    }
    assert_eq!(measure(&thrift, &[0, 0, 0, 16]), Ok(Some(20)));
    assert_eq!(measure(&thrift, &[0, 1, 0, 0, 9]), Ok(Some(65540)));
    let raw = [
        ins(0xbf, 6, 1, 0, 0),
        ins(0x20, 0, 0, 0, 0),
        ins(0x07, 0, 0, 0, 4),
        ins(0x95, 0, 0, 0, 0),
    ];
    let raw = BpfFramer::load(&raw.concat()).expect("the same program");
    assert_eq!(measure(&raw, &[0, 0, 0, 16]), Ok(Some(20)));
}

#[test]
fn a_result_is_read_as_the_kernel_reads_it() {
    let rows = [
        ("the least length", 0, Ok(Some(4))),
        ("the greatest", 0x7fff_fffb, Ok(Some(0x7fff_ffff))),
        ("one more is negative", 0x7fff_fffc, Err(-0x8000_0000)),
        ("an error number", 0xffff_ffba, Err(-66)),
        ("the last negative", 0xffff_fffb, Err(-1)),
        ("0 needs more", 0xffff_fffc, Ok(None)),
        ("it wraps", 0xffff_fffd, Ok(Some(1))),
        ("the greatest field gives 3", 0xffff_ffff, Ok(Some(3))),
    ];
    let thrift = load(THRIFT);
    for (case, field, expected) in rows {
        let field: u32 = field;
        let expected = expected.map_err(|result| FrameError::Program { result });
        assert_eq!(measure(&thrift, &field.to_be_bytes()), expected, "{case}");
    }
}

#[test]
fn a_length_within_what_was_already_seen_is_eproto() {
    let thrift = load(THRIFT);
    let (together, end) = frames(&thrift, &[0xff; 4], 4);
    assert_eq!((together, end), (vec![3], None), "3 bytes are beyond none");
    let (one_by_one, end) = frames(&thrift, &[0xff; 4], 1);
    let error = FrameError::NoProgress { given: 3, seen: 3 };
    assert_eq!((one_by_one, end), (vec![], Some(error)));
    assert_eq!(error.errno(), 71, "EPROTO");
    let (halves, _) = frames(&thrift, &[0xff; 4], 2);
    assert_eq!(halves, [3], "3 bytes are beyond 2");
}

#[test]
fn a_message_above_the_maximum_is_emsgsize() {
    let thrift = load(THRIFT);
    let most = u32::try_from(MAXIMUM_BYTES).unwrap();
    let (found, end) = frames(&thrift, &[&[0, 0, 0, 96][..], &[0; 96]].concat(), 7);
    assert_eq!((found, end), (vec![MAXIMUM_BYTES], None), "the maximum itself is fine");
    for over in [most - 3, 0x7fff_fffb] {
        let (found, end) = frames(&thrift, &over.to_be_bytes(), 4);
        let error = FrameError::TooLong { given: u64::from(over) + 4, maximum: MAXIMUM_BYTES };
        assert_eq!((found, end), (vec![], Some(error)));
        assert_eq!(error.errno(), 90, "EMSGSIZE");
    }
    // A length of 0xfffffffc makes the program ask for more for ever.
    let (found, end) = frames(&thrift, &[&[0xff, 0xff, 0xff, 0xfc][..], &[0; 200]].concat(), 1);
    let error = FrameError::TooLong { given: 100, maximum: MAXIMUM_BYTES };
    assert_eq!((found, end), (vec![], Some(error)), "and gets no more than the maximum");
}

#[test]
fn a_program_may_end_the_stream_with_its_own_error() {
    let netstring = load(NETSTRING);
    for bad in [&b"x"[..], b":", b"-1:", b"1x:", b"12345678", b"00000000:"] {
        let error = FrameError::Program { result: -74 };
        assert_eq!(measure(&netstring, bad), Err(error), "{bad:?}");
        assert_eq!(error.errno(), 74, "EBADMSG");
    }
    assert_eq!(measure(&netstring, b"1234567:"), Ok(Some(1_234_576)));
    let varint = load(VARINT);
    assert_eq!(measure(&varint, &[0x80; 4]), Err(FrameError::Program { result: -71 }));
    assert_eq!(measure(&varint, &[0x80; 3]), Ok(None));
    assert_eq!(measure(&varint, &[0xff, 0xff, 0xff, 0x7f]), Ok(Some((1 << 28) + 3)));
}

#[test]
fn a_broken_stream_stays_broken() {
    let mut stream = assembly(Some(Duration::from_secs(1)));
    let start = now();
    let error = FrameError::Program { result: -74 };
    let netstring = load(NETSTRING);
    let bad = Unread::from(&b"bad"[..]);
    assert_eq!(stream.next(&netstring, bad, start), Err(error));
    let good = Unread::from(&b"1:x,"[..]);
    assert_eq!(stream.next(&netstring, good, start), Err(error));
    assert_eq!(stream.expire(start + Duration::from_secs(9)), Err(error));
    assert_eq!((stream.broken(), stream.deadline()), (Some(error), None));
}

#[test]
fn a_program_that_cannot_run_is_refused_with_its_reason() {
    let error = BpfFramer::load(MAP).expect_err("a map");
    assert!(matches!(error, LoadError::Object(ObjectError::Relocation { at: 5, .. })));
    let error = BpfFramer::load(b"\x7fELF").expect_err("cut");
    assert_eq!(error, LoadError::Object(ObjectError::Damaged("header")));
    let error = BpfFramer::load(&[ins(0xb7, 0, 0, 0, 0), ins(0x05, 0, 0, -1, 0)].concat());
    let fault = Fault::Backward(1);
    let expected = LoadError::Program(VerifyError::Instruction { at: 1, fault });
    assert_eq!(error.expect_err("a loop"), expected);
    assert_eq!(
        expected.to_string(),
        "instruction 1: a jump back to instruction 1: only forward jumps are allowed"
    );
}

#[test]
fn every_format_gives_the_same_frames_however_its_bytes_come() {
    for (case, framer, messages) in formats() {
        let stream = messages.concat();
        let expected: Vec<_> = messages.iter().map(Vec::len).collect();
        for portion in [1, 2, 3, 5, 7, stream.len()] {
            let (found, end) = frames(&*framer, &stream, portion);
            assert_eq!((found, end), (expected.clone(), None), "{case}, {portion} at a time");
        }
        let mut stream_state = assembly(None);
        for cut in 0..=stream.len() {
            // All before the cut comes at once, and then the rest.
            let mut taken = 0;
            let mut found = Vec::new();
            for come in [cut, stream.len()] {
                loop {
                    let unread = Unread::from(&stream[taken..come]);
                    let Some(length) = stream_state.next(&*framer, unread, now()).expect(case)
                    else {
                        break;
                    };
                    taken += length;
                    found.push(length);
                }
            }
            assert_eq!(found, expected, "{case}, cut at {cut}");
            assert!(!stream_state.in_message());
        }
    }
}

#[test]
fn the_seam_of_a_ring_changes_no_frame_and_no_prefix() {
    for (case, framer, messages) in formats() {
        for message in messages {
            let length = message.len();
            for come in 0..=length {
                let whole = framer.measure(Unread::from(&message[..come]));
                let may = [Ok(None), Ok(NonZeroUsize::new(length))];
                assert!(may.contains(&whole), "{case}: {come} of {message:?} give {whole:?}");
                for seam in 0..=come {
                    let unread = Unread::new(&message[..seam], &message[seam..come]);
                    assert_eq!(framer.measure(unread), whole, "{case}, seam at {seam}");
                }
            }
            let last = framer.measure(Unread::from(&message[..]));
            assert_eq!(last, Ok(NonZeroUsize::new(length)), "{case}");
        }
    }
}

#[test]
fn a_message_has_its_time_from_its_first_byte() {
    let second = Duration::from_secs(1);
    let thrift = load(THRIFT);
    let start = now();
    let message = [0, 0, 0, 4, 1, 2, 3, 4];
    let mut stream = assembly(Some(5 * second));
    let mut show = |come: usize, after: u32| {
        let unread = Unread::from(&message[..come]);
        let found = stream.next(&thrift, unread, start + after * second);
        (found, stream.deadline().map(|deadline| deadline - start))
    };
    assert_eq!(show(0, 0), (Ok(None), None), "no byte, no message");
    assert_eq!(show(1, 2), (Ok(None), Some(7 * second)));
    assert_eq!(show(2, 3), (Ok(None), Some(7 * second)), "a byte wins no time");
    assert_eq!(show(5, 6), (Ok(None), Some(7 * second)), "nor does a known length");
    assert_eq!(show(8, 9), (Ok(Some(8)), None), "what is complete is delivered");
    assert_eq!(show(7, 10), (Ok(None), Some(15 * second)), "the next has its own time");
    let late = FrameError::TimedOut { millis: 5000 };
    assert_eq!(show(7, 15), (Err(late), None));
    assert_eq!(late.errno(), 110, "ETIMEDOUT");

    let mut stream = assembly(Some(5 * second));
    let first = Unread::from(&message[..1]);
    assert_eq!(stream.expire(start + 99 * second), Ok(()), "nothing is awaited");
    assert_eq!(stream.next(&thrift, first, start), Ok(None));
    assert_eq!(stream.expire(start + 4 * second), Ok(()));
    assert_eq!(stream.expire(start + 5 * second), Err(late));
    assert_eq!(stream.next(&thrift, first, start), Err(late));

    let mut patient = assembly(None);
    assert_eq!(patient.next(&thrift, first, start), Ok(None));
    assert_eq!((patient.deadline(), patient.in_message()), (None, true));
    assert_eq!(patient.expire(start + 3600 * second), Ok(()));
}

#[test]
fn a_framer_is_asked_once_for_each_arrival_and_not_for_a_known_length() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug)]
    struct Counted(BpfFramer, AtomicUsize);
    impl Framer for Counted {
        fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.measure(unread)
        }
    }
    let counted = Counted(load(THRIFT), AtomicUsize::new(0));
    let asked = || counted.1.load(Ordering::Relaxed);
    let message = [0, 0, 0, 4, 1, 2, 3, 4];
    let mut stream = assembly(None);
    for (come, times) in [(0, 0), (1, 1), (1, 1), (3, 2), (4, 3), (5, 3), (7, 3), (7, 3)] {
        let found = stream.next(&counted, Unread::from(&message[..come]), now());
        assert_eq!((found, asked()), (Ok(None), times), "{come} bytes");
    }
    let found = stream.next(&counted, Unread::from(&message[..]), now());
    assert_eq!((found, asked()), (Ok(Some(8)), 3));
}

/// The same at every run, on one machine or another.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits")
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() % bound
    }
}

#[test]
fn fixtures_changed_at_random_keep_the_rules() {
    let mut random = Random(0x5eed_1e55_0f0f_1234);
    let mut accepted = 0;
    for (number, object) in [THRIFT, NETSTRING, VARINT].into_iter().cycle().take(6000).enumerate() {
        let code = bus_core::framing::object::section(object, "socket_kcm").expect("good");
        let instructions = u8::try_from(code.len() / 8).expect("the fixtures are short");
        let seam = u8::try_from(random.below(30)).expect("small");
        let mut input = [&[seam, instructions], code, b"\0\0\0\x05hello7:varints,\x03abc"].concat();
        if number % 4 == 0 {
            input = object.to_vec();
        }
        for _ in 0..random.below(4) {
            let at = random.below(input.len());
            input[at] = match random.below(3) {
                0 => input[at] ^ 1 << random.below(8),
                1 => [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                _ => input[random.below(input.len())],
            };
        }
        accepted += u32::from(hold_to_the_rules(&input));
    }
    // Enough of the changed programs may still run for this to say something of running.
    assert!((1500..4500).contains(&accepted), "{accepted} accepted");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_program_runs_as_the_reference_does(
        code in program(Kinds::All),
        message in proptest::collection::vec(any::<u8>(), 0..24),
        seam in any::<prop::sample::Index>(),
    ) {
        let verified = Program::verify(&code, 1).expect("it is made to pass");
        same_as_the_reference(&verified, &code, &message, seam.index(message.len() + 1));
    }

    /// What the verifier lets through after a change still does nothing that the reference forbids.
    #[test]
    fn a_changed_program_is_refused_or_runs_as_the_reference_does(
        code in program(Kinds::All),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        message in proptest::collection::vec(any::<u8>(), 0..24),
    ) {
        let mut code = code;
        if let Some(cut) = cut {
            code.truncate(8 + cut.index(code.len() / 8) * 8);
        }
        for (at, to) in changes {
            let at = at.index(code.len());
            code[at] = to;
        }
        if let Ok(verified) = Program::verify(&code, 1) {
            same_as_the_reference(&verified, &code, &message, message.len() / 2);
        }
    }

    #[test]
    fn a_program_runs_as_rbpf_does_where_both_mean_the_same(code in program(Kinds::RbpfAgrees)) {
        let verified = Program::verify(&code, 1).expect("it is made to pass");
        let machine = rbpf::EbpfVmNoData::new(Some(&code)).expect("rbpf takes it");
        let expected = machine.execute_program().expect("it reads nothing");
        let found = verified.run(Unread::from(&[][..]), &[]);
        prop_assert_eq!(found, Outcome::Returned(expected));
    }

    #[test]
    fn any_bytes_keep_the_rules(input in proptest::collection::vec(any::<u8>(), 0..400)) {
        hold_to_the_rules(&input);
    }
}
