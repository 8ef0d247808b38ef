//! Reading a sealed snapshot.

use uuid::Uuid;
use zerocopy::IntoBytes;

use crate::kernel::{Access, AlignedBlock};
use crate::thin::ThinId;
use crate::tree::live::volume_file::VolumeFile;
use crate::tree::ops::changed::Volume;
use crate::tree::ops::writer::check_range;
use crate::tree::{Error, Result};
use crate::tree::{Labels, SnapshotTree};
use crate::units::Bytes;

/// Size of [`AlignedBlock`].
pub(in crate::tree) const BLOCK: usize = 4096;
/// Blocks that are read at a time.
const BATCH: usize = 64;

/// A sealed snapshot that is open for reading, made by [`SnapshotTree::open_snapshot`].
///
/// As long as it lives the snapshot stays active: who deactivates or removes it gets [`Error::Busy`].
#[derive(Debug)]
pub struct SnapshotReader<'a> {
    tree: &'a SnapshotTree,
    thin_id: ThinId,
    size: Bytes,
    uuid: Uuid,
    labels: Labels,
    /// Open until the drop.
    file: Option<VolumeFile>,
}

impl SnapshotTree {
    /// Opens a sealed snapshot for reading. One that is not active is activated as long as it has readers.
    ///
    /// ```no_run
    /// use dm_thin::units::Bytes;
    ///
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// let reader = tree.open_snapshot("image")?;
    /// let mut superblock = [0; 1024];
    /// reader.read_at(Bytes(1024), &mut superblock)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::NotSealed`].
    pub fn open_snapshot(&self, id: impl AsRef<str>) -> Result<SnapshotReader<'_>> {
        let id = id.as_ref();
        self.with_snapshot(id, |active, snapshot| {
            let uuid = snapshot.sealed.ok_or_else(|| Error::NotSealed { id: id.to_owned() })?;
            let was_active = active.volume.is_some();
            self.activate_locked(active, id, snapshot)?;
            let volume = active.volume.as_ref().ok_or(Error::Closed)?;
            match VolumeFile::open(self.options.kernel.clone(), volume, Access::READ.direct()) {
                Ok(file) => {
                    active.readers += 1;
                    let (thin_id, size, labels) = (snapshot.thin_id, snapshot.size, snapshot.labels.clone());
                    Ok(SnapshotReader { tree: self, thin_id, size, uuid, labels, file: Some(file) })
                }
                Err(error) => {
                    if !was_active {
                        // Left active it does no harm; the first error counts.
                        let _ = self.deactivate_locked(active, id);
                    }
                    Err(error)
                }
            }
        })
    }
}

impl SnapshotReader<'_> {
    /// Its size.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// The identity of its content.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The labels that it had when it was opened.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// For a comparison: while it is open, the snapshot cannot be removed.
    pub(in crate::tree) fn volume(&self) -> Volume {
        Volume { id: None, thin_id: self.thin_id }
    }

    /// Reads into all of `buffer` from `offset`, past the page cache; any alignment.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] beyond the end; [`Error::Io`].
    pub fn read_at(&self, offset: Bytes, buffer: &mut [u8]) -> Result<()> {
        check_range(offset, Bytes(buffer.len() as u64), self.size)?;
        let (mut at, mut rest) = (offset.0, buffer);
        let skip = |at: u64| usize::try_from(at % BLOCK as u64).unwrap_or_default();
        let blocks = (skip(at) + rest.len()).div_ceil(BLOCK).min(BATCH);
        let mut blocks = AlignedBlock::zeroed(blocks);
        while !rest.is_empty() {
            let skip = skip(at);
            let count = (skip + rest.len()).div_ceil(BLOCK).min(BATCH);
            let batch = blocks[..count].as_mut_bytes();
            self.read_blocks(at - skip as u64, batch)?;
            let length = rest.len().min(batch.len() - skip);
            let (piece, after) = rest.split_at_mut(length);
            piece.copy_from_slice(&batch[skip..skip + length]);
            (at, rest) = (at + length as u64, after);
        }
        Ok(())
    }

    /// Reads whole blocks into an aligned buffer. A snapshot's size is a multiple of 4096.
    pub(in crate::tree) fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.as_ref().ok_or(Error::Closed)?.read_exact_at(offset, buffer)
    }
}

impl Drop for SnapshotReader<'_> {
    fn drop(&mut self) {
        self.file = None;
        // It may have another id now, or be removed as soon as it is closed.
        let Some(id) = self.tree.store.read(|graph| graph.id_of(self.thin_id)) else { return };
        // Left active it does no harm.
        let _ = self.tree.with_snapshot(id.as_str(), |active, snapshot| {
            if snapshot.thin_id != self.thin_id {
                return Ok(());
            }
            active.readers = active.readers.saturating_sub(1);
            if active.is_needed() {
                return Ok(());
            }
            self.tree.deactivate_locked(active, id.as_str())
        });
    }
}
