//! What a receiver notes of what it receives: the sequence, what is missing, how late.
//!
//! Invariant: two receivers have equal digests only if they had the same messages in the same
//! sequence, short of a collision in 64 bits; and a stream that ended without loss and without a
//! message out of its place came whole, each message once.

use hdrhistogram::Histogram;

use super::{
    plan::Report,
    stamp::{Stamp, now},
};

/// Latencies in nanoseconds.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are valid");
        Self(histogram)
    }

    /// Notes the time since `start`.
    pub(crate) fn since(&mut self, start: u64) {
        self.add(now().saturating_sub(start), 1);
    }

    pub(crate) fn add(&mut self, nanoseconds: u64, times: u64) {
        self.0.saturating_record_n(nanoseconds.clamp(1, LONGEST), times);
    }

    /// In microseconds; none without a latency.
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let nanoseconds = || self.0.value_at_percentile(percent);
        (!self.0.is_empty()).then(|| nanoseconds() as f64 / 1000.0)
    }

    /// All of them, to be added up elsewhere.
    pub(crate) fn pairs(&self) -> Vec<(u64, u64)> {
        let recorded = self.0.iter_recorded();
        recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    pub(crate) fn add_pairs(&mut self, pairs: &[(u64, u64)]) {
        for (nanoseconds, times) in pairs {
            self.add(*nanoseconds, *times);
        }
    }
}

/// What one receiver has had.
#[derive(Debug)]
pub(crate) struct Record {
    streams: Vec<Stream>,
    /// Streams that have not ended.
    open: usize,
    size: usize,
    digest: u64,
    received: u64,
    lost: u64,
    misplaced: u64,
    latencies: Latencies,
    overtaking: Option<Overtaking>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    /// The serial that comes next; also how many came, if none was lost.
    next: u64,
    open: bool,
}

/// What may have overtaken the next fan-out message: when each message since the last was sent.
#[derive(Debug, Default)]
struct Overtaking {
    since: Vec<u64>,
    most: u64,
}

impl Record {
    /// `streams` in all, of which `heard` come here, with payloads of `size` bytes.
    pub(crate) fn new(streams: usize, heard: &[usize], size: usize) -> Self {
        let mut all = vec![Stream::default(); streams];
        for stream in heard {
            all[*stream].open = true;
        }
        Self {
            streams: all,
            open: heard.len(),
            size,
            digest: 0,
            received: 0,
            lost: 0,
            misplaced: 0,
            latencies: Latencies::new(),
            overtaking: None,
        }
    }

    /// Of stream 0 alone the digest is taken, and who overtakes it is counted. For receivers that
    /// have nothing but stream 0 in common.
    pub(crate) fn watch_stream_0(mut self) -> Self {
        self.overtaking = Some(Overtaking::default());
        self
    }

    /// Notes a payload.
    pub(crate) fn take(&mut self, payload: &[u8]) {
        let stamp = Stamp::read(payload).filter(|_| payload.len() == self.size);
        let Some(stamp) = stamp else {
            self.misplaced += 1;
            return;
        };
        let Some(stream) = self.streams.get_mut(stamp.stream()) else {
            self.misplaced += 1;
            return;
        };
        let serial = stamp.serial();
        if serial < stream.next || !stream.open {
            self.misplaced += 1;
            return;
        }
        self.lost += serial - stream.next;
        stream.next = serial + 1;
        self.received += 1;
        if stamp.is_last() {
            stream.open = false;
            self.open -= 1;
        }
        let first = stamp.stream() == 0;
        match &mut self.overtaking {
            Some(overtaking) if first => overtaking.take(stamp.time),
            Some(overtaking) => overtaking.since.push(stamp.time),
            None => {}
        }
        if first || self.overtaking.is_none() {
            self.digest = mix(self.digest, stamp.word());
            if stamp.time != 0 {
                self.latencies.since(stamp.time);
            }
        }
    }

    /// Whether all streams have ended.
    pub(crate) fn is_whole(&self) -> bool {
        self.open == 0
    }

    /// How many messages of a stream are behind us.
    pub(crate) fn progress(&self, stream: usize) -> u64 {
        self.streams[stream].next
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// What to tell; what of an unfinished stream is missing, only the sender knows.
    pub(crate) fn report(&self, started: u64, finished: u64) -> Report {
        Report {
            started,
            finished,
            messages: self.received,
            lost: self.lost,
            misplaced: self.misplaced,
            digest: self.digest,
            latencies: self.latencies.pairs(),
            waits: Vec::new(),
            overtaken_max: self.overtaking.as_ref().map_or(0, |o| o.most),
            reading: 0,
        }
    }
}

impl Overtaking {
    fn take(&mut self, time: u64) {
        let later = self.since.iter().filter(|sent| **sent > time).count();
        self.most = self.most.max(later as u64);
        self.since.clear();
    }
}

/// Every step is a bijection of the digest, and depends on where in the sequence it is taken.
fn mix(digest: u64, word: u64) -> u64 {
    (digest.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(words: &[(usize, u64, bool)]) -> Report {
        let mut record = Record::new(2, &[0, 1], 16);
        for (stream, serial, last) in words {
            let mut payload = [0; 16];
            Stamp::new(*stream, *serial, *last, 0).write(&mut payload);
            record.take(&payload);
        }
        record.report(0, 0)
    }

    #[test]
    fn another_sequence_has_another_digest() {
        let one = record(&[(0, 0, false), (1, 0, true), (0, 1, true)]);
        let same = record(&[(0, 0, false), (1, 0, true), (0, 1, true)]);
        let other = record(&[(1, 0, true), (0, 0, false), (0, 1, true)]);
        assert_eq!(one.digest, same.digest);
        assert_ne!(one.digest, other.digest);
        assert_eq!((other.lost, other.misplaced, other.messages), (0, 0, 3));
    }

    #[test]
    fn what_is_missing_out_of_place_or_twice_is_counted() {
        let report = record(&[(0, 0, false), (0, 3, false), (0, 1, false), (0, 3, false)]);
        assert_eq!((report.lost, report.misplaced, report.messages), (2, 2, 2));
    }

    #[test]
    fn a_message_that_was_sent_later_and_came_first_has_overtaken() {
        let mut record = Record::new(2, &[0, 1], 16).watch_stream_0();
        for (stream, serial, time) in [(1, 0, 5), (1, 1, 11), (1, 2, 12), (0, 0, 10), (0, 1, 13)] {
            let mut payload = [0; 16];
            Stamp::new(stream, serial, false, time).write(&mut payload);
            record.take(&payload);
        }
        assert_eq!(record.report(0, 0).overtaken_max, 2);
    }
}
