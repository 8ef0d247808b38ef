//! What a tree does beside its calls: it writes checkpoints, makes ready snapshots, and deletes volumes.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::tree::live::ready::Missing;
use crate::tree::live::work::Worker;
use crate::tree::state::store::SyncThread;
use crate::tree::{SnapshotTree, Threads};

/// When ready snapshots that could not be made are tried again: each attempt writes to the pool.
const RETRY_READY: Duration = Duration::from_secs(10);

/// When so many volumes are to be deleted, the thread takes all of its time for that.
const BACKLOG_HIGH: usize = 256;

impl SnapshotTree {
    pub(in crate::tree) fn start_threads(&self) -> Threads {
        // In a shared pool the message comes before the record.
        let sync = (!self.store.is_shared()).then(|| {
            let (pool, store) = (self.pool.clone(), self.store.clone());
            // Who takes the first id of the window tries again.
            let raise = move |window| drop(pool.generation.raise_for_window(&pool.thin, &store, window));
            SyncThread::start(&self.store, raise)
        });
        let tree = Self {
            _threads: Threads::default(),
            options: self.options.clone(),
            root: self.root.clone(),
            store: self.store.clone(),
            pool: self.pool.clone(),
            live: self.live.clone(),
            mounts: self.mounts.clone(),
            ready: self.ready.clone(),
            work: self.work.clone(),
            closed: self.closed.clone(),
        };
        let worker = Worker::start(self.work.clone(), move || tree.work_on());
        Threads { _worker: Some(worker), _sync: sync }
    }

    fn work_on(&self) {
        let (mut failed, mut unmade, mut since) = (false, BTreeSet::new(), Instant::now());
        while self.work.wait(failed) {
            if since.elapsed() >= RETRY_READY {
                (unmade, since) = (BTreeSet::new(), Instant::now());
            }
            failed = self.work_once(&mut unmade);
        }
    }

    /// Does what there is to do, one piece after another: for half of the time as long as that is enough, so that callers
    /// get at the pool.
    /// `unmade` is what could not be made. Returns whether something failed.
    fn work_once(&self, unmade: &mut BTreeSet<Missing>) -> bool {
        let (mut after, mut failed) = (Bound::Unbounded, !unmade.is_empty());
        loop {
            let begun = Instant::now();
            {
                let exclusive = self.work.exclusive();
                if self.check_open().is_err() {
                    return false;
                }
                if self.store.wants_checkpoint(self.options.checkpoint_at) {
                    // The journal holds everything.
                    failed |= self.checkpoint().is_err();
                }
                failed |= self.delete_unwanted(&exclusive).is_err();
                let next = self.store.read(|graph| {
                    graph.removed.range((after, Bound::Unbounded)).next().map(|(thin_id, _)| *thin_id)
                });
                if let Some(missing) = self.ready.missing(unmade) {
                    if self.make_ready(&exclusive, missing).is_err() {
                        failed = true;
                        unmade.insert(missing);
                    }
                } else if let Some(thin_id) = next {
                    after = Bound::Excluded(thin_id);
                    failed |= self.delete_removed(&exclusive, thin_id).is_err();
                } else {
                    return failed;
                }
            }
            let pause = if self.deferred() < BACKLOG_HIGH { begun.elapsed() } else { Duration::ZERO };
            if !self.work.pause(pause) {
                return failed;
            }
        }
    }
}
