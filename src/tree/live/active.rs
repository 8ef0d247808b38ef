//! What is active and mounted.
//!
//! Every snapshot in use has a slot; a call that activates, mounts, or takes down holds its lock to the
//! end, so that unmount and deactivate are one step for all others. Who holds two slots (a rename) locked them in
//! the order of their ids. Who only looks reads a copy of what the last call left, and waits for nobody.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::abi::mount::MountFlags;
use crate::dm::{DeviceStatus, DmName, Removal};
use crate::kernel::{DeviceNumber, MountId};
use crate::thin::{ActivateOptions, PoolMode, ThinId, ThinVolume};
use crate::tree::live::mount::{Mounted, Where};
use crate::tree::ops::base::BASE;
use crate::tree::state::graph::{FsState, Record, Snapshot};
use crate::tree::{Error, Result};
use crate::tree::{SnapshotId, SnapshotTree, live::base_check, live::holders, unknown};
use crate::units::Bytes;
use crate::{dm, thin};

/// The state of a snapshot in the kernel.
#[derive(Debug, Default)]
pub(in crate::tree) struct Slot {
    pub(in crate::tree) volume: Option<ThinVolume>,
    /// The kernel removes the volume's device as soon as it is closed, and may have done so.
    pub(in crate::tree) leaving: bool,
    /// Somebody asked for it to be active, mounted or not.
    pub(in crate::tree) held: bool,
    /// How many [readers](crate::tree::SnapshotReader) it has.
    pub(in crate::tree) readers: usize,
    pub(in crate::tree) mounted: Option<Mounted>,
}

/// What [`Slot`] holds, for those who only look.
#[derive(Debug, Clone, Default)]
pub(in crate::tree) struct SlotView {
    pub(in crate::tree) device: Option<(PathBuf, DeviceNumber)>,
    pub(in crate::tree) leaving: bool,
    pub(in crate::tree) mounted: Option<(PathBuf, MountId)>,
}

/// A slot and its view.
#[derive(Debug, Default)]
pub(in crate::tree) struct SlotCell {
    slot: Mutex<Slot>,
    view: Mutex<SlotView>,
}

impl SlotCell {
    pub(in crate::tree) fn new(slot: Slot) -> Self {
        let view = Mutex::new(slot.view());
        Self { slot: Mutex::new(slot), view }
    }

    /// What the last call on the slot left.
    pub(in crate::tree) fn view(&self) -> SlotView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A locked slot. When it is dropped others see what became of it.
#[derive(Debug)]
pub(in crate::tree) struct SlotGuard<'a> {
    slot: MutexGuard<'a, Slot>,
    view: &'a Mutex<SlotView>,
}

impl Deref for SlotGuard<'_> {
    type Target = Slot;
    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl DerefMut for SlotGuard<'_> {
    fn deref_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = self.slot.view();
    }
}

impl Slot {
    fn view(&self) -> SlotView {
        SlotView {
            device: self.volume.as_ref().map(|volume| (volume.path(), volume.number())),
            leaving: self.leaving,
            mounted: self.mounted.as_ref().map(|mounted| (mounted.target.clone(), mounted.id())),
        }
    }
}

/// The end of a wait; a timeout that no clock can hold has none.
#[derive(Debug, Clone, Copy)]
pub(in crate::tree) struct Deadline(Option<Instant>);

impl Deadline {
    pub(in crate::tree) fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    pub(in crate::tree) fn is_over(self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }
}

impl SnapshotTree {
    /// Make a snapshot a block device; the path of its node is returned. Active already, it stays so. The device of a
    /// sealed snapshot is read-only.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`].
    pub fn activate(&self, id: &str) -> Result<PathBuf> {
        self.with_slot(id, |slot, snapshot| {
            let path = self.activate_slot(slot, id, snapshot)?;
            slot.held = true;
            Ok(path)
        })
    }

    /// Remove a snapshot's block device. Not active, nothing happens.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`], [`Error::Busy`] if it is open longer than
    /// [`Options::busy_timeout`](crate::tree::Options::busy_timeout).
    pub fn deactivate(&self, id: &str) -> Result<()> {
        self.with_slot(id, |slot, _| self.deactivate_slot(slot, id))
    }

