//! A short deterministic run of what the fuzz targets do without an end: good streams with bytes
//! changed, cut, doubled and exchanged must be decoded or refused, and what was decoded must be
//! what its encoding says.

use bytes::{Buf, BytesMut};

use super::super::{BrokerFrame, ClientFrame};
use super::{Direction, encoded};

/// Marsaglia's xorshift: the same numbers on every machine.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Bytes that stand at some edge more often than chance would have it.
    fn byte(&mut self) -> u8 {
        let edges = [0, 1, 2, 3, 4, 0x10, 0x7f, 0x80, 0xfe, 0xff];
        match self.below(3) {
            0 => edges[self.below(edges.len())],
            _ => self.next().to_le_bytes()[0],
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Xorshift) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes[at] = random.byte(),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.byte()),
            4 => drop(bytes.remove(at)),
            5 => {
                let end = (at + random.below(24)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            // The header's and body's numbers are where decoders go wrong.
            _ => {
                let at = at.min(40);
                if let Some(place) = bytes.get_mut(at..at + 4) {
                    let number = u32::try_from(random.next() >> random.below(64) & 0xffff_ffff);
                    place.copy_from_slice(&number.unwrap().to_le_bytes());
                }
            }
        }
    }
}

/// Everything that must hold for any bytes. `true` if at least one frame came out of them.
fn hold_to_the_rules<F: Direction>(bytes: &[u8]) -> bool {
    let mut unread = BytesMut::from(bytes);
    let mut came = false;
    loop {
        let before = unread.len();
        let needed = F::bytes_needed(&unread);
        let mut whole = unread.clone();
        match F::decode(&mut unread) {
            Ok(Some(frame)) => {
                came = true;
                let length = before - unread.len();
                assert_eq!(needed, Ok(length));
                // Encoding is not always the same: maps have an order of their own, and unknown
                // keys are gone. But it must be as good, and stay as it is from there on.
                let again = encoded(&frame);
                let third = F::decode(&mut again.clone()).unwrap().unwrap();
                assert_eq!(third, frame);
                assert_eq!(encoded(&third), again);
                // A frame alone is the same frame: nothing beyond its length was looked at.
                whole.truncate(length);
                assert_eq!(F::decode(&mut whole).unwrap(), Some(frame));
            }
            Ok(None) => {
                assert_eq!(unread.len(), before, "nothing is taken");
                assert!(needed.unwrap() > before, "what is needed is not there yet");
                return came;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return came;
            }
        }
    }
}

#[test]
fn mutated_streams_are_decoded_or_refused() {
    fn check<F: Direction>(seed: u64) {
        let mut random = Xorshift(seed);
        let corpus: Vec<_> = F::corpus()
            .iter()
            .map(|(_, frame)| encoded(frame))
            .filter(|bytes| bytes.len() < 2000)
            .collect();
        let (mut good, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = corpus[random.below(corpus.len())].to_vec();
            if random.below(2) == 0 {
                bytes.extend_from_slice(&corpus[random.below(corpus.len())]);
            }
            mutate(&mut bytes, &mut random);
            if hold_to_the_rules::<F>(&bytes) {
                good += 1;
            } else {
                refused += 1;
            }
        }
        assert!(good > 2000, "{good} passed: the mutations are too wild");
        assert!(refused > 2000, "{refused} did not: the mutations are too tame");
    }
    check::<ClientFrame>(0x5eed_0001);
    check::<BrokerFrame>(0x5eed_0002);
}

#[test]
fn noise_is_decoded_or_refused() {
    fn check<F: Direction>(seed: u64) {
        let mut random = Xorshift(seed);
        let corpus = F::corpus();
        for _ in 0..20_000 {
            // A good header of some kind before noise, so that the noise is looked at.
            let (_, frame) = &corpus[random.below(corpus.len())];
            let mut bytes = encoded(frame);
            let length = bytes.len().min(400);
            bytes.truncate(length);
            let length = u32::try_from(length).unwrap().to_le_bytes();
            bytes[..4].copy_from_slice(&length);
            for place in &mut bytes[16..] {
                *place = random.byte();
            }
            hold_to_the_rules::<F>(&bytes);
            bytes.advance(random.below(bytes.len()));
            hold_to_the_rules::<F>(&bytes);
        }
    }
    check::<ClientFrame>(0x5eed_0003);
    check::<BrokerFrame>(0x5eed_0004);
}
