//! Adding and removing snapshots.

use nix::errno::Errno;

use super::graph::{FsState, Record, Snapshot};
use super::options::check_size;
use super::store::Reservation;
use super::{Filesystem, SnapshotId, SnapshotTree};
use crate::thin::{Origin, ThinId};
use crate::units::Bytes;
use crate::{Error, Result};

/// What a snapshot is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent<'a> {
    /// The base: an empty file system.
    Base,
    /// Another snapshot, which may be active and mounted meanwhile.
    Snapshot(&'a str),
}

/// Options of one snapshot.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AddOptions {
    size: Option<Bytes>,
}

impl AddOptions {
    /// All defaults: as large as the parent.
    pub fn new() -> Self {
        Self::default()
    }

    /// At least as large as the parent; the file system is grown to it.
    #[must_use]
    pub fn size(mut self, size: Bytes) -> Self {
        self.size = Some(size);
        self
    }
}

impl SnapshotTree {
    /// Make a snapshot. It is durable when this returns.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::SnapshotExists`], [`Error::UnknownSnapshot`] for the parent,
    /// [`Error::PoolMode`] if the pool is full or broken. Nothing is left of a snapshot that failed.
    pub fn add(&self, id: &str, parent: Parent<'_>) -> Result<()> {
        self.add_with(id, parent, &AddOptions::new())
    }

    /// The same with options.
    ///
    /// # Errors
    /// Also [`Error::InvalidOption`] for a size below the parent's.
    pub fn add_with(&self, id: &str, parent: Parent<'_>, options: &AddOptions) -> Result<()> {
        self.check_open()?;
        let name = SnapshotId::new(id)?;
        self.finish_removal(&name)?;
        let mut reservation = self.store.reserve(Some(name.clone()))?;
        let snapshot = match parent {
            Parent::Base => {
                let base = self.store.read(|graph| graph.base.clone());
                let base = base.ok_or(Error::Closed)?;
                let made = self.derive(None, (base.size, base.fs), options, reservation.thin_id)?;
                let origin = Origin::Inactive(base.thin_id);
                self.create_snap(&mut reservation, made, &origin)?
            }
            Parent::Snapshot(parent_id) => self.with_slot(parent_id, |slot, parent| {
                let name = Some(SnapshotId::new(parent_id)?);
                let made = self.derive(name, (parent.size, parent.fs), options, reservation.thin_id)?;
                let Some(volume) = &slot.volume else {
                    return self.create_snap(&mut reservation, made, &Origin::Inactive(parent.thin_id));
                };
                let suspended = volume.suspend()?;
                let created = self.create_snap(&mut reservation, made, &Origin::Suspended(&suspended));
                // A parent that does not come back is worse than a snapshot that failed.
                if let Err(error) = suspended.resume() {
                    if let Ok(snapshot) = created {
                        self.undo(&mut reservation, snapshot.thin_id);
                    }
                    return Err(error);
                }
                created
            })?,
        };
        let (thin_id, fs) = (snapshot.thin_id, snapshot.fs);
        if let Err(error) = reservation.commit(&Record::Add { id: name, snapshot }) {
            // Unresolved, the record may be on disk: then the volume has to stay.
            if !reservation.unresolved {
                self.undo(&mut reservation, thin_id);
            }
            return Err(error);
        }
        drop(reservation);
        self.compact();
        if fs == FsState::Growing {
            return self.grow_now(id);
        }
        Ok(())
    }

    /// Remove a snapshot: deactivate it and delete its volume. Snapshots made from it stay.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`], [`Error::Busy`]: nothing has changed. After any
    /// other error the snapshot is gone for callers, and the pool lets go of it at the next open.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.with_slot(id, |slot, snapshot| {
            self.deactivate_slot(slot, id)?;
            let name = SnapshotId::new(id)?;
            self.store.commit(&Record::Deleting { id: name.clone() })?;
            self.delete_volume(&name, snapshot.thin_id)
        })?;
        self.compact();
        Ok(())
    }

    /// The record of a snapshot of such a parent.
    fn derive(
        &self,
        parent: Option<SnapshotId>,
        (parent_size, parent_fs): (Bytes, FsState),
        options: &AddOptions,
        thin_id: ThinId,
    ) -> Result<Snapshot> {
        let size = options.size.unwrap_or(parent_size);
        check_size("snapshot size", size)?;
        if size < parent_size {
            let reason = "less than its parent's";
            return Err(Error::InvalidOption { option: "snapshot size", value: size.to_string(), reason });
        }
        let grows = size > parent_size && self.filesystem != Filesystem::None;
        let fs = if grows { FsState::Growing } else { parent_fs };
        Ok(Snapshot { thin_id, parent, size, fs, deleting: false })
    }

    /// Create the snapshot in the pool. An id that somebody else has taken is passed over.
    fn create_snap(
        &self,
        reservation: &mut Reservation<'_>,
        mut snapshot: Snapshot,
        origin: &Origin<'_>,
    ) -> Result<Snapshot> {
        loop {
            snapshot.thin_id = reservation.thin_id;
            match self.pool.create_snap(snapshot.thin_id, origin) {
                Ok(()) => return Ok(snapshot),
                Err(error) if error.errno() == Some(Errno::EEXIST) => {
                    self.store.take_another(reservation)?;
                }
                Err(error) => {
                    // Whatever it was, there must not be a volume that nobody knows.
                    self.undo(reservation, snapshot.thin_id);
                    return Err(error);
                }
            }
        }
    }

    /// Take back what has no record. If that fails the id stays reserved, and the next open does it.
    fn undo(&self, reservation: &mut Reservation<'_>, id: ThinId) {
        reservation.unresolved = !is_deleted(&self.pool.delete(id));
    }

    /// Delete a volume whose removal is recorded.
    pub(super) fn delete_volume(&self, id: &SnapshotId, thin_id: ThinId) -> Result<()> {
        let deleted = self.pool.delete(thin_id);
        if !is_deleted(&deleted) {
            return deleted;
        }
        // Durable with the next change: until then an open deletes once more, what is not there.
        self.store.append(&Record::Deleted { id: id.clone() }).map(drop)
    }

    /// A name whose volume could not be deleted when it was removed is free once it can.
    fn finish_removal(&self, id: &SnapshotId) -> Result<()> {
        let leftover = self.store.read(|graph| graph.snapshots.get(id).filter(|s| s.deleting).cloned());
        match leftover {
            Some(snapshot) => self.delete_volume(id, snapshot.thin_id),
            None => Ok(()),
        }
    }

    /// Grow a new snapshot's file system; without that it is not what was asked for.
    fn grow_now(&self, id: &str) -> Result<()> {
        let grown = self.with_slot(id, |slot, snapshot| {
            self.activate_slot(slot, id, snapshot)?;
            self.deactivate_slot(slot, id)
        });
        if grown.is_err() {
            let _ = self.remove(id);
        }
        grown
    }
}

fn is_deleted(result: &Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => error.errno() == Some(Errno::ENODATA),
    }
}
