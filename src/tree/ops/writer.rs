//! Snapshots that are written before they are published.

use uuid::Uuid;

use crate::kernel::Access;
use crate::thin::{ActivateOptions, ThinId, ThinStatus, ThinVolume};
use crate::tree::live::volume_file::VolumeFile;
use crate::tree::ops::add::now;
use crate::tree::state::record::{FsState, Making, Receiving, Record, Snapshot};
use crate::tree::state::size::check_size;
use crate::tree::state::store::{First, Reservation};
use crate::tree::{AddOptions, Parent, SnapshotId, SnapshotTree};
use crate::tree::{Error, Result};
use crate::units::{Bytes, Sectors};

/// Zeroes are written, and looked for, in such pieces.
pub(in crate::tree) const PIECE: usize = 64 << 10;

pub(in crate::tree) static ZEROES: [u8; PIECE] = [0; PIECE];

/// A snapshot that is being written and is not in the tree yet, made by [`SnapshotTree::create`].
///
/// [`commit`](Self::commit) and [`commit_sealed`](Self::commit_sealed) publish it; dropped before, it is deleted. After
/// a crash the next open deletes it.
#[derive(Debug)]
#[must_use]
pub struct SnapshotWriter<'a> {
    tree: &'a SnapshotTree,
    id: SnapshotId,
    /// As it will be published.
    snapshot: Snapshot,
    /// Its parent may get another name meanwhile.
    parent: Option<ThinId>,
    volume: ThinVolume,
    /// Open until it is published.
    file: Option<VolumeFile>,
    block_size: u64,
    /// What happens to the volume when this is dropped.
    at_drop: AtDrop,
    /// Name and thin id.
    _reservation: Reservation<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtDrop {
    Delete,
    /// A receive that can be continued.
    Deactivate,
    /// Published.
    Nothing,
}

/// What a volume is written for.
#[derive(Debug, Clone, Copy)]
pub(in crate::tree) enum Purpose {
    Create,
    Receive {
        /// Identity of the content to be.
        volume: Uuid,
        /// Identity that the parent has to have.
        base: Option<Uuid>,
        /// What was received stays when the receive fails.
        resumable: bool,
    },
}

impl Purpose {
    fn is_kept(self) -> bool {
        matches!(self, Self::Receive { resumable: true, .. })
    }

    fn receiving(self, id: &SnapshotId) -> Option<Receiving> {
        match self {
            Self::Receive { volume, base, resumable: true } => {
                Some(Receiving { volume, base, id: id.clone(), offset: Bytes(0) })
            }
            _ => None,
        }
    }
}

