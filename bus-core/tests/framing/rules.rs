//! What must hold for any program and any stream: used by the fuzz target, and by plain tests on
//! inputs that are changed at random.

use std::num::NonZeroUsize;

use bus_core::framing::bpf::{Outcome, Program};
use bus_core::framing::{
    Assembly, BpfFramer, Endianness, FrameError, Framer, LengthPrefix, Unisono, Unread, Width,
};

use super::{now, reference};

/// Takes bytes for a file, for a program with a stream behind it, and for a framing with a stream;
/// says whether there was a program that may run.
///
/// The first byte says where the stream wraps, the second how many instructions the program has.
///
/// # Panics
///
/// A rule is broken: that is a finding.
pub(crate) fn hold_to_the_rules(input: &[u8]) -> bool {
    if let Err(error) = BpfFramer::load(input) {
        assert!(!error.to_string().is_empty());
    }
    let [seam, instructions, rest @ ..] = input else {
        return false;
    };
    let (code, stream) = rest.split_at(rest.len().min(usize::from(*instructions) * 8));
    let seam = usize::from(*seam).min(stream.len());
    built_in(code, stream);
    let Ok(program) = Program::verify(code, 1) else {
        return false;
    };
    same_as_the_reference(&program, code, stream, seam);
    let framer = BpfFramer::load(code).expect("it was verified");
    let (frames, _) = frames(&framer, stream, stream.len());
    assert!(frames.iter().sum::<usize>() <= stream.len());
    true
}

/// A run gives what the reference gives, wherever the message wraps, in no more steps than there
/// are instructions.
pub(crate) fn same_as_the_reference(program: &Program, code: &[u8], message: &[u8], seam: usize) {
    let length = u32::try_from(message.len()).expect("messages here are short");
    let (expected, steps) = reference::run(code, message, &[length]);
    let expected = expected.map_or(Outcome::PastEnd, Outcome::Returned);
    assert!(steps <= program.instructions());
    let whole = program.run(Unread::from(message), &[length]);
    assert_eq!(whole, expected, "{code:02x?}");
    let (first, second) = message.split_at(seam);
    let split = program.run(Unread::new(first, second), &[length]);
    assert_eq!(split, expected, "{code:02x?}, seam at {seam}");
}

/// The built-in framers find the same messages, and the same end, however the bytes come.
fn built_in(settings: &[u8], stream: &[u8]) {
    let mut framers: Vec<Box<dyn Framer>> = vec![Box::new(Unisono)];
    if let [offset, width, order, bias, ..] = *settings {
        let width = [Width::One, Width::Two, Width::Four, Width::Eight][usize::from(width % 4)];
        let order = [Endianness::Big, Endianness::Little][usize::from(order % 2)];
        let bias = bias.cast_signed().into();
        // Else the stream ends either way, but which rule it breaks first depends on what has come.
        let offset = offset % 64;
        if let Ok(prefix) = LengthPrefix::new(offset.into(), width, order, bias) {
            framers.push(Box::new(prefix));
        }
    }
    for framer in framers {
        let (whole, end) = frames(&*framer, stream, stream.len());
        let errno = end.map(|error| error.errno());
        for portion in [1, 3] {
            let (cut, end) = frames(&*framer, stream, portion);
            assert_eq!((cut, end.map(|error| error.errno())), (whole.clone(), errno));
        }
    }
}

/// The lengths of the messages in a stream that comes in portions, and what ended it.
pub(crate) fn frames(
    framer: &dyn Framer,
    stream: &[u8],
    portion: usize,
) -> (Vec<usize>, Option<FrameError>) {
    let maximum = NonZeroUsize::new(MAXIMUM_BYTES).expect("is not 0");
    let mut assembly = Assembly::new(maximum, None);
    let now = now();
    let (mut taken, mut come) = (0, 0);
    let mut found = Vec::new();
    loop {
        let unread = &stream[taken..come];
        match assembly.next(framer, Unread::from(unread), now) {
            Ok(Some(length)) => {
                assert!((1..=MAXIMUM_BYTES).contains(&length) && length <= unread.len());
                taken += length;
                found.push(length);
            }
            Ok(None) if come < stream.len() => come = stream.len().min(come + portion.max(1)),
            Ok(None) => return (found, None),
            Err(error) => {
                assert_eq!(assembly.broken(), Some(error));
                assert!((1..4096).contains(&error.errno()) && !error.to_string().is_empty());
                return (found, Some(error));
            }
        }
    }
}

/// The longest message in these tests.
pub(crate) const MAXIMUM_BYTES: usize = 100;