    /// The same, but a device that is open elsewhere is removed by the kernel when it is closed. Nobody is waited for.
    /// Activated again before that, it stays.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`]; [`Error::Busy`] on kernels that cannot, before interface 4.27.
    pub fn deactivate_deferred(&self, id: &str) -> Result<Removal> {
        self.with_slot(id, |slot, _| self.defer_slot(slot, id))
    }

    /// Activate a snapshot and mount it. The directory is made if it is not there; the one above it must be.
    /// Mounted on the same directory already, it is counted: it takes as many [`unmount`](Self::unmount)s. A sealed
    /// snapshot is mounted read-only, and gets no init layer.
    ///
    /// A symbolic link at the end of `target` is not followed; one before it only if it belongs to root or to this
    /// process's user.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`] if it is mounted elsewhere, or another snapshot is mounted there;
    /// [`Error::InvalidOption`] if `target` is no directory; [`Error::Mount`] with the whole call. What was not active
    /// before is not active after an error.
    pub fn mount(&self, id: &str, target: impl AsRef<Path>) -> Result<()> {
        let target = target.as_ref();
        self.with_slot(id, |slot, snapshot| {
            self.drop_unmounted(slot, snapshot)?;
            if let Some(mounted) = &mut slot.mounted {
                if !self.is_mounted_on(mounted, target)? {
                    return Err(Error::Mounted { id: id.to_owned(), target: mounted.target.clone() });
                }
                // The manager that mounted it may have been killed before it was prepared.
                if let Some(volume) = &slot.volume
                    && self.where_is(mounted)? == Where::OnTop
                {
                    let root = mounted.root(&*self.options.kernel)?;
                    self.prepare(id, snapshot, volume.number(), &root)?;
                }
                mounted.count += 1;
                return Ok(());
            }
            self.activate_slot(slot, id, snapshot)?;
            let Some(volume) = &slot.volume else { return Err(Error::Closed) };
            let flags = if snapshot.sealed.is_some() { MountFlags::RDONLY } else { MountFlags::empty() };
            let mounted = self.mount_volume(volume, target, false, flags);
            let mounted = mounted.map_err(|error| self.why_not_mounted(id, volume, error));
            let mounted = mounted.and_then(|mounted| {
                let root = mounted.root(&*self.options.kernel);
                match root.and_then(|root| self.prepare(id, snapshot, volume.number(), &root)) {
                    Ok(()) => Ok(mounted),
                    Err(error) => {
                        // The error of the preparation is returned; a mount that stays is taken over by the next open.
                        let _ = self.unmount_volume(snapshot.thin_id, &mounted);
                        Err(error)
                    }
                }
            });
            match mounted {
                Ok(mounted) => {
                    slot.mounted = Some(mounted);
                    Ok(())
                }
                Err(error) => {
                    if !slot.held {
                        // Left active it does no harm; the first error counts.
                        let _ = self.deactivate_slot(slot, id);
                    }
                    Err(error)
                }
            }
        })
    }

    /// Take back one [`mount`](Self::mount). The last one unmounts the file system, removes the directory
    /// if mount made it, and deactivates the snapshot unless [`activate`](Self::activate) was called: one
    /// step for every other caller.
    ///
    /// # Errors
    /// [`Error::NotMounted`]; [`Error::MountInUse`] if files on it are open, [`Error::Covered`] if another file system
    /// is mounted over it: it stays mounted.
    /// [`Error::Busy`] if it is unmounted, but somebody (a copy of the mount in another namespace) still
    /// has it open: [`deactivate`](Self::deactivate) can be tried again.
    pub fn unmount(&self, id: &str) -> Result<()> {
        self.with_slot(id, |slot, snapshot| {
            let mounted = slot.mounted.as_mut().ok_or_else(|| Error::NotMounted { id: id.to_owned() })?;
            if mounted.count > 1 {
                mounted.count -= 1;
                return Ok(());
            }
            self.unmount_volume(snapshot.thin_id, mounted).map_err(|error| match error {
                Error::Mount(refused) if refused.errno == Errno::EBUSY => {
                    let (id, target) = (id.to_owned(), mounted.target.clone());
                    let holders = holders::of_mount(&*self.options.kernel, mounted.id().device, &target);
                    Error::MountInUse { id, target, holders }
                }
                error => error,
            })?;
            slot.mounted = None;
            if slot.held || slot.readers > 0 {
                Ok(())
            } else if self.options.deferred_removal {
                self.defer_slot(slot, id).map(drop)
            } else {
                self.deactivate_slot(slot, id)
            }
        })
    }

