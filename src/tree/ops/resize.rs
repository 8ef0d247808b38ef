//! Larger snapshots.

use crate::thin::ThinVolume;
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::state::record::{FsState, Record, Snapshot};
use crate::tree::state::size::check_size;
use crate::tree::{Error, Result, trace};
use crate::tree::{Filesystem, SnapshotId, SnapshotTree};
use crate::units::Bytes;

impl SnapshotTree {
    /// Makes a snapshot `size` large, while it is in use: its device if it is active, and its file system if it is
    /// mounted. The size is durable before the device has it.
    ///
    /// A file system that is not mounted grows at once if the device is active and not open; else at the next activation,
    /// since whoever has the device open, a virtual machine for one, may use the file system.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::InvalidOption`] for not a possible size; [`Error::OptionConflict`] for a size
    /// below what it has; [`Error::Sealed`]. What fails after the size is recorded is done by the next activation.
    pub fn resize(&self, id: impl AsRef<str>, size: Bytes) -> Result<()> {
        let id = id.as_ref();
        check_size("snapshot size", size)?;
        trace::call("resize", id, || self.resize_now(id, size))
    }

    fn resize_now(&self, id: &str, size: Bytes) -> Result<()> {
        self.with_snapshot(id, |active, snapshot| {
            if snapshot.sealed.is_some() {
                return Err(Error::Sealed { id: id.to_owned() });
            }
            if size < snapshot.size {
                let (recorded, asked) = (snapshot.size.to_string(), size.to_string());
                return Err(Error::OptionConflict { option: "snapshot size", recorded, asked });
            }
            if size > snapshot.size {
                self.store.commit(&Record::Resized { id: SnapshotId::new(id)?, size })?;
            }
            let resized = Snapshot { size, fs: FsState::Growing, ..snapshot.clone() };
            if active.removal_deferred { Ok(()) } else { self.grow_active(active, id, &resized) }
        })?;
        self.compact();
        Ok(())
    }

    /// Grows the device of an active snapshot to its size, and its file system where nobody else can be using it.
    pub(in crate::tree) fn grow_active(
        &self,
        active: &ActiveSnapshot,
        id: &str,
        snapshot: &Snapshot,
    ) -> Result<()> {
        let Some(volume) = active.volume.as_ref().filter(|_| snapshot.fs == FsState::Growing) else {
            return Ok(());
        };
        grow_device(volume, snapshot.size)?;
        match &active.mounted {
            Some(mounted) => {
                // Nothing else is mounted there.
                mounted.root(&*self.options.kernel)?;
                self.store.filesystem().grow(&*self.options.kernel, &volume.path(), &mounted.target)?;
            }
            None if self.store.filesystem() == Filesystem::None => {}
            None => {
                let status = volume.device_status()?;
                if status.open_count > 0 || status.is_read_only() {
                    return Ok(());
                }
                self.grow(volume)?;
            }
        }
        // Durable with the next change: what has grown can be grown again.
        self.store.append(&Record::Fs { id: SnapshotId::new(id)?, fs: FsState::Ready }).map(drop)
    }
}

/// Suspends the device only if it is smaller.
pub(in crate::tree) fn grow_device(volume: &ThinVolume, size: Bytes) -> Result<()> {
    if volume.table()?.1 < size.sectors() {
        volume.grow(size.sectors())?;
    }
    Ok(())
}
