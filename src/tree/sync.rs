//! The locks of a tree and their order, which debug builds check.
//!
//! A lock outlives a panic of who held it: what it protects is changed in steps that do not panic half-way.

#[cfg(debug_assertions)]
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(all(test, shuttle)))]
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(not(all(test, shuttle)))]
pub(in crate::tree) use std::thread;
use std::time::Duration;

#[cfg(all(test, shuttle))]
use shuttle::sync::{Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(all(test, shuttle))]
pub(in crate::tree) use shuttle::thread;
#[cfg(all(test, shuttle, debug_assertions))]
use shuttle::thread_local;

/// What a lock protects. A thread that has one takes only those that come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::tree) enum Rank {
    /// Work that no caller waits for.
    Work,
    /// The growth of the pool, and its end.
    Resizing,
    /// A snapshot. Who needs two of them takes them in the order of their ids.
    Snapshot,
    /// The note on the pool's metadata snapshot.
    MetadataSnapshot,
    /// The generation that the pool has.
    Generation,
    /// The end of the journal: whoever writes a line has it.
    JournalEnd,
    /// The state. Nothing is called while it is held.
    State,
    /// The map of the snapshots in use.
    LiveSnapshots,
    /// A lock under which no other one is taken.
    Leaf,
}

/// A mutex with a place in the order.
pub(in crate::tree) struct Lock<T> {
    rank: Rank,
    value: Mutex<T>,
}

impl<T> Lock<T> {
    pub(in crate::tree) fn new(rank: Rank, value: T) -> Self {
        Self { rank, value: Mutex::new(value) }
    }

    pub(in crate::tree) fn lock(&self) -> Guard<'_, T> {
        let held = Held::new(self.rank);
        Guard { value: self.value.lock().unwrap_or_else(PoisonError::into_inner), held }
    }

    pub(in crate::tree) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// A lock that is held.
#[derive(Debug)]
pub(in crate::tree) struct Guard<'a, T> {
    // Unlocked before its rank is free.
    value: MutexGuard<'a, T>,
    held: Held,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Wakes those who wait for a change under a lock.
#[derive(Debug, Default)]
pub(in crate::tree) struct Changed {
    changed: Condvar,
    /// Threads that wait. Without one nobody is woken, which would be a system call.
    waiting: AtomicUsize,
}

impl Changed {
    /// Gives the lock up until there was a change.
    pub(in crate::tree) fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
        let Guard { value, held } = guard;
        // Under the lock, so that who changes something afterwards sees it.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let value = self.changed.wait(value).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Guard { value, held }
    }

    /// The same, not longer than `timeout`: then it is `true`.
    pub(in crate::tree) fn wait_within<'a, T>(
        &self,
        guard: Guard<'a, T>,
        timeout: Duration,
    ) -> (Guard<'a, T>, bool) {
        let Guard { value, held } = guard;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waited = self.changed.wait_timeout(value, timeout);
        let (value, late) = waited.unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        (Guard { value, held }, late.timed_out())
    }

    /// Wakes one of those who wait: after a change that was made under their lock.
    pub(in crate::tree) fn notify_one(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.changed.notify_one();
        }
    }

    /// The same for all.
    pub(in crate::tree) fn notify_all(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.changed.notify_all();
        }
    }
}

/// A rank that this thread holds.
#[derive(Debug)]
struct Held(#[cfg_attr(not(debug_assertions), allow(dead_code))] Rank);

#[cfg(debug_assertions)]
thread_local! {
    static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
}

#[cfg(debug_assertions)]
impl Held {
    fn new(rank: Rank) -> Self {
        const TWO_SNAPSHOTS: (Rank, Rank) = (Rank::Snapshot, Rank::Snapshot);
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let last = held.iter().max();
            let in_order = last.is_none_or(|&last| last < rank || (last, rank) == TWO_SNAPSHOTS);
            assert!(in_order, "lock order: {rank:?} after {held:?}");
            held.push(rank);
        });
        Self(rank)
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let at = held.iter().rposition(|rank| *rank == self.0);
            at.map(|at| held.remove(at));
        });
    }
}

#[cfg(not(debug_assertions))]
impl Held {
    fn new(rank: Rank) -> Self {
        Self(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_in_their_order() {
        let [snapshot, other, state] =
            [Rank::Snapshot, Rank::Snapshot, Rank::State].map(|rank| Lock::new(rank, ()));
        let guards = (snapshot.lock(), other.lock(), state.lock());
        drop(guards);
        drop((state.lock(), ()));
        let second = snapshot.lock();
        drop(second);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order: Snapshot after [State]")]
    fn a_lock_out_of_order_panics() {
        let [snapshot, state] = [Rank::Snapshot, Rank::State].map(|rank| Lock::new(rank, ()));
        let _state = state.lock();
        let _snapshot = snapshot.lock();
    }
}