impl SnapshotTree {
    /// Begins a snapshot of `parent` that is written block by block, and published when it is complete. Without a
    /// parent it is an empty volume of [`AddOptions::size`]: it reads as zeroes, has no file system, and is listed
    /// under the base.
    ///
    /// Where nothing is written it is like the parent at the time of this call. The parent may be removed or renamed
    /// meanwhile.
    ///
    /// ```no_run
    /// use dm_thin::tree::{AddOptions, SnapshotTree};
    /// use dm_thin::units::Bytes;
    ///
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// let tree = SnapshotTree::open("/var/lib/example", Default::default())?;
    /// let writer = tree.create("disk", None, &AddOptions::new().size(Bytes::gib(1)))?;
    /// writer.write_at(Bytes::mib(1), b"hello")?;
    /// let uuid = writer.commit_sealed()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`add_with`](Self::add_with); [`Error::InvalidOption`] without both parent and size.
    pub fn create(
        &self,
        id: impl AsRef<str>,
        parent: Option<Parent<'_>>,
        options: &AddOptions,
    ) -> Result<SnapshotWriter<'_>> {
        let id = id.as_ref();
        self.make(SnapshotId::new(id)?, parent, options, Purpose::Create)
    }

    /// The same for a purpose.
    pub(in crate::tree) fn make(
        &self,
        id: SnapshotId,
        parent: Option<Parent<'_>>,
        options: &AddOptions,
        purpose: Purpose,
    ) -> Result<SnapshotWriter<'_>> {
        self.check_open()?;
        self.free_id(&id)?;
        let check = |parent: Option<&Snapshot>| match purpose {
            Purpose::Receive { base: Some(uuid), .. } if parent.and_then(|it| it.sealed) != Some(uuid) => {
                Err(Error::NoBase { uuid })
            }
            _ => Ok(()),
        };
        self.with_space(|| {
            let mut reservation = self.reserve(Some(id.clone()))?;
            let made = self.make_volume(&mut reservation, parent, options, purpose.receiving(&id), check)?;
            self.write_making(id.clone(), made, purpose, reservation)
        })
    }

    /// Makes a volume that is not published, and records that, durably. `check` judges what its parent has become. The
    /// parent's thin id is returned, too.
    pub(in crate::tree) fn make_volume(
        &self,
        reservation: &mut Reservation<'_>,
        parent: Option<Parent<'_>>,
        options: &AddOptions,
        receive: Option<Receiving>,
        check: impl FnOnce(Option<&Snapshot>) -> Result<()>,
    ) -> Result<(Snapshot, Option<ThinId>)> {
        // In a shared pool the message comes first: a record of an id that the pool gave to another user would delete that
        // user's volume. Nothing is written before the record is durable.
        let first = First::Making(receive.clone());
        reservation.record_first = (!self.store.is_shared()).then_some(first);
        let record = |reservation: &mut Reservation<'_>, snapshot: Snapshot, parent: Option<&Snapshot>| {
            let (thin_id, size) = (snapshot.thin_id, snapshot.size);
            check(parent).inspect_err(|_| self.undo(reservation, thin_id))?;
            let seq = match reservation.begun {
                Some(seq) => seq,
                None => {
                    let making = Making { thin_id, size, receive };
                    self.record(reservation, thin_id, &Record::Making(making))?
                }
            };
            Ok((snapshot, parent.map(|parent| parent.thin_id), seq))
        };
        let (snapshot, parent, seq) = match parent {
            Some(parent) => self.snap(reservation, parent, options, record)?,
            None => {
                let missing = Error::InvalidOption {
                    option: "snapshot size",
                    value: "none".into(),
                    reason: "no parent",
                };
                let size = options.size.ok_or(missing)?;
                check_size("snapshot size", size)?;
                let empty = Snapshot::new(reservation.thin_id, None, size, FsState::Ready);
                let empty = Snapshot { labels: options.labels.clone(), created: now(), ..empty };
                let create = |thin_id| Ok(self.pool.thin.create_thin(thin_id)?);
                let empty = self.create_volume(reservation, empty, create)?;
                record(reservation, empty, None)?
            }
        };
        self.store.sync(seq).inspect_err(|_| reservation.unresolved = true)?;
        Ok((snapshot, parent))
    }

    /// Activates a volume that is under a record.
    pub(in crate::tree) fn write_making<'a>(
        &'a self,
        id: SnapshotId,
        (snapshot, parent): (Snapshot, Option<ThinId>),
        purpose: Purpose,
        reservation: Reservation<'a>,
    ) -> Result<SnapshotWriter<'a>> {
        let (thin_id, size) = (snapshot.thin_id, snapshot.size);
        let name = self.pool.names.unpublished(thin_id)?;
        let opened =
            self.pool.activate_as(&name, thin_id, size, &ActivateOptions::new()).and_then(|volume| {
                match VolumeFile::open(self.options.kernel.clone(), &volume, Access::READ_WRITE) {
                    Ok(file) => Ok((volume, file)),
                    Err(error) => {
                        // The next open removes what stays; the first error counts.
                        let _ = self.pool.deactivate(&volume);
                        Err(error)
                    }
                }
            });
        let (volume, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if !purpose.is_kept() {
                    // The next open deletes it; the first error counts.
                    let _ = self.unmake(thin_id);
                }
                return Err(error);
            }
        };
        let block_size = self.store.read_state(|state| state.pool.block_size.0);
        let at_drop = if purpose.is_kept() { AtDrop::Deactivate } else { AtDrop::Delete };
        let (file, _reservation) = (Some(file), reservation);
        Ok(SnapshotWriter {
            tree: self,
            id,
            snapshot,
            parent,
            volume,
            file,
            block_size,
            at_drop,
            _reservation,
        })
    }

    /// Deletes a volume that is under a record, and not active.
    pub(in crate::tree) fn unmake(&self, thin_id: ThinId) -> Result<()> {
        self.delete_recorded(thin_id, &Record::Unmade { thin_id })
    }

    /// The same for a volume that may be active, because it was open when its writer ended.
    pub(in crate::tree) fn deactivate_and_unmake(&self, thin_id: ThinId) -> Result<()> {
        let uuid = self.pool.names.volume_uuid(thin_id)?;
        if let Some(device) = self.pool.dm().find(&uuid)? {
            self.pool.retry_while_busy(&device.name, || Ok(self.pool.dm().remove(&uuid)?))?;
        }
        self.unmake(thin_id)
    }

    /// Deletes volumes that were neither published nor deleted.
    pub(in crate::tree) fn delete_abandoned(&self) -> Result<Vec<ThinId>> {
        let (mut deleted, mut first_error) = (Vec::new(), Ok(()));
        for thin_id in self.store.abandoned() {
            let Some(left) = self.store.reserve_abandoned(thin_id) else { continue };
            let unmade = self.deactivate_and_unmake(left.thin_id).map(|()| deleted.push(left.thin_id));
            first_error = first_error.and(unmade);
        }
        first_error.map(|()| deleted)
    }
}

