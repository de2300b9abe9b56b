//! Whether to let others run before going to sleep.
//!
//! Who would run next is often the one whose message is awaited: then a yield brings it, and both
//! the sleep and the wake-up are spared. Where that does not happen a yield is a system call for
//! nothing, so after some that brought nothing the thread goes straight to sleep for a while, and
//! then tries once. An idle thread yields at most once before it sleeps; nothing spins.

/// What yields have brought lately.
#[derive(Debug, Default)]
pub(crate) struct Courtesy {
    in_vain: u32,
    rest: u32,
}

impl Courtesy {
    /// Whether to yield before this sleep.
    pub(crate) fn pays(&mut self) -> bool {
        let resting = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        !resting
    }

    /// Takes note of what a yield has brought.
    pub(crate) fn note(&mut self, found: bool) {
        if found {
            self.in_vain = 0;
        } else if self.in_vain < MOST_IN_VAIN {
            self.in_vain += 1;
        }
        if self.in_vain == MOST_IN_VAIN {
            self.rest = REST;
        }
    }
}

/// Yields in vain before a rest. One that was followed by a rest is followed by the next at once.
const MOST_IN_VAIN: u32 = 4;
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
                    courtesy.note(found);
                }
            }
            count
        };
        assert_eq!(yields(true, 100), 100);
        assert_eq!(yields(false, 4 + REST), 4);
        assert_eq!(yields(false, 1 + REST), 1, "one try, and another rest");
        assert_eq!(yields(true, 10), 10, "it pays again");
    }
}
