//! How long a slice of the processor an I/O thread asks for: what others have, or half of it where that
//! spares turns in vain.
//!
//! Who yields gives up the rest of his slice, and has his turn again when the others have had as much (Linux from
//! 6.12 on, which lets a thread ask how long its slices are). A caller, the broker and who answers it
//! go round on one processor if their slices are alike: behind the one who has answered comes the caller, and finds
//! nothing, because the broker was not there; so two turns of six bring nothing. With slices half as long the broker has
//! each second turn, and a round trip takes four. Where one turn of it serves many of its processor, each second would be
//! in vain. So it tries for [`TURNS`] turns, and keeps to what others have for [`REST`] times as many if more than one
//! in four brought nothing.
//!
//! Invariant: nothing else about the thread changes, not its share of the processor either, which it gets in smaller
//! pieces; and its slices are what they were when it ends. A system that does not know slices, or refuses, is
//! asked once. Sleeping and waking do not depend on it.
//!
//! # Safety
//!
//! The kernel writes at most as many bytes as it is told that there are, into a structure that is ours and of numbers
//! only, and reads the same; 0 names the thread that calls.
#![expect(unsafe_code, reason = "system calls that no crate knows")]

use std::marker::PhantomData;
use std::mem;

use nix::errno::Errno;
use nix::libc::{self, sched_attr};

/// The slices of the thread that has it.
#[derive(Debug)]
pub(crate) struct Slice {
    /// What the thread had, in nanoseconds; none if it cannot have another.
    usual: Option<u64>,
    trial: Trial,
    /// It is about the thread that made it.
    _thread: PhantomData<*const ()>,
}

/// What turns have brought, with slices of this length.
#[derive(Debug, Default)]
struct Trial {
    is_short: bool,
    turns: u32,
    in_vain: u32,
    /// Times [`TURNS`] until the next one.
    rest: u32,
}

impl Slice {
    /// Of this thread, which has what it has for now.
    pub(crate) fn of_this_thread() -> Self {
        let usual =
            attributes().ok().filter(is_ordinary).map(|attributes| attributes.sched_runtime);
        let usual = usual.filter(|slice| *slice >= 2 * SHORTEST);
        Self { usual, trial: Trial::default(), _thread: PhantomData }
    }

    /// The thread has had a turn with something to do, after so many in vain.
    pub(crate) fn note(&mut self, in_vain: u32) {
        let Some(usual) = self.usual else {
            return;
        };
        let Some(is_short) = self.trial.note(in_vain) else {
            return;
        };
        if set(if is_short { usual / 2 } else { usual }).is_err() {
            self.usual = None;
        }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        if let (Some(usual), true) = (self.usual, self.trial.is_short) {
            // Whose thread it was can do without.
            let _ = set(usual);
        }
    }
}

impl Trial {
    /// Whether slices are to be short from now on, if that changes.
    fn note(&mut self, in_vain: u32) -> Option<bool> {
        self.turns += 1;
        self.in_vain = self.in_vain.saturating_add(in_vain);
        if self.turns < TURNS {
            return None;
        }
        let many = self.in_vain > TURNS / 4;
        (self.turns, self.in_vain) = (0, 0);
        self.rest = self.rest.saturating_sub(1);
        let is_short = !many && self.rest == 0;
        if mem::replace(&mut self.is_short, is_short) == is_short {
            return None;
        }
        self.rest = if is_short { 0 } else { REST };
        Some(is_short)
    }
}

/// Whether the thread is one of those that share a processor fairly.
fn is_ordinary(attributes: &sched_attr) -> bool {
    attributes.sched_policy == libc::SCHED_OTHER.unsigned_abs()
}

fn attributes() -> Result<sched_attr, Errno> {
    let mut attributes = sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: see above.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    Errno::result(result)?;
    Ok(attributes)
}

fn set(nanoseconds: u64) -> Result<(), Errno> {
    let mut attributes = attributes()?;
    if !is_ordinary(&attributes) {
        return Err(Errno::EINVAL);
    }
    attributes.sched_runtime = nanoseconds;
    // SAFETY: see above.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(result).map(drop)
}

/// Bytes of what the system is told, in its first form.
const SIZE: u32 = 48;
/// Turns after which it is known what they bring.
const TURNS: u32 = 64;
/// How many times as long a trial is that shows nothing new.
const REST: u32 = 64;
/// Nanoseconds: the least that the system gives.
const SHORTEST: u64 = 100_000;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::config::Config;
    use crate::sandbox::enter_sandbox;

    /// What the trial says at the end of so many turns, each after this many in vain.
    fn says(trial: &mut Trial, turns: u32, in_vain: u32) -> Vec<bool> {
        (0..turns).filter_map(|_| trial.note(in_vain)).collect()
    }

    #[test]
    fn slices_are_short_as_long_as_few_turns_are_in_vain() {
        let mut trial = Trial::default();
        assert!(says(&mut trial, TURNS - 1, 0).is_empty());
        assert_eq!(says(&mut trial, 1, 0), [true]);
        assert!(says(&mut trial, 100 * TURNS, 0).is_empty());
        assert_eq!(says(&mut trial, TURNS, 1), [false]);
        assert!(says(&mut trial, (REST - 1) * TURNS, 0).is_empty(), "a rest");
        assert_eq!(says(&mut trial, TURNS, 0), [true], "and another trial");
    }

    #[test]
    fn slices_stay_as_they_are_where_turns_are_in_vain_anyway() {
        let mut trial = Trial::default();
        assert!(says(&mut trial, 10 * TURNS, 3).is_empty());
    }

    /// What it has after turns of which none was in vain, and after some that were.
    fn changes_and_gives_back() -> bool {
        let slice_of = || attributes().unwrap().sched_runtime;
        let usual = slice_of();
        let mut slice = Slice::of_this_thread();
        (0..TURNS).for_each(|_| slice.note(0));
        let can = slice.usual.is_some();
        if can {
            assert_eq!(slice_of(), usual / 2);
            (0..TURNS).for_each(|_| slice.note(1));
            assert_eq!(slice_of(), usual);
            (0..REST * TURNS).for_each(|_| slice.note(0));
            assert_eq!(slice_of(), usual / 2);
        }
        drop(slice);
        assert_eq!(slice_of(), usual);
        can
    }

    #[test]
    fn a_thread_has_short_slices_and_gets_its_own_back_in_the_sandbox_too() {
        // Not every system knows slices.
        let can = changes_and_gives_back();
        let sandboxed = thread::spawn(|| {
            enter_sandbox(&Config::default()).expect("this kernel can");
            changes_and_gives_back()
        });
        assert_eq!(sandboxed.join().unwrap(), can);
    }
}