impl SnapshotWriter<'_> {
    /// The id that it will have.
    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Its size.
    pub fn size(&self) -> Bytes {
        self.snapshot.size
    }

    /// Writes all of `bytes` at `offset`; any alignment. A pool block that is written only in part gets its other part
    /// from the parent, or zeroes. In a pool that does not zero new blocks
    /// ([`PoolFeatures::skip_block_zeroing`](crate::thin::PoolFeatures)) it gets what another volume left there.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] beyond the end; [`Error::Io`], with ENOSPC if the pool is full.
    pub fn write_at(&self, offset: Bytes, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, Bytes(bytes.len() as u64))?;
        self.file()?.write_all_at(offset.0, bytes)
    }

    /// Reads into all of `buffer` from `offset`; any alignment.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn read_at(&self, offset: Bytes, buffer: &mut [u8]) -> Result<()> {
        self.check_range(offset, Bytes(buffer.len() as u64))?;
        self.file()?.read_exact_at(offset.0, buffer)
    }

    /// Makes a range read as zeroes; any alignment. Whole blocks of the pool are discarded (`BLKDISCARD`) and take no
    /// space then; elsewhere, and in pools that ignore discards, zeroes are written where other data is.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    #[doc(alias = "BLKDISCARD")]
    pub fn zero(&self, offset: Bytes, length: Bytes) -> Result<()> {
        self.check_range(offset, length)?;
        let (start, end) = (offset.0, offset.0 + length.0);
        // Of a block that the volume's end cuts, the kernel discards nothing.
        let (from, to) = (start.next_multiple_of(self.block_size), end / self.block_size * self.block_size);
        if from >= to || !self.file()?.discard(from, to - from)? {
            return self.write_zeroes(start, end);
        }
        self.write_zeroes(start, from)?;
        self.write_zeroes(to, end)
    }

    /// Writes zeroes where something else is: what reads as zeroes may be a hole, and takes no space.
    fn write_zeroes(&self, start: u64, end: u64) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut at = start;
        while at < end {
            let next = end.min((at / PIECE as u64 + 1) * PIECE as u64);
            let piece = &mut buffer[..usize::try_from(next - at).unwrap_or_default()];
            self.file()?.read_exact_at(at, piece)?;
            if *piece != ZEROES[..piece.len()] {
                self.file()?.write_all_at(at, &ZEROES[..piece.len()])?;
            }
            at = next;
        }
        Ok(())
    }

    /// Makes what was written durable. [`commit`](Self::commit) does that, too.
    ///
    /// # Errors
    /// [`Error::Io`]. What was written before may be lost then: from now on this and `commit` fail.
    pub fn sync(&self) -> Result<()> {
        self.file()?.sync()
    }

    /// Publishes the snapshot. It is durable when this returns.
    ///
    /// # Errors
    /// [`Error::Busy`] if its device is open elsewhere; [`Error::Io`]. After an error it is deleted.
    pub fn commit(self) -> Result<()> {
        self.publish(None)
    }

    /// Publishes the snapshot [sealed](SnapshotTree::seal), and returns the identity of its content.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_sealed(self) -> Result<Uuid> {
        let uuid = Uuid::new_v4();
        self.publish(Some(uuid)).map(|()| uuid)
    }

    /// Notes that everything before `offset` is durable.
    pub(in crate::tree) fn received(&self, offset: Bytes) -> Result<()> {
        if self.received_offset() >= Some(offset) {
            return Ok(());
        }
        self.tree.store.commit(&Record::Received { thin_id: self.snapshot.thin_id, offset })?;
        self.tree.compact();
        Ok(())
    }

    /// The end of what is mapped.
    pub(in crate::tree) fn mapped_end(&self) -> Result<Bytes> {
        match self.volume.status()? {
            ThinStatus::Mapped { highest: None, .. } => Ok(Bytes(0)),
            ThinStatus::Mapped { highest: Some(last), .. } => Ok((last + Sectors(1)).bytes()),
            _ => Ok(self.size()),
        }
    }

    /// From where the receive can be continued.
    pub(in crate::tree) fn received_offset(&self) -> Option<Bytes> {
        let thin_id = self.snapshot.thin_id;
        self.tree.store.read(|graph| Some(graph.making(thin_id)?.receive.as_ref()?.offset))
    }

    /// The content is complete as it is written: its file system is not grown.
    pub(in crate::tree) fn set_ready(&mut self) {
        self.snapshot.fs = FsState::Ready;
    }

    /// Deletes the volume when this is dropped, though the receive could be continued.
    pub(in crate::tree) fn delete_at_drop(&mut self) {
        self.at_drop = AtDrop::Delete;
    }

    /// Whether the volume stays when this is dropped.
    pub(in crate::tree) fn is_kept(&self) -> bool {
        self.at_drop == AtDrop::Deactivate
    }

    pub(in crate::tree) fn publish(mut self, sealed: Option<Uuid>) -> Result<()> {
        self.tree.check_open()?;
        if sealed.is_some() && self.snapshot.fs == FsState::Growing {
            self.tree.grow(&self.volume)?;
            self.snapshot.fs = FsState::Ready;
        }
        self.snapshot.sealed = sealed;
        self.sync()?;
        self.file = None;
        self.tree.pool.deactivate(&self.volume)?;
        if sealed.is_some() {
            self.snapshot.seal_time = Some(self.tree.pool.thin.time()?);
        }
        let seq = self.append()?;
        // Unsynced, the record may be on disk: then the volume has to stay.
        self.at_drop = AtDrop::Nothing;
        self.tree.store.sync(seq)?;
        self.tree.compact();
        Ok(())
    }

    /// Records the snapshot under the name that its parent has now, which cannot change meanwhile.
    fn append(&mut self) -> Result<u64> {
        let tree = self.tree;
        let add = |snapshot: &Snapshot| {
            tree.store.append(&Record::Add { id: self.id.clone(), snapshot: snapshot.clone() })
        };
        let Some(parent) = self.parent else {
            self.snapshot.parent_gone = self.snapshot.parent.is_some();
            return add(&self.snapshot);
        };
        while let Some(name) = tree.store.read(|graph| graph.id_of(parent)) {
            let added = tree.with_snapshot(name.as_str(), |_, found| {
                if found.thin_id != parent {
                    return Err(crate::tree::error::unknown(name.as_str()));
                }
                self.snapshot.parent = Some(name.clone());
                add(&self.snapshot)
            });
            match added {
                // Renamed or removed in between.
                Err(Error::UnknownSnapshot { .. }) => {}
                added => return added,
            }
        }
        self.snapshot.parent_gone = true;
        add(&self.snapshot)
    }

    fn file(&self) -> Result<&VolumeFile> {
        self.tree.root.check_process()?;
        self.file.as_ref().ok_or(Error::Closed)
    }

    fn check_range(&self, offset: Bytes, length: Bytes) -> Result<()> {
        check_range(offset, length, self.snapshot.size)
    }
}

/// Refuses what is not within a volume of `size`.
pub(in crate::tree) fn check_range(offset: Bytes, length: Bytes, size: Bytes) -> Result<()> {
    if offset.0.checked_add(length.0).is_some_and(|end| end <= size.0) {
        return Ok(());
    }
    let value = format!("{} bytes at {}", length.0, offset.0);
    Err(Error::InvalidOption { option: "range", value, reason: "beyond the end of the snapshot" })
}

impl Drop for SnapshotWriter<'_> {
    fn drop(&mut self) {
        if self.at_drop == AtDrop::Nothing || self.tree.root.check_process().is_err() {
            // In a child of fork: its parent may have published it.
            return;
        }
        self.file = None;
        let removed = self.tree.pool.deactivate(&self.volume);
        if removed.is_ok() && self.at_drop == AtDrop::Delete {
            // What fails here, reap() and the next open do.
            let _ = self.tree.unmake(self.snapshot.thin_id);
        }
    }
}
