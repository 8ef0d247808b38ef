//! Snapshots as block devices: activated, deactivated, and taken down when they are closed.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use crate::dm::{DeviceStatus, DmName, Removal};
use crate::retry::Retry;
use crate::thin::{ActivateOptions, ThinId, ThinVolume};
use crate::tree::error::busy;
use crate::tree::live::active::{ActiveCell, ActiveSnapshot, check_unmounted, lock};
use crate::tree::ops::base::BASE;
use crate::tree::state::graph::{FsState, Record, Snapshot};
use crate::tree::{Error, Result};
use crate::tree::{SnapshotId, SnapshotTree, error::unknown};
use crate::units::Bytes;
use crate::{dm, thin};

impl SnapshotTree {
    /// Activates a snapshot as a block device and returns the path of its node. An active one stays active. The
    /// device of a sealed snapshot is read-only.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`].
    pub fn activate(&self, id: impl AsRef<str>) -> Result<PathBuf> {
        let id = id.as_ref();
        self.with_slot(id, |slot, snapshot| {
            let path = self.activate_slot(slot, id, snapshot)?;
            slot.pinned = true;
            Ok(path)
        })
    }

    /// Deactivates a snapshot: removes its block device. Does nothing if it is not active.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`], [`Error::Busy`] if it is open longer than
    /// [`Options::busy_timeout`](crate::tree::Options::busy_timeout).
    pub fn deactivate(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        self.with_slot(id, |slot, _| self.deactivate_slot(slot, id))
    }

    /// The same, but a device that is open elsewhere is removed by the kernel when it is closed. Does not wait.
    /// Activated again before that, it stays.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`]; [`Error::Busy`] on kernels that cannot, before interface 4.27.
    pub fn deactivate_deferred(&self, id: impl AsRef<str>) -> Result<Removal> {
        let id = id.as_ref();
        self.with_slot(id, |slot, _| self.defer_deactivation(slot, id))
    }

