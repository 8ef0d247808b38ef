//! Adding snapshots.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use crate::dm::DmFlags;
use crate::thin;
use crate::thin::{Message, Origin, ThinId, ThinVolume};
use crate::tree::names::BASE;
use crate::tree::state::record::{FsState, Record, Snapshot};
use crate::tree::state::size::{check_child_size, check_size};
use crate::tree::state::store::{First, Reservation};
use crate::tree::{Error, Result, trace};
use crate::tree::{Filesystem, Labels, SnapshotId, SnapshotTree};
use crate::units::Bytes;

/// What a snapshot is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Parent<'a> {
    /// The base: an empty file system.
    Base,
    /// Another snapshot, which may be active and mounted meanwhile.
    Snapshot(&'a str),
}

/// What a snapshot contains of a parent that is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Consistency {
    /// Everything that was written before: the file system is frozen while the snapshot is made, so its caches are
    /// written and its log is empty.
    #[default]
    Filesystem,
    /// What the device would have after a power cut: everything that was synced, and any part of what was not. The file
    /// system is not frozen, which takes most of the time that a snapshot of a mounted parent needs. Its log is replayed
    /// when the snapshot is mounted for the first time.
    Crash,
}

/// Options of one snapshot.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AddOptions {
    pub(in crate::tree) size: Option<Bytes>,
    pub(in crate::tree) labels: Labels,
    pub(in crate::tree) consistency: Consistency,
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

    /// What it contains of a parent that is mounted. Default: [`Consistency::Filesystem`]. Of a parent that is active and
    /// not mounted by this machine it contains what was written to the device, in either case.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Labels that it has from the start.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }
}

impl SnapshotTree {
    /// Makes a snapshot. It is durable when this returns. If one of that parent is [ready](Self::keep_ready), that is
    /// taken, and active.
    ///
    /// # Errors
    /// [`Error::InvalidName`],
    /// [`Error::SnapshotExists`],
    /// [`Error::UnknownSnapshot`] for the parent,
    /// [`thin::Error::PoolMode`] if the pool is full, read-only or failed,
    /// [`thin::Error::LowSpace`] if less is free than
    /// [`Options::min_free_data`](crate::tree::Options::min_free_data). A failed call leaves nothing.
    pub fn add(&self, id: impl AsRef<str>, parent: Parent<'_>) -> Result<()> {
        let id = id.as_ref();
        self.add_with(id, parent, &AddOptions::new())
    }

    /// The same with options.
    ///
    /// # Errors
    /// Also [`Error::InvalidOption`] for a size below the parent's.
    pub fn add_with(&self, id: impl AsRef<str>, parent: Parent<'_>, options: &AddOptions) -> Result<()> {
        let id = id.as_ref();
        trace::call("add", id, || self.add_or_claim(id, parent, options, false).map(drop))
    }

    /// The same, and activates it: its device is there when this returns. A [ready](Self::keep_ready) snapshot of that
    /// parent has one already.
    ///
    /// # Errors
    /// As [`add_with`](Self::add_with) and [`activate`](Self::activate). A failed call removes the snapshot again; one whose
    /// device is open, or whose removal cannot be recorded, stays.
    pub fn add_activated(
        &self,
        id: impl AsRef<str>,
        parent: Parent<'_>,
        options: &AddOptions,
    ) -> Result<PathBuf> {
        let id = id.as_ref();
        let claimed = trace::call("add", id, || self.add_or_claim(id, parent, options, true))?;
        if let Some(device) = claimed {
            return Ok(device);
        }
        self.activate(id).inspect_err(|_| {
            // Best effort: return the original error.
            let _ = self.remove(id);
        })
    }

