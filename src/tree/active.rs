//! What is active and mounted.
//!
//! Every snapshot in use has a slot; a call that activates, mounts, or takes down holds its lock to the
//! end, so that unmount and deactivate are one step for all others. Only one slot is held at a time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::graph::{FsState, Record, Snapshot};
use super::mount::{Mounted, Where};
use super::{SnapshotId, SnapshotTree, unknown};
use crate::dm::{DmName, Removal};
use crate::thin::{ThinId, ThinVolume};
use crate::units::Bytes;
use crate::{Error, Result};

/// The state of a snapshot in the kernel.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) volume: Option<ThinVolume>,
    /// The kernel removes the volume's device as soon as it is closed, and may have done so.
    pub(super) leaving: bool,
    /// Somebody asked for it to be active, mounted or not.
    pub(super) held: bool,
    pub(super) mounted: Option<Mounted>,
}

impl SnapshotTree {
    /// Make a snapshot a block device; the path of its node is returned. Active already, it stays so.
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
    /// [`Options::busy_timeout`](super::Options::busy_timeout).
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
    /// Mounted on the same directory already, it is counted: it takes as many [`unmount`](Self::unmount)s.
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
                mounted.count += 1;
                return Ok(());
            }
            self.activate_slot(slot, id, snapshot)?;
            let Some(volume) = &slot.volume else { return Err(Error::Closed) };
            let mounted = self.mount_volume(volume, target, false).and_then(|mounted| {
                match self.prepare(id, snapshot, volume.number(), &mounted.path()) {
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
    /// [`Error::NotMounted`]; [`Error::Mount`] with EBUSY if files on it are open, [`Error::Covered`] if another file
    /// system is mounted over it: it stays mounted.
    /// [`Error::Busy`] if it is unmounted, but somebody (a copy of the mount in another namespace) still
    /// has it open: [`deactivate`](Self::deactivate) can be tried again.
    pub fn unmount(&self, id: &str) -> Result<()> {
        self.with_slot(id, |slot, snapshot| {
            let mounted = slot.mounted.as_mut().ok_or_else(|| Error::NotMounted { id: id.to_owned() })?;
            if mounted.count > 1 {
                mounted.count -= 1;
                return Ok(());
            }
            self.unmount_volume(snapshot.thin_id, mounted)?;
            slot.mounted = None;
            if slot.held {
                Ok(())
            } else if self.options.deferred_removal {
                self.defer_slot(slot, id).map(drop)
            } else {
                self.deactivate_slot(slot, id)
            }
        })
    }

    /// Run `work` with the slot of a snapshot that is there, and no other call on it meanwhile.
    pub(super) fn with_slot<T>(
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
        result
    }

    /// Done with a slot: forget it if it is idle.
    pub(super) fn tidy(&self, id: &SnapshotId, slot: Arc<Mutex<Slot>>) {
        let idle = lock(&slot).volume.is_none();
        drop(slot);
        let mut slots = self.slots();
        // Nobody else holds it, and nobody can get it while the map is locked.
        if idle
            && slots.get(id).is_some_and(|slot| Arc::strong_count(slot) == 1 && lock(slot).volume.is_none())
        {
            slots.remove(id);
        }
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, std::collections::HashMap<SnapshotId, Arc<Mutex<Slot>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Activate for a caller who has the slot; a file system smaller than its volume is grown first.
    pub(super) fn activate_slot(&self, slot: &mut Slot, id: &str, snapshot: &Snapshot) -> Result<PathBuf> {
        if slot.leaving {
            self.keep(slot)?;
        }
        if let Some(volume) = &slot.volume {
            return Ok(volume.path());
        }
        let volume = self.activate_volume(id, snapshot.thin_id, snapshot.size)?;
        if snapshot.fs == FsState::Growing
            && let Err(error) = self.grow(&volume).and_then(|()| {
                let id = SnapshotId::new(id)?;
                self.store.commit(&Record::Fs { id, fs: FsState::Ready })
            })
        {
            let _ = self.remove_volume(&volume);
            return Err(error);
        }
        Ok(slot.volume.insert(volume).path())
    }

    pub(super) fn deactivate_slot(&self, slot: &mut Slot, id: &str) -> Result<()> {
        self.deactivate_slot_within(slot, id, self.options.busy_timeout)
    }

    pub(super) fn deactivate_slot_within(&self, slot: &mut Slot, id: &str, timeout: Duration) -> Result<()> {
        check_unmounted(slot, id)?;
        if let Some(volume) = &slot.volume {
            self.patiently_within(volume.name(), timeout, || volume.deactivate())?;
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
            // Before interface 4.27.
            Err(Error::TooOld { .. }) => return self.deactivate_slot(slot, id).map(|()| Removal::Removed),
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
        let end = Instant::now() + self.options.busy_timeout;
        loop {
            match volume.cancel_deactivate() {
                Ok(()) => slot.leaving = false,
                // Going right now.
                Err(error) if error.is_busy() && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(error) if error.errno() == Some(Errno::ENXIO) => {
                    self.pool.device_mapper().remove_node(volume.name())?;
                    *slot = Slot::default();
                }
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }

    pub(super) fn deactivate_all(&self) -> Result<()> {
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

    pub(super) fn activate_volume(&self, id: &str, thin_id: ThinId, size: Bytes) -> Result<ThinVolume> {
        let (name, uuid) = (self.volume_name(id)?, self.volume_uuid(thin_id)?);
        let activate = || self.pool.activate(&name, &uuid, thin_id, size.sectors());
        let dm = self.pool.device_mapper();
        match activate() {
            // Left by an activation that failed, and could not be undone.
            Err(error) if error.is_busy() => match dm.find((&uuid).into())? {
                Some(stale) if !stale.has_live_table() => {
                    dm.remove(&stale.name)?;
                    activate()
                }
                Some(live) => self.pool.active_volume(&live.name),
                None => Err(error),
            },
            result => result,
        }
    }

    pub(super) fn remove_volume(&self, volume: &ThinVolume) -> Result<()> {
        self.patiently(volume.name(), || volume.deactivate())
    }

    /// Repeat while somebody has the device open, until the time that the options give is over. That it
    /// is gone already is fine.
    pub(super) fn patiently(&self, name: &DmName, remove: impl Fn() -> Result<()>) -> Result<()> {
        self.patiently_within(name, self.options.busy_timeout, remove)
    }

    fn patiently_within(
        &self,
        name: &DmName,
        timeout: Duration,
        remove: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let end = Instant::now() + timeout;
        let mut pause = Duration::from_millis(1);
        loop {
            match remove() {
                Err(error) if error.errno() == Some(Errno::ENXIO) => return Ok(()),
                Err(error) if error.is_busy() && Instant::now() >= end => {
                    let status = self.pool.device_mapper().status(name.into());
                    let open_count = status.map_or(0, |status| status.open_count);
                    return Err(Error::Busy { device: name.to_string(), open_count });
                }
                Err(error) if error.is_busy() => thread::sleep(pause),
                result => return result,
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Grow the file system of an active volume to the volume's size, through a mount of its own.
    pub(super) fn grow(&self, volume: &ThinVolume) -> Result<()> {
        let target = self.grow_target(volume.id());
        let mounted = self.mount_volume(volume, &target, true)?;
        let grown = self.filesystem.grow(&volume.path(), &target);
        let unmounted = self.unmount_volume(volume.id(), &mounted);
        grown.and(unmounted)
    }

    pub(super) fn grow_target(&self, id: ThinId) -> PathBuf {
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

fn check_unmounted(slot: &Slot, id: &str) -> Result<()> {
    match &slot.mounted {
        Some(mounted) => Err(Error::Mounted { id: id.to_owned(), target: mounted.target.clone() }),
        None => Ok(()),
    }
}

pub(super) fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
