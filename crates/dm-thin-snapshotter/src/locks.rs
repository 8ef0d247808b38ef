//! Locks of keys.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks of keys: exclusive for a snapshot that changes, shared for one that must stay as it is.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    /// `None` is an exclusive lock, else the number of shared ones.
    held: Mutex<BTreeMap<String, Option<usize>>>,
    released: Condvar,
}

/// Locks that are held until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    locks: &'a Locks,
    keys: Vec<String>,
}

impl Locks {
    /// Waits for all of them together: a call that waits holds none of them.
    pub(crate) fn lock(&self, exclusive: &[&str], shared: &[&str]) -> Guard<'_> {
        let shared = shared.iter().filter(|key| !exclusive.contains(key));
        let mut keys: BTreeMap<_, _> = shared.map(|key| (*key, false)).collect();
        keys.extend(exclusive.iter().map(|key| (*key, true)));
        let mut held = self.held();
        while keys.iter().any(|(key, exclusive)| match held.get(*key) {
            None => false,
            Some(holders) => *exclusive || holders.is_none(),
        }) {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        for (key, exclusive) in &keys {
            let holders = held.entry((*key).to_owned()).or_insert(Some(0));
            *holders = if *exclusive { None } else { holders.map(|count| count + 1) };
        }
        drop(held);
        Guard { locks: self, keys: keys.into_keys().map(str::to_owned).collect() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Option<usize>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        for key in &self.keys {
            match held.get_mut(key) {
                Some(Some(count)) if *count > 1 => *count -= 1,
                _ => drop(held.remove(key)),
            }
        }
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn exclusive_locks_wait_for_shared_ones() {
        let locks = Locks::default();
        let (first, second) = (locks.lock(&["a"], &["p"]), locks.lock(&["b"], &["p", "b"]));
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let locks = &locks;
            scope.spawn(move || {
                let _guard = locks.lock(&["p"], &[]);
                sender.send(()).unwrap();
            });
            drop(first);
            assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
            drop(second);
            receiver.recv().unwrap();
        });
        assert!(locks.held().is_empty());
    }
}
