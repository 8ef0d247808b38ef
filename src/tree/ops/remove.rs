//! Removing snapshots: at once, or when they are closed.
//!
//! A removal is recorded before anything of the snapshot is touched. From then on callers see it no more,
//! though its id stays taken until the pool has let go of the volume: whatever interrupts that, the next
//! [`reap`](SnapshotTree::reap), and every open of the tree, goes on with it.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::dm::Removal;
use crate::kernel::Process;
use crate::thin;
use crate::thin::{ActivateOptions, ThinId};
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::state::graph::{Record, Snapshot};
use crate::tree::{Error, Result};
use crate::tree::{SnapshotId, SnapshotTree};

/// How a snapshot is removed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RemoveOptions {
    deferred: Option<bool>,
    busy_timeout: Option<Duration>,
}

impl RemoveOptions {
    /// As the tree's options say.
    pub fn new() -> Self {
        Self::default()
    }

    /// If the snapshot is still open somewhere, let it be deleted later. Default:
    /// [`Options::deferred_deletion`](crate::tree::Options::deferred_deletion).
    #[must_use]
    pub fn deferred(mut self, deferred: bool) -> Self {
        self.deferred = Some(deferred);
        self
    }

    /// How long to wait for those who have it open. Default:
    /// [`Options::busy_timeout`](crate::tree::Options::busy_timeout).
    #[must_use]
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = Some(timeout);
        self
    }
}

impl SnapshotTree {
    /// Removes a snapshot: deactivates it and deletes its volume. Snapshots made from it stay.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`], [`Error::Busy`]: nothing has changed. After any
    /// other error the snapshot is gone for callers, and the next [`reap`](Self::reap) or open deletes it.
    pub fn remove(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        self.remove_with(id, &RemoveOptions::new()).map(drop)
    }

    /// The same with options. [`Removal::Deferred`] says that it is gone for callers, but its device is still open: its
    /// space comes back, and its id is free, when [`reap`](Self::reap) finds it closed.
    ///
    /// # Errors
    /// As [`remove`](Self::remove); deferred, a snapshot that is open elsewhere is no error.
    pub fn remove_with(&self, id: impl AsRef<str>, options: &RemoveOptions) -> Result<Removal> {
        let id = id.as_ref();
        let timeout = options.busy_timeout.unwrap_or(self.options.busy_timeout);
        let deferred = options.deferred.unwrap_or(self.options.deferred_deletion);
        let removal = self.with_snapshot(id, |active, snapshot| {
            let name = SnapshotId::new(id)?;
            let deactivated = active.deactivate(&self.pool, id, timeout);
            let busy = matches!(deactivated, Err(Error::Busy { .. }));
            if !(busy && deferred) {
                deactivated?;
            }
            self.store.commit(&Record::Deleting { id: name.clone() })?;
            if !busy {
                return self.delete_volume(&name, snapshot).map(|()| Removal::Removed);
            }
            if let Some(volume) = &active.volume {
                // So that it does not stay for ever if this process dies. Old kernels cannot; reaping does.
                let _ = volume.deactivate_deferred();
            }
            *active = ActiveSnapshot::default();
            Ok(Removal::Deferred)
        })?;
        self.compact();
        Ok(removal)
    }

    /// Deletes snapshots that were removed while they were open and are closed now. Does not wait. The number of
    /// those still open is returned.
    ///
    /// # Errors
    /// The first failure; the others were tried all the same.
    pub fn reap(&self) -> Result<usize> {
        self.check_open()?;
        let left = self.reap_closed();
        let deleted = self.delete_abandoned();
        self.compact();
        left.and_then(|left| deleted.map(|()| left)).map_err(|error| self.closed_or(error))
    }

    /// How many removed snapshots wait for being closed.
    pub fn deferred(&self) -> usize {
        self.store.read(|graph| graph.deleting().len())
    }

