//! From which size on lending pays, on this machine and now.
//!
//! Lending has a fixed price: the broker books the loan, the completion comes back, and each recipient
//! releases what it was given. Sending inline costs each byte a copy into the kernel and one out of it, at
//! both ends of the way. The crossover is the size at which the two are equal, measured here with a pair of
//! sockets rather than written down: it differs by a factor of ten between machines.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What was measured, and the sizes that follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calibration {
    /// One small write to a socket and the read of it: the price of one message more.
    pub message: Duration,
    /// A write of 64 KiB and the read of it.
    pub inline_64_kib: Duration,
    /// A copy of 64 KiB in memory.
    pub copy_64_kib: Duration,
    /// Payloads from this size on are lent, unless the application says otherwise.
    pub crossover_bytes: usize,
}

impl Calibration {
    /// Measures. Takes about a millisecond. Each connection that lends does so once.
    #[must_use]
    pub fn measure() -> Self {
        Self::try_measure().unwrap_or(Self {
            message: Duration::ZERO,
            inline_64_kib: Duration::ZERO,
            copy_64_kib: Duration::ZERO,
            crossover_bytes: DEFAULT_CROSSOVER,
        })
    }

    fn try_measure() -> io::Result<Self> {
        let (mut one, mut other) = UnixStream::pair()?;
        let source = vec![1_u8; SAMPLE];
        let mut target = vec![0_u8; SAMPLE];
        let mut least = |bytes: usize| -> io::Result<Duration> {
            let mut best = Duration::MAX;
            for _ in 0..ROUNDS {
                let began = Instant::now();
                one.write_all(&source[..bytes])?;
                other.read_exact(&mut target[..bytes])?;
                best = best.min(began.elapsed());
            }
            Ok(best)
        };
        let (message, inline) = (least(64)?, least(SAMPLE)?);
        let mut copy = Duration::MAX;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            target.copy_from_slice(std::hint::black_box(&source));
            std::hint::black_box(&mut target);
            copy = copy.min(began.elapsed());
        }
        Ok(Self {
            message,
            inline_64_kib: inline,
            copy_64_kib: copy,
            crossover_bytes: crossover(message, inline, copy),
        })
    }

    /// Says in a sentence why the crossover is where it is.
    #[must_use]
    pub fn reason(&self) -> String {
        let micros = |time: Duration| format!("{:.1} µs", time.as_secs_f64() * 1e6);
        format!(
            "lending costs about {MESSAGES} small messages more ({} each); inline, 64 KiB cost {} to the \
             broker and again to each recipient, a copy in memory {}",
            micros(self.message),
            micros(self.inline_64_kib),
            micros(self.copy_64_kib)
        )
    }
}

/// Where the price of a loan is what the copies through the kernel cost beyond those that are left: to the
/// broker and to one recipient, against one copy in memory.
fn crossover(message: Duration, inline: Duration, copy: Duration) -> usize {
    let fixed = message.as_nanos() * u128::from(MESSAGES);
    let saved = (2 * inline.as_nanos().saturating_sub(message.as_nanos()))
        .saturating_sub(copy.as_nanos())
        .max(1);
    let bytes = usize::try_from(fixed * SAMPLE as u128 / saved).unwrap_or(usize::MAX);
    bytes.clamp(LEAST_CROSSOVER, MOST_CROSSOVER).next_multiple_of(1024)
}

/// Small messages that a loan costs: a write and a read more at the broker for COMPLETED, and the same for
/// the RELEASE of a recipient; and as what these wake somebody for counts double. Counted (system calls of a
/// saturated 1 to 8 at 1 MiB): 1.2 writes and 2.0 reads of the broker for each payload, 0.6 writes of each reader.
const MESSAGES: u32 = 4;
const SAMPLE: usize = 64 << 10;
const ROUNDS: usize = 16;
const LEAST_CROSSOVER: usize = 8 << 10;
const MOST_CROSSOVER: usize = 256 << 10;
const DEFAULT_CROSSOVER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crossover_follows_what_was_measured_and_stays_within_its_bounds() {
        let micros = Duration::from_micros;
        let at = crossover(micros(2), micros(20), micros(2));
        assert!((14 << 10..=16 << 10).contains(&at), "{at}: 8 us of 34 us for 64 KiB");
        assert_eq!(crossover(micros(0), micros(20), micros(2)), LEAST_CROSSOVER);
        assert_eq!(crossover(micros(50), micros(51), micros(50)), MOST_CROSSOVER);
        let measured = Calibration::measure();
        assert!((LEAST_CROSSOVER..=MOST_CROSSOVER).contains(&measured.crossover_bytes));
    }
}
