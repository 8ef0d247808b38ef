//! Snapshots as block devices: activated, deactivated, and taken down when they are closed.

use std::path::PathBuf;
use std::sync::Arc;

use crate::dm::Removal;
use crate::thin::ActivateOptions;
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::live::device::{DeviceOptions, SnapshotDevice};
use crate::tree::state::record::Snapshot;
use crate::tree::{Error, Result, trace};
use crate::tree::{SnapshotId, SnapshotTree, error::unknown};

/// What a caller needs of the device of a snapshot that may be active already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tree) enum Needs {
    /// One that is there as it is; else a writable one.
    Any,
    Write,
    ReadOnly,
}

impl Needs {
    fn are_met_by(self, read_only: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Write => !read_only,
            Self::ReadOnly => read_only,
        }
    }
}

impl SnapshotTree {
    /// Activates a snapshot as a block device and returns the path of its node. An active one stays active. The
    /// device of a sealed snapshot is read-only.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::ActiveOtherwise`] if it is active and read-only, but not sealed.
    pub fn activate(&self, id: impl AsRef<str>) -> Result<PathBuf> {
        let id = id.as_ref();
        let activate = |active: &mut ActiveSnapshot, snapshot: &Snapshot| {
            let path = self.activate_as(active, id, snapshot, Needs::Write)?;
            active.pinned = true;
            Ok(path)
        };
        trace::call("activate", id, || self.with_snapshot(id, activate))
    }

    /// Activates a snapshot as [`activate`](Self::activate) does, with options, and opens its device.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// use dm_thin::tree::DeviceOptions;
    ///
    /// // For a virtual machine that runs as user 1000.
    /// let device = tree.activate_with("vm-1", &DeviceOptions::new().owner(1000, 1000).mode(0o600))?;
    /// println!("{} is {}", device.path().display(), device.number());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`activate`](Self::activate); [`Error::Io`] if the node cannot be given away. What was not active before is not
    /// active after an error.
    pub fn activate_with(&self, id: impl AsRef<str>, options: &DeviceOptions) -> Result<SnapshotDevice> {
        let id = id.as_ref();
        let activate = |active: &mut ActiveSnapshot, snapshot: &Snapshot| {
            let was_active = active.volume.is_some();
            let needs = if options.read_only { Needs::ReadOnly } else { Needs::Write };
            self.activate_as(active, id, snapshot, needs)?;
            let Some(volume) = &active.volume else { return Err(Error::Closed) };
            let read_only = options.read_only || snapshot.sealed.is_some();
            match SnapshotDevice::open(&*self.options.kernel, volume, read_only, options) {
                Ok(device) => {
                    active.pinned = true;
                    Ok(device)
                }
                Err(error) => {
                    if !was_active {
                        // Left active it does no harm; the first error counts.
                        let _ = self.deactivate_locked(active, id);
                    }
                    Err(error)
                }
            }
        };
        trace::call("activate", id, || self.with_snapshot(id, activate))
    }

    /// Deactivates a snapshot: removes its block device. Does nothing if it is not active.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`], [`Error::Busy`] if it is open longer than
    /// [`Options::busy_timeout`](crate::tree::Options::busy_timeout).
    pub fn deactivate(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        trace::call("deactivate", id, || {
            self.with_snapshot(id, |active, _| self.deactivate_locked(active, id))
        })
    }

    /// The same, but a device that is open elsewhere is removed by the kernel when it is closed. Does not wait.
    /// Activated again before that, it stays.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`]; [`Error::Busy`] on kernels that cannot, before interface 4.27.
    pub fn deactivate_deferred(&self, id: impl AsRef<str>) -> Result<Removal> {
        let id = id.as_ref();
        self.with_snapshot(id, |active, _| {
            active.deactivate_deferred(&self.pool, id, self.options.busy_timeout)
        })
    }

