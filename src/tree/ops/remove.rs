//! Removing snapshots.
//!
//! A removal is recorded before anything of the snapshot's volume is touched. From then on callers do not see the
//! snapshot, and its id is free. The volume is deleted later; whatever interrupts that, the next
//! [`reap`](SnapshotTree::reap), and every open of the tree, goes on with it.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::dm::Removal;
use crate::kernel::Access;
use crate::thin;
use crate::thin::{ActivateOptions, ThinId, ThinVolume};
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::live::volume_file::VolumeFile;
use crate::tree::live::work::Exclusive;
use crate::tree::ops::family::check_childless;
use crate::tree::state::record::Record;
use crate::tree::{Error, Result, trace};
use crate::tree::{SnapshotId, SnapshotTree};
use crate::units::Bytes;

/// When more volumes than that are to be deleted, each removal deletes one itself.
const BACKLOG_MAX: usize = 1024;

/// So much is discarded at once. Nobody can interrupt the kernel there.
const DISCARD: Bytes = Bytes::gib(1);

/// How a snapshot is removed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RemoveOptions {
    deferred: Option<bool>,
    busy_timeout: Option<Duration>,
    background: Option<bool>,
    refuse_children: bool,
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

    /// Refuse to remove it if snapshots that are there were made from it: [`Error::HasChildren`]. Default: they stay,
    /// and are whole without it.
    #[must_use]
    pub fn refuse_children(mut self, refuse: bool) -> Self {
        self.refuse_children = refuse;
        self
    }

    /// Leave the deletion of its volume to the tree's thread, or, if it has none, to [`reap`](SnapshotTree::reap),
    /// [`close`](SnapshotTree::close) or the next open. Default: if the tree has one,
    /// [`Options::background_threads`](crate::tree::Options::background_threads).
    #[must_use]
    pub fn background(mut self, background: bool) -> Self {
        self.background = Some(background);
        self
    }
}

impl SnapshotTree {
    /// Removes a snapshot: deactivates it, and records, durably, that it is removed. Its id is free, and its volume is
    /// deleted in the background. Snapshots made from it stay.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`], [`Error::Busy`]: nothing has changed. After any
    /// other error the snapshot may be gone for callers; the next [`reap`](Self::reap) or open deletes its volume then.
    pub fn remove(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        self.remove_with(id, &RemoveOptions::new()).map(drop)
    }

    /// The same with options. [`Removal::Deferred`] says that its volume is still to be deleted, and the space to come
    /// back: by the tree's thread, or by [`reap`](Self::reap).
    ///
    /// # Errors
    /// As [`remove`](Self::remove); deferred, a snapshot that is open elsewhere is no error. [`Error::HasChildren`] where that
    /// is asked for: it may be inactive then.
    pub fn remove_with(&self, id: impl AsRef<str>, options: &RemoveOptions) -> Result<Removal> {
        let id = id.as_ref();
        trace::call("remove", id, || self.remove_now(id, options))
    }

    fn remove_now(&self, id: &str, options: &RemoveOptions) -> Result<Removal> {
        let timeout = options.busy_timeout.unwrap_or(self.options.busy_timeout);
        let deferred = options.deferred.unwrap_or(self.options.deferred_deletion);
        let (thin_id, busy) = self.with_snapshot(id, |active, snapshot| {
            if options.refuse_children {
                self.store.recorded(|recorded| check_childless(recorded, id))?;
            }
            let deactivated = active.deactivate(&self.pool, id, timeout);
            let busy = deferred && matches!(deactivated, Err(Error::Busy { .. }));
            if busy {
                // Another snapshot can have its name.
                self.rename_unpublished(active, snapshot.thin_id)?;
            } else {
                deactivated?;
            }
            let record = Record::Deleting { id: SnapshotId::new(id)? };
            let recorded = self.store.commit_with(|recorded| {
                // A child may have been made meanwhile.
                if options.refuse_children {
                    check_childless(recorded, id).map(|()| record)
                } else {
                    Ok(record)
                }
            });
            recorded.inspect_err(|_| {
                if let (Some(volume), Ok(name)) = (&mut active.volume, self.pool.names.name(id)) {
                    // The next open does it if this fails.
                    let _ = volume.rename(&name);
                }
            })?;
            if let Some(volume) = &active.volume {
                // So that it does not stay for ever if this process dies. Old kernels cannot; reaping does.
                let _ = volume.deactivate_deferred();
            }
            *active = ActiveSnapshot::default();
            self.forget_ready(snapshot.thin_id);
            Ok((snapshot.thin_id, busy))
        })?;
        let has_thread = self.work.wake();
        let removal = if busy || options.background.unwrap_or(has_thread) {
            if self.deferred() > BACKLOG_MAX {
                // Callers are no faster than the pool. Some volumes may be open.
                self.delete_any(4);
            }
            Removal::Deferred
        } else {
            self.delete_inactive(&self.work.exclusive(), thin_id).map_err(|error| self.closed_or(error))?;
            Removal::Removed
        };
        self.compact();
        Ok(removal)
    }

    fn rename_unpublished(&self, active: &mut ActiveSnapshot, thin_id: ThinId) -> Result<()> {
        let Some(volume) = &mut active.volume else { return Ok(()) };
        match volume.rename(&self.pool.names.unpublished(thin_id)?) {
            // Its deferred removal has been carried out.
            Err(error) if error.errno() == Some(Errno::ENXIO) => active.forget_device(&self.pool),
            result => Ok(result?),
        }
    }

