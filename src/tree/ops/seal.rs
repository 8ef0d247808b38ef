//! Sealed snapshots: their content does not change any more, and has an identity.

use uuid::Uuid;

use crate::kernel::Access;
use crate::tree::live::volume_file::VolumeFile;
use crate::tree::state::record::Record;
use crate::tree::{Error, Result};
use crate::tree::{SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// Seals a snapshot: its content is final, and the returned UUID identifies it, in this tree and in each tree that
    /// receives it. Durable when this returns. A snapshot that is sealed already keeps its UUID.
    ///
    /// What was written to it is flushed, and it is deactivated. From then on its device is read-only and it is mounted
    /// read-only. A file system whose log was not replayed, because the snapshot was made of a mounted one, cannot be
    /// mounted on a read-only device: mount and unmount the snapshot before.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// let uuid = tree.seal("image")?;
    /// assert_eq!(tree.get("image")?.sealed, Some(uuid));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::Mounted`]; [`Error::Busy`] if its device is open.
    pub fn seal(&self, id: impl AsRef<str>) -> Result<Uuid> {
        let id = id.as_ref();
        let sealed = self.with_snapshot(id, |active, snapshot| {
            if let Some(uuid) = snapshot.sealed {
                return Ok(uuid);
            }
            active.check_unmounted(id)?;
            let was_active = active.volume.is_some();
            self.activate_locked(active, id, snapshot)?;
            let flushed = active.volume.as_ref().map_or(Ok(()), |volume| {
                // The pool may not have committed what was written last, through a descriptor that is closed now.
                VolumeFile::open(self.options.kernel.clone(), volume, Access::READ_WRITE)?.sync()
            });
            if flushed.is_ok() || !was_active {
                self.deactivate_locked(active, id)?;
            }
            flushed?;
            let uuid = Uuid::new_v4();
            let time = Some(self.pool.thin.time()?);
            self.store.commit(&Record::Sealed { id: SnapshotId::new(id)?, sealed: Some(uuid), time })?;
            Ok(uuid)
        })?;
        self.compact();
        Ok(sealed)
    }

    /// Makes a sealed snapshot writable again. It is deactivated, and forgets the identity of its content, so that it
    /// is no base of a stream any more. Nothing happens to a snapshot that is not sealed.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::HasChildren`]; [`Error::Mounted`]; [`Error::Busy`] if its device is open.
    pub fn unseal(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        self.with_snapshot(id, |active, snapshot| {
            if snapshot.sealed.is_none() {
                return Ok(());
            }
            if let Some(child) = self.children(id)?.into_iter().next() {
                return Err(Error::HasChildren { id: id.to_owned(), child: child.to_string() });
            }
            self.deactivate_locked(active, id)?;
            self.store.commit(&Record::Sealed { id: SnapshotId::new(id)?, sealed: None, time: None })?;
            self.forget_ready(snapshot.thin_id);
            Ok(())
        })?;
        self.compact();
        Ok(())
    }
}