    /// Returns the device of a snapshot that was ready.
    fn add_or_claim(
        &self,
        id: &str,
        parent: Parent<'_>,
        options: &AddOptions,
        activated: bool,
    ) -> Result<Option<PathBuf>> {
        let id = SnapshotId::new(id)?;
        self.check_open()?;
        self.free_id(&id)?;
        if let Some(claimed) = self.claim_ready(&id, parent, options, activated)? {
            self.compact();
            return Ok(claimed.device);
        }
        let snapshot = self.with_space(|| self.add_now(&id, parent, options))?;
        self.compact();
        if snapshot.fs == FsState::Growing {
            self.grow_now(id.as_str())?;
        }
        Ok(None)
    }

    fn add_now(&self, name: &SnapshotId, parent: Parent<'_>, options: &AddOptions) -> Result<Snapshot> {
        let mut reservation = self.reserve(Some(name.clone()))?;
        // In a pool that others use, too, an id is this tree's only when its message was obeyed.
        reservation.record_first = (!self.store.is_shared()).then_some(First::Adding);
        let (snapshot, seq) = self.snap(&mut reservation, parent, options, |reservation, snapshot, _| {
            if let Some(seq) = reservation.begun {
                return Ok((snapshot, seq));
            }
            let record = Record::Add { id: name.clone(), snapshot: snapshot.clone() };
            self.record(reservation, snapshot.thin_id, &record).map(|seq| (snapshot, seq))
        })?;
        // Unsynced, the record may be on disk: then the volume has to stay.
        self.store.sync(seq).inspect_err(|_| reservation.unresolved = true)?;
        if reservation.begun.is_some() {
            // Durable with the next change: until then an open looks for the volume.
            let added = Record::Added { thin_id: snapshot.thin_id };
            self.record(&mut reservation, snapshot.thin_id, &added)?;
        }
        Ok(snapshot)
    }