    /// Run `work` with the slot of a snapshot that is there, and no other call on it meanwhile.
    pub(in crate::tree) fn with_slot<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Slot, &Snapshot) -> Result<T>,
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
        self.tidy(&name, slot);
        result.map_err(|error| self.with_holders(Some(id), self.closed_or(error)))
    }

    /// Done with a slot: forget it if it is idle.
    pub(in crate::tree) fn tidy(&self, id: &SnapshotId, slot: Arc<SlotCell>) {
        drop(slot);
        let mut slots = self.slots();
        // Nobody else holds it, and nobody can get it while the map is locked.
        if slots.get(id).is_some_and(|slot| Arc::strong_count(slot) == 1 && lock(slot).volume.is_none()) {
            slots.remove(id);
        }
    }

    pub(in crate::tree) fn slots(
        &self,
    ) -> MutexGuard<'_, std::collections::HashMap<SnapshotId, Arc<SlotCell>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Activate for a caller who has the slot; a file system smaller than its volume is grown first.
    pub(in crate::tree) fn activate_slot(
        &self,
        slot: &mut Slot,
        id: &str,
        snapshot: &Snapshot,
    ) -> Result<PathBuf> {
        if slot.leaving {
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

    pub(in crate::tree) fn deactivate_slot(&self, slot: &mut Slot, id: &str) -> Result<()> {
        self.deactivate_slot_within(slot, id, self.options.busy_timeout)
    }

    pub(in crate::tree) fn deactivate_slot_within(
        &self,
        slot: &mut Slot,
        id: &str,
        timeout: Duration,
    ) -> Result<()> {
        check_unmounted(slot, id)?;
        if let Some(volume) = &slot.volume {
            self.patiently_within(volume.name(), timeout, || self.remove_by_uuid(volume))?;
            if slot.leaving {
                // The kernel may have been faster, and cannot remove the node.
                self.pool.device_mapper().remove_node(volume.name())?;
            }
        }
        *slot = Slot::default();
        Ok(())
    }

    /// Deactivate now, or when the device is closed.
    fn defer_slot(&self, slot: &mut Slot, id: &str) -> Result<Removal> {
        check_unmounted(slot, id)?;
        let Some(volume) = slot.volume.clone().filter(|_| !slot.leaving) else {
            return Ok(if slot.leaving { Removal::Deferred } else { Removal::Removed });
        };
        let removal = match volume.deactivate_deferred() {
            // Somebody renamed it, or removed it.
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
        *slot = Slot::default();
        if removal == Removal::Deferred {
            (slot.volume, slot.leaving) = (Some(volume), true);
        }
        Ok(removal)
    }

    /// Take back a deferred removal. If it came about already, the slot is empty after this.
    fn keep(&self, slot: &mut Slot) -> Result<()> {
        let Some(volume) = &slot.volume else { return Ok(()) };
        let end = Deadline::after(self.options.busy_timeout);
        loop {
            match volume.cancel_deactivate() {
                Ok(()) => slot.leaving = false,
                // Going right now.
                Err(error) if error.is_busy() && !end.is_over() => {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
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

    /// Activate a volume under a name that need not be a snapshot's.
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
            Err(error) if error.is_busy() => match dm.find((&uuid).into())? {
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
        self.patiently(volume.name(), || self.remove_by_uuid(volume))
    }

    /// Removes the device of a volume, whatever it is called by now.
    fn remove_by_uuid(&self, volume: &ThinVolume) -> Result<()> {
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
        let found = self.pool.device_mapper().find((&self.volume_uuid(id)?).into())?;
        let live = found.filter(DeviceStatus::has_live_table);
        Ok(live.map(|status| self.pool.active_volume(&status.name)).transpose()?)
    }

    /// Finds a volume's device, and gives it its name and node again if somebody took them. `false` if it is gone.
    fn recognise(&self, volume: &mut ThinVolume, id: &str) -> Result<bool> {
        let dm = self.pool.device_mapper();
        let Some(status) = dm.find((&self.volume_uuid(volume.id())?).into())? else { return Ok(false) };
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
    pub(in crate::tree) fn forget_device(&self, slot: &mut Slot) -> Result<()> {
        if let Some(volume) = std::mem::take(slot).volume {
            self.pool.device_mapper().remove_node(volume.name())?;
        }
        Ok(())
    }

    /// Repeat while somebody has the device open, until the time that the options give is over. That it
    /// is gone already is fine.
    pub(in crate::tree) fn patiently(&self, name: &DmName, remove: impl Fn() -> Result<()>) -> Result<()> {
        let removed = self.patiently_within(name, self.options.busy_timeout, remove);
        removed.map_err(|error| self.with_holders(None, error))
    }

    fn patiently_within(
        &self,
        name: &DmName,
        timeout: Duration,
        remove: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let end = Deadline::after(timeout);
        let mut pause = Duration::from_millis(1);
        loop {
            match remove() {
                Err(error) if error.errno() == Some(Errno::ENXIO) => return Ok(()),
                Err(error) if error.is_busy() && end.is_over() => {
                    let status = self.pool.device_mapper().status(name.into());
                    let open_count = status.map_or(0, |status| status.open_count);
                    return Err(busy(name, open_count));
                }
                Err(error) if error.is_busy() => thread::sleep(pause),
                result => return result,
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// What the errno of a mount means, where the pool or the volume tells.
    fn why_not_mounted(&self, id: &str, volume: &ThinVolume, error: Error) -> Error {
        let Error::Mount(refused) = &error else { return error };
        match refused.errno {
            // What a full pool answers to a file system that replays its journal.
            Errno::EIO | Errno::ENOSPC => match self.pool.status() {
                Ok(status) if status.mode() == PoolMode::OutOfDataSpace => {
                    let (pool, mode) = (self.pool.name().to_string(), status.mode());
                    let consequence =
                        "a file system on it cannot be mounted; remove snapshots or grow the pool";
                    thin::Error::PoolMode { pool, mode, consequence }.into()
                }
                _ => error,
            },
            Errno::EINVAL | Errno::EUCLEAN => {
                match base_check::read(&*self.options.kernel, self.filesystem, &volume.path()) {
                    Ok(None) => {
                        let filesystem = self.filesystem.kernel_name().unwrap_or_default();
                        Error::NoFilesystem { id: Some(id.to_owned()), filesystem, found: None }
                    }
                    _ => error,
                }
            }
            _ => error,
        }
    }

    /// Grow the file system of an active volume to the volume's size, through a mount of its own.
    pub(in crate::tree) fn grow(&self, volume: &ThinVolume) -> Result<()> {
        let target = self.grow_target(volume.id());
        let mounted = self.mount_volume(volume, &target, true, MountFlags::empty())?;
        let grown = self.filesystem.grow(&*self.options.kernel, &volume.path(), &target);
        let unmounted = self.unmount_volume(volume.id(), &mounted);
        grown.and(unmounted)
    }

    pub(in crate::tree) fn grow_target(&self, id: ThinId) -> PathBuf {
        self.root.current_path().join(format!("grow-{id}"))
    }

    /// Forgets a mount that somebody else took down.
    fn drop_unmounted(&self, slot: &mut Slot, snapshot: &Snapshot) -> Result<()> {
        if let Some(mounted) = &slot.mounted
            && self.where_is(mounted)? == Where::Gone
        {
            self.forget_mounted(snapshot.thin_id, mounted);
            slot.mounted = None;
        }
        Ok(())
    }
}

/// Whose device it is, and who has it open, [`SnapshotTree::with_holders`] adds.
pub(in crate::tree) fn busy(device: &DmName, open_count: u32) -> Error {
    Error::Busy { snapshot: None, device: device.to_string(), open_count, holders: Vec::new() }
}

pub(in crate::tree) fn check_unmounted(slot: &Slot, id: &str) -> Result<()> {
    match &slot.mounted {
        Some(mounted) => Err(Error::Mounted { id: id.to_owned(), target: mounted.target.clone() }),
        None => Ok(()),
    }
}

pub(in crate::tree) fn lock(cell: &SlotCell) -> SlotGuard<'_> {
    SlotGuard { slot: cell.slot.lock().unwrap_or_else(PoisonError::into_inner), view: &cell.view }
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
        tree.tidy(&SnapshotId::new("a").unwrap(), slot.clone());
        tree.activate("b").unwrap();
        drop(busy);
        drop(slot);
        tree.close().unwrap();
    }
}