    /// A thread that calls [`reap`](Self::reap) every `interval`, until the returned value or the last other
    /// reference to the tree is dropped. Errors are met again by the next round.
    pub fn reap_every(self: &Arc<Self>, interval: Duration) -> Reaper {
        let (stop, stopped) = channel::<()>();
        let tree: Weak<Self> = Arc::downgrade(self);
        let thread = thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
                let Some(tree) = tree.upgrade() else { break };
                // The next round meets the same error.
                let _ = tree.reap();
            }
        });
        Reaper { stop: Some(stop), thread: Some(thread), owner: Process::current() }
    }

    /// The part of [`reap`](Self::reap) that an open does, too.
    pub(in crate::tree) fn reap_closed(&self) -> Result<usize> {
        let deleting: Vec<_> = self.store.read(|graph| graph.deleting().iter().cloned().collect());
        let (mut left, mut first_error) = (0, Ok(()));
        for id in deleting {
            match self.finish_removal(&id) {
                Err(error) if error.is_busy() => left += 1,
                result => first_error = first_error.and(result),
            }
        }
        first_error.map(|()| left)
    }

    /// As [`finish_removal`](Self::finish_removal), for a caller that wants the id: an error names the processes that
    /// have it open.
    pub(in crate::tree) fn free_id(&self, id: &SnapshotId) -> Result<()> {
        if let Some(left) = self.store.reserve_left(id) {
            self.unmake(left.thin_id)?;
        }
        self.finish_removal(id).map_err(|error| self.pool.with_holders(Some(id.as_str()), error))
    }

    /// Deletes the volume of a removed snapshot, so that its id is free.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is open.
    pub(in crate::tree) fn finish_removal(&self, id: &SnapshotId) -> Result<()> {
        if !self.store.read(|graph| graph.deleting().contains(id)) {
            return Ok(());
        }
        let cell = self.live.cell(id);
        let finished = {
            let _active = cell.lock();
            // Another call may have done it, while it had the snapshot.
            let leftover = self.store.read(|graph| graph.snapshots.get(id).filter(|s| s.deleting).cloned());
            leftover.map_or(Ok(()), |snapshot| {
                self.pool
                    .remove_left(id.as_str(), snapshot.thin_id)
                    .and_then(|()| self.delete_volume(id, &snapshot))
            })
        };
        self.live.release(id, cell);
        finished
    }

    /// Deletes a volume that is not active, and whose removal is recorded.
    fn delete_volume(&self, id: &SnapshotId, snapshot: &Snapshot) -> Result<()> {
        if self.discards() {
            // Only now: what is discarded must not be found in the state again.
            self.discard(id, snapshot)?;
        }
        self.delete_recorded(snapshot.thin_id, &Record::Deleted { id: id.clone() })
    }

    /// Deletes a volume that is not active and under a record, and records that.
    ///
    /// In a shared pool the id may be another user's as soon as the volume is deleted, and that cannot be detected:
    /// so it is deleted once, after it is recorded. What a crash or a failure leaves is reported as any volume that
    /// the tree does not know.
    pub(in crate::tree) fn delete_recorded(&self, thin_id: ThinId, done: &Record) -> Result<()> {
        if self.store.is_shared() {
            let mode = self.pool.thin.status()?.mode();
            if !mode.is_sound() {
                let (pool, consequence) = (self.pool.thin.name().to_string(), "nothing can be deleted");
                return Err(Error::Thin(thin::Error::PoolMode { pool, mode, consequence }));
            }
            self.store.commit(done)?;
            return self.pool.delete(thin_id);
        }
        self.pool.delete(thin_id)?;
        // Durable with the next change; an open before that records again that the volume is gone.
        self.store.append(done).map(drop)
    }

    /// Whether blocks of a removed snapshot are given back to the device below.
    fn discards(&self) -> bool {
        let default = |state: &crate::tree::state::journal::State| {
            state.pool.source.is_default() && state.pool.features.discards == crate::thin::Discards::Passdown
        };
        self.options.blkdiscard.unwrap_or_else(|| self.store.read_state(default))
    }

    /// Gives the blocks back. Failing to is no error.
    fn discard(&self, id: &SnapshotId, snapshot: &Snapshot) -> Result<()> {
        let discarded = self
            .pool
            .activate(id.as_str(), snapshot.thin_id, snapshot.size, &ActivateOptions::new())
            .and_then(|volume| {
                // The pool has the blocks again all the same: they are not given back to what is below it.
                let _ = volume.discard_all();
                self.pool.deactivate(&volume)
            });
        // Nothing of the device may be left.
        discarded.or_else(|_| self.pool.remove_left(id.as_str(), snapshot.thin_id))
    }
}

/// A thread that deletes what was removed while it was open; dropping this ends it.
#[derive(Debug)]
#[must_use]
pub struct Reaper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    owner: Process,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A child of fork does not have the thread.
        if let Some(thread) = self.thread.take().filter(|_| self.owner.is_current()) {
            // A panic of the thread was reported there.
            let _ = thread.join();
        }
    }
}
