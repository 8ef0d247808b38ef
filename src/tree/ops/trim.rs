//! Space that a snapshot's file system does not use any more.

use crate::thin::ThinVolume;
use crate::tree::error::busy;
use crate::tree::live::mount::Mounted;
use crate::tree::ops::activate::Needs;
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, SnapshotTree};
use crate::units::Bytes;

impl SnapshotTree {
    /// Gives the pool what a snapshot's file system does not use (`FITRIM`), and returns how much the file system
    /// discarded: the first time after a mount that is all that is free, mapped in the pool or not. A snapshot that is not
    /// mounted is mounted for this where nobody sees it.
    ///
    /// Files that are deleted in a snapshot keep their blocks in the pool until this is called, unless it is mounted with
    /// the option `discard`, which makes each deletion slower. Blocks that other snapshots share stay with these.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Sealed`]; [`Error::InvalidOption`] in a tree without file systems;
    /// [`Error::Busy`] if it is not mounted and its device is open; [`Error::Io`] with EOPNOTSUPP if the pool ignores
    /// discards.
    #[doc(alias = "FITRIM")]
    pub fn trim(&self, id: impl AsRef<str>) -> Result<Bytes> {
        let id = id.as_ref();
        if self.store.filesystem() == Filesystem::None {
            let reason = "without one there is nothing to trim";
            return Err(Error::InvalidOption { option: "filesystem", value: "none".to_owned(), reason });
        }
        self.with_snapshot(id, |active, snapshot| {
            if snapshot.sealed.is_some() {
                return Err(Error::Sealed { id: id.to_owned() });
            }
            self.drop_unmounted(active, snapshot)?;
            if let Some(mounted) = &active.mounted {
                return self.trim_mounted(mounted);
            }
            let was_active = active.volume.is_some();
            self.activate_as(active, id, snapshot, Needs::Write)?;
            let Some(volume) = &active.volume else { return Err(Error::Closed) };
            let trimmed = self.trim_unmounted(volume);
            let deactivated = if was_active { Ok(()) } else { self.deactivate_locked(active, id) };
            trimmed.and_then(|trimmed| deactivated.map(|()| trimmed))
        })
    }

    /// Trims it through a temporary mount.
    fn trim_unmounted(&self, volume: &ThinVolume) -> Result<Bytes> {
        let status = volume.device_status()?;
        if status.open_count > 0 {
            return Err(busy(&status.name, status.open_count));
        }
        self.with_mount(volume, |mounted| self.trim_mounted(mounted))
    }

    fn trim_mounted(&self, mounted: &Mounted) -> Result<Bytes> {
        let root = mounted.root(&*self.options.kernel)?;
        let trimmed = self.options.kernel.files().trim_filesystem(&root);
        trimmed.map_err(Error::io("trim", &mounted.target))
    }
}