    /// Makes the volume of a snapshot and runs `record` with it and its parent, while the parent can neither be renamed
    /// nor removed.
    pub(in crate::tree) fn snap<T>(
        &self,
        reservation: &mut Reservation<'_>,
        parent: Parent<'_>,
        options: &AddOptions,
        record: impl FnOnce(&mut Reservation<'_>, Snapshot, Option<&Snapshot>) -> Result<T>,
    ) -> Result<T> {
        match parent {
            Parent::Base => {
                let base = self.base()?;
                let made = self.derive(None, (base.size, base.fs), options, reservation.thin_id)?;
                let origin = Origin::Inactive(base.thin_id);
                let made = self.create_volume(reservation, made, |thin_id| {
                    Ok(self.pool.thin.create_snap(thin_id, &origin)?)
                });
                let made = made.map_err(|error| self.pool.volume_gone(BASE, base.thin_id, error))?;
                record(reservation, made, None)
            }
            Parent::Snapshot(parent_id) => self.with_snapshot(parent_id, |active, parent| {
                let parent_name = Some(SnapshotId::new(parent_id)?);
                let freeze = match options.consistency {
                    Consistency::Filesystem => DmFlags::empty(),
                    Consistency::Crash => DmFlags::SKIP_LOCKFS,
                };
                let made =
                    self.derive(parent_name, (parent.size, parent.fs), options, reservation.thin_id)?;
                // A sealed snapshot is read-only: no suspend needed.
                let writable = active.volume.as_ref().filter(|_| parent.sealed.is_none());
                let made = self.create_volume(reservation, made, |thin_id| match writable {
                    Some(volume) => self.snap_active(thin_id, volume, freeze),
                    None => Ok(self.pool.thin.create_snap(thin_id, &Origin::Inactive(parent.thin_id))?),
                });
                let made = made.map_err(|error| self.pool.volume_gone(parent_id, parent.thin_id, error))?;
                record(reservation, made, Some(parent))
            }),
        }
    }

    /// Creates a snapshot of an active parent, which is suspended meanwhile. Between suspend and resume there is the
    /// message and nothing else: whatever waits for the suspended device may be what a file of the root needs.
    fn snap_active(&self, thin_id: ThinId, parent: &ThinVolume, flags: DmFlags) -> Result<()> {
        self.pool.thin.check_suspend()?;
        let renamed;
        let suspended = match parent.suspend_with(flags) {
            Err(error) if error.errno() == Some(Errno::ENXIO) => match self.pool.find(parent.id())? {
                // Another program renamed it.
                Some(found) => {
                    renamed = found;
                    renamed.suspend_with(flags)?
                }
                // Its deferred removal has been carried out.
                None => return Ok(self.pool.thin.create_snap(thin_id, &Origin::Inactive(parent.id()))?),
            },
            suspended => suspended?,
        };
        let sent = self.pool.thin.send(Message::CreateSnap { id: thin_id, origin: parent.id() });
        // A parent that stays suspended is worse than a failed snapshot.
        suspended.resume().inspect_err(|_| {
            if sent.is_obeyed() {
                // Best effort: return the error of the resume.
                let _ = self.pool.delete(thin_id);
            }
        })?;
        Ok(self.pool.thin.conclude(sent)?)
    }

    /// Records a volume that the pool has; if that fails the volume is deleted.
    pub(in crate::tree) fn record(
        &self,
        reservation: &mut Reservation<'_>,
        thin_id: ThinId,
        record: &Record,
    ) -> Result<u64> {
        self.store.append(record).inspect_err(|_| self.undo(reservation, thin_id))
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
        check_child_size(size, parent_size)?;
        let fs = match self.store.filesystem() {
            // A parent whose device is still to be grown has a child that has no device yet.
            Filesystem::None => FsState::Ready,
            _ if size > parent_size => FsState::Growing,
            _ => parent_fs,
        };
        let labels = options.labels.clone();
        Ok(Snapshot { labels, created: now(), ..Snapshot::new(thin_id, parent, size, fs) })
    }

    /// Creates a volume in the pool. An id that is taken already is skipped.
    pub(in crate::tree) fn create_volume(
        &self,
        reservation: &mut Reservation<'_>,
        mut snapshot: Snapshot,
        create: impl Fn(ThinId) -> Result<()>,
    ) -> Result<Snapshot> {
        loop {
            snapshot.thin_id = reservation.thin_id;
            reservation.begin(&snapshot)?;
            match create(snapshot.thin_id) {
                Ok(()) => return Ok(snapshot),
                Err(error) if error.errno() == Some(Errno::EEXIST) => {
                    // Durably: the next open would take the volume for this snapshot's.
                    reservation.take_back(true)?;
                    self.reserve_another(reservation)?;
                }
                Err(error) => {
                    // Whatever it was, there must not be a volume that nobody knows; but in a shared pool it may
                    // be another user's.
                    match self.store.is_shared() {
                        true => reservation.unresolved = !was_refused(&error),
                        false => self.undo(reservation, snapshot.thin_id),
                    }
                    return Err(self.closed_or(error));
                }
            }
        }
    }

    /// Deletes a volume that has no record, or one that was not completed. If that fails its id stays reserved, and a
    /// repair or the next open deletes it.
    pub(in crate::tree) fn undo(&self, reservation: &mut Reservation<'_>, id: ThinId) {
        reservation.unresolved = self.pool.delete(id).is_err();
        // Best effort: return the original error. What stays in the journal has no volume: the next open drops it. With
        // a volume it must not stay.
        let _ = reservation.take_back(reservation.unresolved);
    }

    /// Grows a new snapshot's file system; on failure the snapshot is removed.
    fn grow_now(&self, id: &str) -> Result<()> {
        let grown = self.with_snapshot(id, |active, snapshot| {
            self.activate_locked(active, id, snapshot)?;
            self.deactivate_locked(active, id)
        });
        if grown.is_err() {
            // Best effort: return the original error. What stays is listed, and grows when it is activated.
            let _ = self.remove(id);
        }
        grown
    }
}

/// Whether certainly no volume was made: the message was not sent (no space), or not obeyed (no origin).
fn was_refused(error: &Error) -> bool {
    matches!(error, Error::Thin(thin::Error::LowSpace { .. })) || error.errno() == Some(Errno::ENODATA)
}

/// Seconds since 1970.
pub(in crate::tree) fn now() -> Option<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs())
}
