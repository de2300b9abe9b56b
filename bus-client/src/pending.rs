//! What was asked of the broker and is not yet answered, by serial.
//!
//! Invariant: a serial is not used again before its entry is removed, and hardly soon after: it is
//! made of the entry's place in the table and of a count that differs from the place's last user.
//! So an answer that crosses with giving up (UNWATCH against WRITABLE) finds nobody.

use bus_core::wire::Serial;
use slab::Slab;

/// A table of entries by serial.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    entries: Slab<(Serial, T)>,
    round: u32,
}

impl<T> Pending<T> {
    pub(crate) fn new() -> Self {
        Self { entries: Slab::new(), round: 0 }
    }

    /// Takes an entry in; none if the table is full, which is far beyond what the windows of all
    /// lanes allow.
    ///
    /// Inlined, so that the entry is made where it stays.
    #[inline(always)]
    pub(crate) fn insert(&mut self, entry: impl FnOnce() -> T) -> Option<Serial> {
        let vacant = self.entries.vacant_entry();
        let place = u32::try_from(vacant.key()).ok().filter(|place| *place < PLACES)?;
        self.round = self.round % (ROUNDS - 1) + 1;
        let serial = Serial::new(self.round * PLACES + place).expect("rounds begin with 1");
        vacant.insert((serial, entry()));
        Some(serial)
    }

    pub(crate) fn get(&self, serial: Serial) -> Option<&T> {
        let (owner, entry) = self.entries.get(place(serial))?;
        (*owner == serial).then_some(entry)
    }

    pub(crate) fn get_mut(&mut self, serial: Serial) -> Option<&mut T> {
        let (owner, entry) = self.entries.get_mut(place(serial))?;
        (*owner == serial).then_some(entry)
    }

    pub(crate) fn remove(&mut self, serial: Serial) -> Option<T> {
        self.get(serial)?;
        Some(self.entries.remove(place(serial)).1)
    }

    pub(crate) fn serials(&self) -> Vec<Serial> {
        self.entries.iter().map(|(_, (serial, _))| *serial).collect()
    }
}

fn place(serial: Serial) -> usize {
    (serial.get() % PLACES) as usize
}

const PLACES: u32 = 1 << 20;
const ROUNDS: u32 = 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_finds_its_entry_and_no_later_one() {
        let mut pending = Pending::new();
        let first = pending.insert(|| "a").unwrap();
        assert_eq!(pending.get(first), Some(&"a"));
        assert_eq!(pending.remove(first), Some("a"));
        let second = pending.insert(|| "b").unwrap();
        assert_ne!(first, second);
        assert_eq!(pending.get(first), None);
        assert_eq!(pending.remove(first), None);
        assert_eq!(pending.get(second), Some(&"b"));
    }

    #[test]
    fn serials_are_never_zero_however_often_a_place_is_used() {
        let mut pending = Pending::new();
        let mut before = None;
        for _ in 0..2 * ROUNDS {
            let serial = pending.insert(|| ()).unwrap();
            assert_ne!(Some(serial), before);
            before = Some(serial);
            pending.remove(serial).unwrap();
        }
    }
}