    /// Runs `work` with the slot of a snapshot that is there, and no other call on it meanwhile.
    pub(in crate::tree) fn with_slot<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut ActiveSnapshot, &Snapshot) -> Result<T>,
    ) -> Result<T> {
        self.check_open()?;
        let name = SnapshotId::new(id)?;
        if !self.contains(id) {
            return Err(unknown(id));
        }
        let slot = self.slots().entry(name.clone()).or_default().clone();
        let result = {
            let mut slot = lock(&slot);
            // It may have gone, and the tree may have been closed, while another call had the slot.
            let snapshot = self.store.read(|graph| graph.get(id).cloned());
            let snapshot = self.check_open().and_then(|()| snapshot.ok_or_else(|| unknown(id)));
            snapshot.and_then(|snapshot| work(&mut slot, &snapshot))
        };
        self.drop_idle(&name, slot);
        result.map_err(|error| self.with_holders(Some(id), self.closed_or(error)))
    }

    /// Done with a slot: forget it if it is idle.
    pub(in crate::tree) fn drop_idle(&self, id: &SnapshotId, slot: Arc<ActiveCell>) {
        drop(slot);
        let mut slots = self.slots();
        // This is the last reference, and none can be made while the map is locked.
        if slots.get(id).is_some_and(|slot| Arc::strong_count(slot) == 1 && lock(slot).volume.is_none()) {
            slots.remove(id);
        }
    }

    pub(in crate::tree) fn slots(
        &self,
    ) -> MutexGuard<'_, std::collections::HashMap<SnapshotId, Arc<ActiveCell>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Activates for a caller who has the slot; a file system smaller than its volume is grown first.
    pub(in crate::tree) fn activate_slot(
        &self,
        slot: &mut ActiveSnapshot,
        id: &str,
        snapshot: &Snapshot,
    ) -> Result<PathBuf> {
        if slot.removal_deferred {
            self.keep(slot)?;
        }
        if let Some(volume) = &mut slot.volume
            && !self.recognise(volume, id)?
        {
            self.forget_device(slot)?;
        }
        let volume = match slot.volume.take() {
            Some(volume) => volume,
            None => {
                let options = ActivateOptions::new().read_only(snapshot.sealed.is_some());
                self.activate_volume_with(id, snapshot.thin_id, snapshot.size, &options)?
            }
        };
        // Active or not: a manager that was killed while it was grown left it active.
        if snapshot.fs == FsState::Growing
            && let Err(error) = self.grow(&volume).and_then(|()| {
                let id = SnapshotId::new(id)?;
                self.store.commit(&Record::Fs { id, fs: FsState::Ready })
            })
        {
            // Best effort: return the original error. The next activation finds the device by its uuid.
            let _ = self.remove_volume(&volume);
            return Err(error);
        }
        Ok(slot.volume.insert(volume).path())
    }

    pub(in crate::tree) fn deactivate_slot(&self, slot: &mut ActiveSnapshot, id: &str) -> Result<()> {
        self.deactivate_slot_within(slot, id, self.options.busy_timeout)
    }

    pub(in crate::tree) fn deactivate_slot_within(
        &self,
        slot: &mut ActiveSnapshot,
        id: &str,
        timeout: Duration,
    ) -> Result<()> {
        check_unmounted(slot, id)?;
        if let Some(volume) = &slot.volume {
            self.retry_while_busy_within(volume.name(), timeout, || self.remove_by_uuid(volume))?;
            if slot.removal_deferred {
                // The kernel may have been faster, and cannot remove the node.
                self.pool.device_mapper().remove_node(volume.name())?;
            }
        }
        *slot = ActiveSnapshot::default();
        Ok(())
    }

    /// Deactivates now, or when the device is closed.
    pub(in crate::tree) fn defer_deactivation(&self, slot: &mut ActiveSnapshot, id: &str) -> Result<Removal> {
        check_unmounted(slot, id)?;
        let Some(volume) = slot.volume.clone().filter(|_| !slot.removal_deferred) else {
            return Ok(if slot.removal_deferred { Removal::Deferred } else { Removal::Removed });
        };
        let removal = match volume.deactivate_deferred() {
            // Another program renamed or removed it.
            Err(error) if error.errno() == Some(Errno::ENXIO) => match self.find_volume(volume.id())? {
                Some(found) => found.deactivate_deferred()?,
                None => Removal::Removed,
            },
            // Before interface 4.27.
            Err(thin::Error::Dm(dm::Error::TooOld { .. })) => {
                return self.deactivate_slot(slot, id).map(|()| Removal::Removed);
            }
            removal => removal?,
        };
        *slot = ActiveSnapshot::default();
        if removal == Removal::Deferred {
            (slot.volume, slot.removal_deferred) = (Some(volume), true);
        }
        Ok(removal)
    }

    /// Cancels a deferred removal. If the kernel has removed the device already, the slot is empty after this.
    pub(in crate::tree) fn keep(&self, slot: &mut ActiveSnapshot) -> Result<()> {
        let Some(volume) = &slot.volume else { return Ok(()) };
        let mut retry = Retry::within(self.options.busy_timeout);
        loop {
            match volume.cancel_deactivate() {
                Ok(()) => slot.removal_deferred = false,
                // Going right now.
                Err(error) if error.is_busy() && retry.pause() => continue,
                Err(error) if error.errno() == Some(Errno::ENXIO) => self.forget_device(slot)?,
                Err(error) => return Err(error.into()),
            }
            return Ok(());
        }
    }

    pub(in crate::tree) fn deactivate_all(&self) -> Result<()> {
        let mut active: Vec<_> = self.slots().keys().cloned().collect();
        active.sort();
        let mut first_error = Ok(());
        for id in active {
            match self.deactivate(id.as_str()) {
                Ok(()) | Err(Error::UnknownSnapshot { .. }) => {}
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        first_error
    }

    /// The same for a tree that is being closed, whoever has activated something meanwhile.
    pub(in crate::tree) fn deactivate_slots(&self) -> Result<()> {
        let slots: Vec<_> = self.slots().iter().map(|(id, slot)| (id.clone(), slot.clone())).collect();
        slots.into_iter().try_for_each(|(id, slot)| {
            let deactivated = self.deactivate_slot(&mut lock(&slot), id.as_str());
            deactivated.map_err(|error| self.with_holders(Some(id.as_str()), error))
        })
    }

    pub(in crate::tree) fn activate_volume(
        &self,
        id: &str,
        thin_id: ThinId,
        size: Bytes,
    ) -> Result<ThinVolume> {
        self.activate_volume_with(id, thin_id, size, &ActivateOptions::new())
    }

    pub(in crate::tree) fn activate_volume_with(
        &self,
        id: &str,
        thin_id: ThinId,
        size: Bytes,
        options: &ActivateOptions,
    ) -> Result<ThinVolume> {
        let activated = self.activate_as(&self.volume_name(id)?, thin_id, size, options);
        activated.map_err(|error| self.volume_gone(id, thin_id, error))
    }

    /// What ENODATA means of a volume that the state lists.
    pub(in crate::tree) fn volume_gone(&self, id: &str, thin_id: ThinId, error: Error) -> Error {
        if error.errno() != Some(Errno::ENODATA) {
            return error;
        }
        let id = Some(id.to_owned()).filter(|id| id != BASE);
        Error::VolumeGone { id, thin_id, pool: self.pool.name().to_string() }
    }

    /// Activates a volume under a name that need not be a snapshot's.
    pub(in crate::tree) fn activate_as(
        &self,
        name: &DmName,
        thin_id: ThinId,
        size: Bytes,
        options: &ActivateOptions,
    ) -> Result<ThinVolume> {
        let uuid = self.volume_uuid(thin_id)?;
        let activate = || self.pool.activate_with(name, &uuid, thin_id, size.sectors(), options);
        let dm = self.pool.device_mapper();
        let volume = match activate() {
            // Left by an activation that failed, and could not be undone.
            Err(error) if error.is_busy() => match dm.find(&uuid)? {
                Some(stale) if !stale.has_live_table() => {
                    dm.remove(&uuid)?;
                    activate()
                }
                Some(live) => self.pool.active_volume(&live.name),
                None => Err(error),
            },
            result => result,
        }?;
        self.cached_own_data().activated();
        Ok(volume)
    }

    pub(in crate::tree) fn remove_volume(&self, volume: &ThinVolume) -> Result<()> {
        self.retry_while_busy(volume.name(), || self.remove_by_uuid(volume))
    }

    /// Removes the device of a volume, whatever it is called by now.
    pub(in crate::tree) fn remove_by_uuid(&self, volume: &ThinVolume) -> Result<()> {
        match volume.deactivate() {
            Err(error) if error.errno() == Some(Errno::ENXIO) => match self.find_volume(volume.id())? {
                Some(found) => Ok(found.deactivate()?),
                None => Err(error.into()),
            },
            result => Ok(result?),
        }
    }

    /// An active volume of this tree, found by its uuid.
    pub(in crate::tree) fn find_volume(&self, id: ThinId) -> Result<Option<ThinVolume>> {
        let found = self.pool.device_mapper().find(&self.volume_uuid(id)?)?;
        let live = found.filter(DeviceStatus::has_live_table);
        Ok(live.map(|status| self.pool.active_volume(&status.name)).transpose()?)
    }

    /// Finds a volume's device, and gives it its name and node again if somebody took them. `false` if it is gone.
    pub(in crate::tree) fn recognise(&self, volume: &mut ThinVolume, id: &str) -> Result<bool> {
        let dm = self.pool.device_mapper();
        let Some(status) = dm.find(&self.volume_uuid(volume.id())?)? else { return Ok(false) };
        if (status.name, status.number) != (*volume.name(), volume.number()) {
            *volume = self.pool.active_volume(&status.name)?;
        }
        let name = self.volume_name(id)?;
        if *volume.name() != name {
            volume.rename(&name)?;
        }
        dm.ensure_node(&name, status.number)?;
        Ok(true)
    }

    /// The device of a slot is gone, and its node with it.
    pub(in crate::tree) fn forget_device(&self, slot: &mut ActiveSnapshot) -> Result<()> {
        if let Some(volume) = std::mem::take(slot).volume {
            self.pool.device_mapper().remove_node(volume.name())?;
        }
        Ok(())
    }

    /// Retries while the device is open, up to [`busy_timeout`](crate::tree::Options::busy_timeout). That it
    /// is gone already is fine.
    pub(in crate::tree) fn retry_while_busy(
        &self,
        name: &DmName,
        remove: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let removed = self.retry_while_busy_within(name, self.options.busy_timeout, remove);
        removed.map_err(|error| self.with_holders(None, error))
    }

    pub(in crate::tree) fn retry_while_busy_within(
        &self,
        name: &DmName,
        timeout: Duration,
        remove: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut retry = Retry::within(timeout);
        loop {
            match remove() {
                Err(error) if error.errno() == Some(Errno::ENXIO) => return Ok(()),
                Err(error) if error.is_busy() && retry.pause() => {}
                Err(error) if error.is_busy() => {
                    let status = self.pool.device_mapper().status(name);
                    let open_count = status.map_or(0, |status| status.open_count);
                    return Err(busy(name, open_count));
                }
                result => return result,
            }
        }
    }
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use super::*;
    use crate::dm::UdevPolicy;
    use crate::model::ModelKernel;
    use crate::tree::{Filesystem, Options, Parent};

    #[test]
    fn who_only_looks_waits_for_no_slot() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
        let options = options.kernel(Arc::new(ModelKernel::new()));
        let tree = SnapshotTree::open(directory.path().join("root"), options).unwrap();
        for id in ["a", "b"] {
            tree.add(id, Parent::Base).unwrap();
        }
        let device = tree.activate("a").unwrap();
        let slot = tree.slots().get("a").unwrap().clone();
        // As by an add that waits for a suspend: whatever waits for it would not come back.
        let busy = lock(&slot);
        assert_eq!(tree.list()[0].device.as_deref(), Some(&*device));
        assert_eq!(tree.get("a").unwrap().device, Some(device));
        assert_eq!((tree.check().unwrap(), tree.holders("a").unwrap()), (vec![], vec![]));
        tree.drop_idle(&SnapshotId::new("a").unwrap(), slot.clone());
        tree.activate("b").unwrap();
        drop(busy);
        drop(slot);
        tree.close().unwrap();
    }
}