    /// Deletes the volumes of removed snapshots, and those that were never published. Does not wait. The number of
    /// snapshots that are still open is returned.
    ///
    /// # Errors
    /// The first failure; the others were tried all the same.
    pub fn reap(&self) -> Result<usize> {
        self.check_open()?;
        let exclusive = self.work.exclusive();
        let left = self.reap_closed(&exclusive, None);
        let deleted = self.delete_unwanted(&exclusive).and(self.delete_abandoned());
        drop(exclusive);
        self.compact();
        left.and_then(|left| deleted.map(|_| left)).map_err(|error| self.closed_or(error))
    }

    /// How many removed snapshots have a volume that is still to be deleted.
    pub fn deferred(&self) -> usize {
        self.store.read(|graph| graph.removed.len())
    }

    /// The part of [`reap`](Self::reap) that an open does, too; until `end`.
    pub(in crate::tree) fn reap_closed(
        &self,
        exclusive: &Exclusive<'_>,
        end: Option<Instant>,
    ) -> Result<usize> {
        let removed: Vec<_> = self.store.read(|graph| graph.removed.keys().copied().collect());
        let (mut left, mut first_error) = (0, Ok(()));
        for thin_id in removed {
            if end.is_some_and(|end| Instant::now() >= end) {
                left += 1;
                continue;
            }
            match self.delete_removed(exclusive, thin_id) {
                Err(error) if error.is_busy() => left += 1,
                result => first_error = first_error.and(result),
            }
        }
        first_error.map(|()| left)
    }

    /// Runs `work`, and again after each volume of a removed snapshot that was deleted because space is short.
    pub(in crate::tree) fn with_space<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(error) if needs_removals(&error) && self.delete_any(usize::MAX) => {}
                result => return result,
            }
        }
    }

    /// Deletes the volume of one removed snapshot, after so many attempts at most; `false` if none could be deleted.
    fn delete_any(&self, attempts: usize) -> bool {
        let exclusive = self.work.exclusive();
        let removed: Vec<_> = self.store.read(|graph| graph.removed.keys().copied().collect());
        let mut tried = removed.into_iter().take(attempts);
        tried.any(|thin_id| self.delete_removed(&exclusive, thin_id).is_ok())
    }

    /// Takes back what is left of an addition of that id that failed.
    pub(in crate::tree) fn free_id(&self, id: &SnapshotId) -> Result<()> {
        let Some(left) = self.store.reserve_left(id) else { return Ok(()) };
        self.unmake(left.thin_id)
    }

    /// Deletes the volume of a removed snapshot.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is open.
    pub(in crate::tree) fn delete_removed(&self, exclusive: &Exclusive<'_>, thin_id: ThinId) -> Result<()> {
        if !self.store.read(|graph| graph.removed.contains_key(&thin_id)) {
            return Ok(());
        }
        // Until its removal is durable, the snapshot may be found in the state again, and be in use.
        self.store.sync_removals()?;
        self.pool.remove_left(thin_id)?;
        self.delete_inactive(exclusive, thin_id)
    }

    /// Its removal is durable.
    fn delete_inactive(&self, exclusive: &Exclusive<'_>, thin_id: ThinId) -> Result<()> {
        let Some(removed) = self.store.read(|graph| graph.removed.get(&thin_id).cloned()) else {
            return Ok(());
        };
        if self.discards() {
            self.discard(exclusive, thin_id, removed.size)?;
        }
        self.unmake(thin_id)
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

    /// Gives the blocks back. Failing to is no error: the pool has them again all the same, though not what is below it.
    ///
    /// # Errors
    /// [`Error::Closed`] if the thread ends before it is done. [`Error::Busy`] if the device cannot be removed.
    fn discard(&self, exclusive: &Exclusive<'_>, thin_id: ThinId, size: Bytes) -> Result<()> {
        let name = self.pool.names.unpublished(thin_id)?;
        let activated = self.pool.activate_as(&name, thin_id, size, &ActivateOptions::new());
        let is_cut_short = activated.and_then(|volume| {
            let discarded = self.discard_slices(exclusive, &volume, size);
            self.pool.deactivate(&volume).map(|()| matches!(discarded, Err(Error::Closed)))
        });
        match is_cut_short {
            Ok(true) => Err(Error::Closed),
            Ok(false) => Ok(()),
            // Nothing of the device may be left.
            Err(_) => self.pool.remove_left(thin_id),
        }
    }

    fn discard_slices(&self, exclusive: &Exclusive<'_>, volume: &ThinVolume, size: Bytes) -> Result<()> {
        let file = VolumeFile::open(self.options.kernel.clone(), volume, Access::READ_WRITE)?;
        let block = self.store.read_state(|state| state.pool.block_size.0);
        let slice = (DISCARD.0 / block).max(1) * block;
        let mut at = 0;
        while at < size.0 {
            let (begun, length) = (Instant::now(), slice.min(size.0 - at));
            if !file.discard(at, length)? {
                break;
            }
            at += length;
            if !exclusive.pause(begun) {
                return Err(Error::Closed);
            }
        }
        Ok(())
    }
}

/// Whether deleting the volumes of removed snapshots may help.
fn needs_removals(error: &Error) -> bool {
    error.is_out_of_space() || matches!(error, Error::NoFreeDeviceId)
}
