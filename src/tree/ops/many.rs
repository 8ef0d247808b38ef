//! Several snapshots at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::dm::Removal;
use crate::tree::{AddOptions, Parent, RemoveOptions, Result, SnapshotTree};

/// So many are worked on at a time: callers share the syncs of the state, and the kernel's grace periods overlap.
const THREADS: usize = 8;

impl SnapshotTree {
    /// [`add_with`](Self::add_with) for several ids of one parent, in threads of its own. The results are in the order of
    /// the ids, each durable if it is `Ok`.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// use dm_thin::tree::Parent;
    ///
    /// let vms: Vec<String> = (0..100).map(|n| format!("vm-{n}")).collect();
    /// for added in tree.add_many(&vms, Parent::Snapshot("golden"), &Default::default()) {
    ///     added?;
    /// }
    /// let devices = tree.activate_many(&vms).into_iter().collect::<Result<Vec<_>, _>>()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn add_many<I: AsRef<str> + Sync>(
        &self,
        ids: &[I],
        parent: Parent<'_>,
        options: &AddOptions,
    ) -> Vec<Result<()>> {
        each(ids, |id| self.add_with(id, parent, options))
    }

    /// [`activate`](Self::activate) for several snapshots: the path of each one's node, in the order of the ids.
    pub fn activate_many<I: AsRef<str> + Sync>(&self, ids: &[I]) -> Vec<Result<PathBuf>> {
        each(ids, |id| self.activate(id))
    }

    /// [`deactivate`](Self::deactivate) for several snapshots, in the order of the ids.
    pub fn deactivate_many<I: AsRef<str> + Sync>(&self, ids: &[I]) -> Vec<Result<()>> {
        each(ids, |id| self.deactivate(id))
    }

    /// [`remove_with`](Self::remove_with) for several snapshots, in the order of the ids.
    pub fn remove_many<I: AsRef<str> + Sync>(
        &self,
        ids: &[I],
        options: &RemoveOptions,
    ) -> Vec<Result<Removal>> {
        each(ids, |id| self.remove_with(id, options))
    }
}

/// Runs `work` on each of `ids` in threads of its own; the results are in their order.
fn each<I: AsRef<str> + Sync, T: Send>(ids: &[I], work: impl Fn(&str) -> T + Sync) -> Vec<T> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(ids.len())));
    let run = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(id) = ids.get(at) else { return };
            let result = work(id.as_ref());
            results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..THREADS.min(ids.len()) {
            // Where none can be made, this thread does everything.
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
