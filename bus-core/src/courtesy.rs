//! Whether to let others run before going to sleep.
//!
//! Who would run next is often the one whose message is awaited: then a yield brings it, and both
//! the sleep and the wake-up are spared. Where that does not happen a yield is a system call for
//! nothing, so after some in a row that brought nothing the thread goes straight to sleep for a while, and
//! then tries once. An idle thread yields a bounded number of times before it sleeps; nothing spins. What took long
//! went to somebody who has work of his own and all processors busy: a sleeper's turn comes sooner then.

use std::time::Duration;

/// What yields have brought lately.
///
/// ```
/// use std::time::Duration;
///
/// use bus_core::courtesy::Courtesy;
///
/// let mut courtesy = Courtesy::default();
/// while courtesy.pays() {
///     courtesy.note(false, Duration::ZERO);
/// }
/// // From here on its owner goes to sleep at once, for a while.
/// ```
#[derive(Debug, Default)]
pub struct Courtesy {
    in_vain: u32,
    rest: u32,
}

impl Courtesy {
    /// Whether to yield before this sleep.
    #[must_use = "who asks has used up one sleep of a rest"]
    pub fn pays(&mut self) -> bool {
        let resting = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        !resting
    }

    /// Whether yields that have taken so long went to somebody who has work of his own: no more then.
    #[must_use]
    pub fn is_long(took: Duration) -> bool {
        took > LONG
    }

    /// Takes note of what the yields before a sleep have brought, and how long they took.
    pub fn note(&mut self, found: bool, took: Duration) {
        self.in_vain = if found { 0 } else { self.in_vain + 1 };
        if Self::is_long(took) || self.in_vain == MOST_IN_VAIN {
            // The first in vain after a rest is followed by another.
            self.in_vain = MOST_IN_VAIN - 1;
            self.rest = REST;
        }
    }
}

/// Sleeps in a row before which yields brought nothing, after which a rest begins.
const MOST_IN_VAIN: u32 = 4;
/// A yield beyond what the programs of the bus do with one.
const LONG: Duration = Duration::from_micros(300);
/// Sleeps without a yield.
const REST: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_that_bring_nothing_are_given_up_for_a_while() {
        let mut courtesy = Courtesy::default();
        let mut yields = |found: bool, sleeps: u32| {
            let mut count = 0;
            for _ in 0..sleeps {
                if courtesy.pays() {
                    count += 1;
                    courtesy.note(found, Duration::ZERO);
                }
            }
            count
        };
        assert_eq!(yields(true, 100), 100);
        assert_eq!(yields(false, 4 + REST), 4);
        assert_eq!(yields(false, 1 + REST), 1, "one try, and another rest");
        assert_eq!(yields(true, 10), 10, "it pays again");
    }

    #[test]
    fn where_others_have_work_nobody_yields_to_them() {
        let mut courtesy = Courtesy::default();
        assert!(courtesy.pays());
        courtesy.note(true, 2 * LONG);
        assert!((0..REST).all(|_| !courtesy.pays()), "whatever it brought");
        assert!(courtesy.pays());
    }
}
