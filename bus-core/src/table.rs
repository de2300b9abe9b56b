//! A table of things that come and go, whose lowest free place is taken first.
//!
//! Invariant: the table is never longer than up to its last thing. Who comes takes the lowest place that
//! is free, so after ten thousand have gone those who come next stand where the first ones stood, and
//! the table can be cut behind them. In a table that gives the place away which became free last, one
//! of them would stand at the far end, and keep all of it.
//!
//! `free` has every free place, and may have places behind the end. It has room for all that there are, so
//! nothing is allocated by who goes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::{Index, IndexMut};

/// Things by the numbers of their places.
///
/// ```
/// use bus_core::Table;
///
/// let mut table = Table::new();
/// let places = ["a", "b", "c"].map(|thing| table.insert(thing));
/// assert_eq!((table.remove(places[0]), table.remove(places[1])), (Some("a"), Some("b")));
/// assert_eq!(table.insert("d"), places[0]);
/// assert_eq!((table.len(), table.get(places[2])), (2, Some(&"c")));
/// ```
#[derive(Debug)]
pub struct Table<T> {
    places: Vec<Option<T>>,
    free: BinaryHeap<Reverse<usize>>,
    taken: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Table<T> {
    /// One without any places.
    #[must_use]
    pub const fn new() -> Self {
        Self { places: Vec::new(), free: BinaryHeap::new(), taken: 0 }
    }

    /// How many things are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.taken
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// The place that the next thing will have.
    pub fn vacant_key(&mut self) -> usize {
        // Behind the end is what was cut off: then nothing below the end is free.
        let lowest = self.free.peek().map(|place| place.0);
        lowest.filter(|place| *place < self.places.len()).unwrap_or_else(|| {
            self.free.clear();
            self.places.len()
        })
    }

    /// Puts something in, and says where.
    pub fn insert(&mut self, thing: T) -> usize {
        let place = self.vacant_key();
        self.taken += 1;
        if let Some(free) = self.places.get_mut(place) {
            *free = Some(thing);
            self.free.pop();
            return place;
        }
        self.places.push(Some(thing));
        self.free.reserve(self.places.capacity());
        place
    }

    /// What is at a place, if anything is.
    #[must_use]
    #[inline]
    pub fn get(&self, place: usize) -> Option<&T> {
        self.places.get(place)?.as_ref()
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.places.get_mut(place)?.as_mut()
    }

    /// Takes something out, if it is there. Allocates nothing, and gives no memory back.
    pub fn remove(&mut self, place: usize) -> Option<T> {
        let thing = self.places.get_mut(place)?.take()?;
        self.taken -= 1;
        self.free.push(Reverse(place));
        while self.places.pop_if(|last| last.is_none()).is_some() {}
        Some(thing)
    }

    /// All that is in it, with the places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.places.iter().enumerate().filter_map(|(place, thing)| Some((place, thing.as_ref()?)))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        let places = self.places.iter_mut().enumerate();
        places.filter_map(|(place, thing)| Some((place, thing.as_mut()?)))
    }

    /// Whether most of its memory is of things that have gone, so that [`shrink`](Self::shrink) pays.
    #[must_use]
    pub fn is_loose(&self) -> bool {
        // A table that grows has up to twice what it needs.
        self.places.capacity() > 4 * self.places.len() + SMALL
    }

    /// Gives back the memory of places behind the last thing.
    pub fn shrink(&mut self) {
        self.places.shrink_to_fit();
        let end = self.places.len();
        self.free.retain(|place| place.0 < end);
        self.free.shrink_to(self.places.capacity());
    }
}

impl<T> Index<usize> for Table<T> {
    type Output = T;

    /// # Panics
    ///
    /// Nothing is there.
    fn index(&self, place: usize) -> &T {
        self.get(place).expect("something is at this place")
    }
}

impl<T> IndexMut<usize> for Table<T> {
    fn index_mut(&mut self, place: usize) -> &mut T {
        self.get_mut(place).expect("something is at this place")
    }
}

/// Places that are not worth to be given back.
const SMALL: usize = 64;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(usize),
        Shrink,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<u32>().prop_map(Step::Insert),
            4 => any::<usize>().prop_map(Step::Remove),
            1 => Just(Step::Shrink),
        ]
    }

    proptest! {
        #[test]
        fn g8_it_is_a_map_that_gives_the_lowest_free_place_and_ends_with_its_last(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let (mut table, mut model) = (Table::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(thing) => {
                        let lowest = (0..).find(|place| !model.contains_key(place)).unwrap();
                        prop_assert_eq!(table.vacant_key(), lowest);
                        prop_assert_eq!(table.insert(thing), lowest);
                        model.insert(lowest, thing);
                    }
                    Step::Remove(number) => {
                        let place = number % (table.places.len() + 1);
                        let room = table.free.capacity();
                        prop_assert_eq!(table.remove(place), model.remove(&place));
                        prop_assert_eq!(table.free.capacity(), room, "nothing was allocated");
                    }
                    Step::Shrink => {
                        table.shrink();
                        prop_assert_eq!(table.places.capacity(), table.places.len());
                        prop_assert!(!table.is_loose());
                    }
                }
                prop_assert_eq!(table.places.len(), model.keys().last().map_or(0, |last| last + 1));
                prop_assert_eq!(table.len(), model.len());
                prop_assert!(table.iter().map(|(place, thing)| (place, *thing)).eq(model.clone()));
            }
        }
    }

    #[test]
    fn after_many_have_gone_one_that_comes_does_not_keep_their_places() {
        let mut table = Table::new();
        let first = table.insert(0);
        let many: Vec<_> = (1..10_000).map(|thing| table.insert(thing)).collect();
        assert!(!table.is_loose());
        for place in many {
            table.remove(place);
        }
        table.insert(1);
        assert!(table.is_loose());
        table.shrink();
        assert!(table.places.capacity() <= 8 && !table.is_loose(), "{}", table.places.capacity());
        assert_eq!(table[first], 0);
    }
}
