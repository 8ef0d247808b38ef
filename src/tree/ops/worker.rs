//! What a tree does beside its calls: checkpoints, and the volumes of removed snapshots.

use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kernel::Process;
use crate::tree::SnapshotTree;
use crate::tree::state::store::SyncThread;
use crate::tree::sync::thread::{self, JoinHandle};
use crate::tree::sync::{Changed, Guard, Lock, Rank};

/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Work that no caller waits for. It is done by the tree's thread, and by calls that need what it frees.
#[derive(Debug)]
pub(in crate::tree) struct Work {
    /// Held while one piece of it is done.
    busy: Lock<()>,
    orders: Lock<Orders>,
    changed: Changed,
}

#[derive(Debug, Default)]
struct Orders {
    /// There is a thread.
    thread: bool,
    /// There may be something to do.
    wanted: bool,
    stop: bool,
}

/// As long as this is held nobody else does such work.
pub(in crate::tree) type Exclusive<'a> = Guard<'a, ()>;

impl Default for Work {
    fn default() -> Self {
        let (busy, orders) = (Lock::new(Rank::Work, ()), Lock::new(Rank::Leaf, Orders::default()));
        Self { busy, orders, changed: Changed::default() }
    }
}

impl Work {
    pub(in crate::tree) fn exclusive(&self) -> Exclusive<'_> {
        self.busy.lock()
    }

    /// Lets the thread look for something to do; `false` if there is no thread.
    pub(in crate::tree) fn wake(&self) -> bool {
        let mut orders = self.orders.lock();
        orders.wanted = true;
        self.changed.notify_all();
        orders.thread
    }

    /// Waits until there may be something to do, not longer than [`RETRY`] if something failed; `false` at the end.
    fn wait(&self, failed: bool) -> bool {
        let mut orders = self.orders.lock();
        while !orders.wanted && !orders.stop {
            if !failed {
                orders = self.changed.wait(orders);
                continue;
            }
            let (guard, late) = self.changed.wait_within(orders, RETRY);
            orders = guard;
            orders.wanted |= late;
        }
        orders.wanted = false;
        !orders.stop
    }

    /// Waits for so long; `false` at the end.
    fn pause(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        let mut orders = self.orders.lock();
        while !orders.stop && !cfg!(all(test, shuttle)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            (orders, _) = self.changed.wait_within(orders, left);
        }
        !orders.stop
    }
}

/// The threads of a tree; dropping this ends them.
#[derive(Debug, Default)]
pub(in crate::tree) struct Threads {
    _worker: Option<Worker>,
    _sync: Option<SyncThread>,
}

/// The thread that does the work; dropping this ends it.
#[derive(Debug)]
struct Worker {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
    owner: Process,
}

impl Worker {
    fn start(tree: SnapshotTree) -> Self {
        let work = tree.work.clone();
        let thread = thread::Builder::new().name("dm-thin-worker".to_owned()).spawn(move || tree.work_on());
        work.orders.lock().thread = thread.is_ok();
        work.wake();
        Self { work, thread: thread.ok(), owner: Process::current() }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A child of fork does not have the thread, and its locks are of no use.
        if let Some(thread) = self.thread.take().filter(|_| self.owner.is_current()) {
            self.work.orders.lock().stop = true;
            self.work.changed.notify_all();
            // A panic of the thread was reported there.
            let _ = thread.join();
        }
    }
}

impl SnapshotTree {
    pub(in crate::tree) fn start_threads(&self) -> Threads {
        // In a shared pool the message comes before the record.
        let sync = (!self.store.is_shared()).then(|| {
            let (pool, store) = (self.pool.clone(), self.store.clone());
            // Who takes the first id of the window tries again.
            let raise = move |window| drop(pool.generation.raise_for_window(&pool.thin, &store, window));
            SyncThread::start(&self.store, raise)
        });
        let worker = Worker::start(Self {
            _threads: Threads::default(),
            options: self.options.clone(),
            root: self.root.clone(),
            store: self.store.clone(),
            pool: self.pool.clone(),
            live: self.live.clone(),
            mounts: self.mounts.clone(),
            work: self.work.clone(),
            closed: self.closed.clone(),
        });
        Threads { _worker: Some(worker), _sync: sync }
    }

    fn work_on(&self) {
        let mut failed = false;
        while self.work.wait(failed) {
            failed = self.work_once();
        }
    }

    /// Does what there is to do, one piece after another: for half of the time at most, so that callers get at the pool.
    /// Returns whether something failed.
    fn work_once(&self) -> bool {
        let (mut after, mut failed) = (Bound::Unbounded, false);
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
                let next = self.store.read(|graph| {
                    graph.removed.range((after, Bound::Unbounded)).next().map(|(thin_id, _)| *thin_id)
                });
                let Some(thin_id) = next else { return failed };
                after = Bound::Excluded(thin_id);
                failed |= self.delete_removed(&exclusive, thin_id).is_err();
            }
            if !self.work.pause(begun.elapsed()) {
                return failed;
            }
        }
    }
}