    /// Runs `work` on a snapshot that is there, with its lock held.
    pub(in crate::tree) fn with_snapshot<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut ActiveSnapshot, &Snapshot) -> Result<T>,
    ) -> Result<T> {
        self.check_open()?;
        let name = SnapshotId::new(id)?;
        if !self.contains(id) {
            return Err(unknown(id));
        }
        let cell = self.live.cell(&name);
        let result = {
            let mut active = cell.lock();
            self.snapshot_now(id).and_then(|snapshot| work(&mut active, &snapshot))
        };
        self.live.release(&name, cell);
        result.map_err(|error| self.pool.with_holders(Some(id), self.closed_or(error)))
    }

    /// For a caller who has just got the lock: the snapshot may have gone, and the tree may have been closed, while another
    /// call had it.
    pub(in crate::tree) fn snapshot_now(&self, id: &str) -> Result<Arc<Snapshot>> {
        let snapshot = self.store.read(|graph| graph.snapshots.get(id).cloned());
        self.check_open()?;
        snapshot.ok_or_else(|| unknown(id))
    }

    /// Activates for a caller who has the lock; a file system smaller than its volume is grown first.
    pub(in crate::tree) fn activate_locked(
        &self,
        active: &mut ActiveSnapshot,
        id: &str,
        snapshot: &Snapshot,
    ) -> Result<PathBuf> {
        self.activate_as(active, id, snapshot, Needs::Any)
    }

    /// The same for a caller who needs a device of a kind. Of a sealed snapshot it is always read-only.
    ///
    /// # Errors
    /// [`Error::ActiveOtherwise`].
    pub(in crate::tree) fn activate_as(
        &self,
        active: &mut ActiveSnapshot,
        id: &str,
        snapshot: &Snapshot,
        needs: Needs,
    ) -> Result<PathBuf> {
        let is_sealed = snapshot.sealed.is_some();
        active.cancel_removal(&self.pool, self.options.busy_timeout)?;
        if let Some(volume) = &mut active.volume {
            match self.pool.recognise(volume, id)?.map(|status| status.is_read_only()) {
                None => active.forget_device(&self.pool)?,
                Some(read_only) if !is_sealed && !needs.are_met_by(read_only) => {
                    return Err(Error::ActiveOtherwise { id: id.to_owned(), read_only });
                }
                Some(_) => {}
            }
        }
        let was_active = active.volume.is_some();
        let path = match &active.volume {
            Some(volume) => volume.path(),
            None => {
                let options = ActivateOptions::new().read_only(is_sealed || needs == Needs::ReadOnly);
                let volume = self.pool.activate(id, snapshot.thin_id, snapshot.size, &options)?;
                active.read_only = needs == Needs::ReadOnly;
                active.volume.insert(volume).path()
            }
        };
        if active.mounted.is_some() || needs == Needs::ReadOnly {
            // It grows when it is resized, or activated anew: read-only it cannot.
            return Ok(path);
        }
        // Active or not: a manager that was killed while it was grown left it active.
        self.grow_active(active, id, snapshot).inspect_err(|_| {
            if !was_active {
                // Best effort: return the original error. A device that stays is this snapshot's, and has to be known.
                let _ = self.deactivate_locked(active, id);
            }
        })?;
        Ok(path)
    }

    /// Deactivates for a caller who has the lock.
    pub(in crate::tree) fn deactivate_locked(&self, active: &mut ActiveSnapshot, id: &str) -> Result<()> {
        active.deactivate(&self.pool, id, self.options.busy_timeout)
    }

    /// Deactivates every snapshot; the first error is returned, the others are tried all the same.
    pub(in crate::tree) fn deactivate_all(&self) -> Result<()> {
        let mut first_error = Ok(());
        for (id, _) in self.live.views() {
            match self.deactivate(id.as_str()) {
                Ok(()) | Err(Error::UnknownSnapshot { .. }) => {}
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        first_error
    }

    /// The same for a tree that is being closed, whoever has activated something meanwhile.
    pub(in crate::tree) fn deactivate_rest(&self) -> Result<()> {
        self.live.all().into_iter().try_for_each(|(id, cell)| {
            let deactivated = self.deactivate_locked(&mut cell.lock(), id.as_str());
            deactivated.map_err(|error| self.pool.with_holders(Some(id.as_str()), error))
        })
    }
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dm::UdevPolicy;
    use crate::model::ModelKernel;
    use crate::tree::{Filesystem, Options, Parent};

    #[test]
    fn who_only_looks_waits_for_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
        let options = options.kernel(Arc::new(ModelKernel::new()));
        let tree = SnapshotTree::open(directory.path().join("root"), options).unwrap();
        for id in ["a", "b"] {
            tree.add(id, Parent::Base).unwrap();
        }
        let device = tree.activate("a").unwrap();
        let a = SnapshotId::new("a").unwrap();
        let cell = tree.live.cell(&a);
        // As by an add that waits for a suspend: whatever waits for it would not come back.
        let busy = cell.lock();
        assert_eq!(tree.list()[0].device.as_deref(), Some(&*device));
        assert_eq!(tree.get("a").unwrap().device, Some(device));
        assert_eq!((tree.check().unwrap(), tree.holders("a").unwrap()), (vec![], vec![]));
        tree.live.release(&a, cell.clone());
        tree.activate("b").unwrap();
        drop(busy);
        drop(cell);
        tree.close().unwrap();
    }
}
