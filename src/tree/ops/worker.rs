//! What a tree does beside its calls: it writes checkpoints, makes ready snapshots, and deletes volumes.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::tree::live::ready::Missing;
use crate::tree::live::work::Worker;
use crate::tree::state::store::SyncThread;
use crate::tree::{SnapshotTree, Threads};

/// When a removed snapshot that was open is looked at again.
const RETRY_BUSY: Duration = Duration::from_secs(1);
/// When what failed is tried again: it may write to the pool, and to the kernel's log.
const RETRY_FAILED: Duration = Duration::from_secs(10);

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
            counts: self.counts.clone(),
            recovered: self.recovered.clone(),
        };
        let worker = Worker::start(self.work.clone(), move || tree.work_on());
        Threads { _worker: Some(worker), _sync: sync }
    }

    fn work_on(&self) {
        let (mut left, mut unmade, mut since) = (None, BTreeSet::new(), Instant::now());
        while self.work.wait(left) {
            if since.elapsed() >= RETRY_FAILED {
                (unmade, since) = (BTreeSet::new(), Instant::now());
            }
            left = self.work_once(&mut unmade);
        }
    }

    /// Does what there is to do, one piece after another: for half of the time as long as that is enough, so that callers
    /// get at the pool. `unmade` is what could not be made. Returns when to look again at what is left.
    fn work_once(&self, unmade: &mut BTreeSet<Missing>) -> Option<Duration> {
        let (mut after, mut busy, mut failed) = (Bound::Unbounded, None, false);
        loop {
            let begun = Instant::now();
            {
                let exclusive = self.work.in_background();
                if self.check_open().is_err() {
                    return None;
                }
                let next = self.store.read(|graph| {
                    graph.removed.range((after, Bound::Unbounded)).next().map(|(thin_id, _)| *thin_id)
                });
                if !failed && self.store.wants_checkpoint(self.options.checkpoint_at) {
                    // The journal holds everything.
                    failed = self.checkpoint().is_err();
                } else if let Some(missing) = self.ready.missing(unmade) {
                    if self.make_ready(&exclusive, missing).is_err() {
                        unmade.insert(missing);
                    }
                } else if let Some(thin_id) = next {
                    after = Bound::Excluded(thin_id);
                    match self.delete_removed(&exclusive, thin_id) {
                        Ok(()) => {}
                        Err(error) if error.is_busy() => busy = Some(RETRY_BUSY),
                        // What the pool refuses once, it refuses again.
                        Err(_) => return Some(RETRY_FAILED),
                    }
                } else {
                    let deleted = self.delete_unwanted(&exclusive).and(self.delete_abandoned());
                    let failed = failed || deleted.is_err() || !unmade.is_empty();
                    return if failed { busy.or(Some(RETRY_FAILED)) } else { busy };
                }
            }
            let pause = if self.deferred() < BACKLOG_HIGH { begun.elapsed() } else { Duration::ZERO };
            if !self.work.pause(pause) {
                return None;
            }
        }
    }
}
