//! A tree's pool, and the devices of its volumes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::dm::{DeviceMapper, DeviceStatus, DmId, DmName};
use crate::kernel::Kernel;
use crate::retry::Retry;
use crate::thin::metadata::Metadata;
use crate::thin::{ActivateOptions, ThinId, ThinPool, ThinVolume};
use crate::tree::error::busy;
use crate::tree::holders::of_device;
use crate::tree::names::{BASE, Names};
use crate::tree::pool::claim::Claim;
use crate::tree::pool::generation::PoolGeneration;
use crate::tree::pool::hold::HoldNote;
use crate::tree::sync::{Guard, Lock, Rank};
use crate::tree::{Error, Result};
use crate::units::Bytes;

/// The pool of an open tree and the devices of its volumes: all that is sent to device mapper goes through here or
/// through [`thin`](Self::thin). Snapshots are names to it.
#[derive(Debug)]
pub(in crate::tree) struct TreePool {
    pub(in crate::tree) thin: ThinPool,
    pub(in crate::tree) names: Names,
    busy_timeout: Duration,
    pub(in crate::tree) generation: PoolGeneration,
    hold: HoldNote,
    claim: Lock<Claim>,
    /// Held while the pool is made larger or deactivated.
    resizing: Lock<()>,
    activations: AtomicU64,
}

impl TreePool {
    pub(in crate::tree) fn new(
        thin: ThinPool,
        names: Names,
        hold: HoldNote,
        claim: Claim,
        busy_timeout: Duration,
    ) -> Self {
        Self {
            thin,
            names,
            busy_timeout,
            generation: PoolGeneration::default(),
            hold,
            claim: Lock::new(Rank::Leaf, claim),
            resizing: Lock::new(Rank::Resizing, ()),
            activations: AtomicU64::new(0),
        }
    }

    pub(in crate::tree) fn dm(&self) -> &DeviceMapper {
        self.thin.device_mapper()
    }

    pub(in crate::tree) fn kernel(&self) -> &dyn Kernel {
        &**self.dm().kernel()
    }

    /// Excludes other growth of the pool, and its deactivation, while it is held.
    pub(in crate::tree) fn resizing(&self) -> Guard<'_, ()> {
        self.resizing.lock()
    }

    /// The note on the pool's metadata snapshot.
    pub(in crate::tree) fn hold(&self) -> &HoldNote {
        &self.hold
    }

    /// Reads the pool's metadata as it is at this moment. While `read` runs, the pool's metadata snapshot is held, and
    /// the root says that it is this tree's.
    ///
    /// # Errors
    /// As [`ThinPool::read_metadata`].
    pub(in crate::tree) fn read_metadata<T>(&self, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        self.hold.read(&self.thin, read)
    }

    /// Gives the tree up.
    pub(in crate::tree) fn release_claim(&self) -> Result<()> {
        let mut claim = self.claim.lock();
        let name = *claim.name();
        self.retry_while_busy(&name, || claim.release())
    }

    /// How many volumes this manager has activated: as long as the number stays, no volume that was inactive has
    /// changed.
    pub(in crate::tree) fn activations(&self) -> u64 {
        self.activations.load(Ordering::Acquire)
    }

    /// Activates a volume under the name of a snapshot, or of the base.
    ///
    /// # Errors
    /// [`Error::VolumeGone`] if the pool does not have it.
    pub(in crate::tree) fn activate(
        &self,
        id: &str,
        thin_id: ThinId,
        size: Bytes,
        options: &ActivateOptions,
    ) -> Result<ThinVolume> {
        let activated = self.activate_as(&self.names.name(id)?, thin_id, size, options);
        activated.map_err(|error| self.volume_gone(id, thin_id, error))
    }

    /// Activates a volume under a name that need not be a snapshot's.
    pub(in crate::tree) fn activate_as(
        &self,
        name: &DmName,
        thin_id: ThinId,
        size: Bytes,
        options: &ActivateOptions,
    ) -> Result<ThinVolume> {
        let uuid = self.names.volume_uuid(thin_id)?;
        let activate = || self.thin.activate_with(name, &uuid, thin_id, size.sectors(), options);
        let volume = match activate() {
            // Left by an activation that failed, and could not be undone.
            Err(error) if error.is_busy() => match self.dm().find(&uuid)? {
                Some(stale) if !stale.has_live_table() => {
                    self.dm().remove(&uuid)?;
                    activate()
                }
                Some(live) => self.thin.active_volume(&live.name),
                None => Err(error),
            },
            result => result,
        }?;
        self.activations.fetch_add(1, Ordering::AcqRel);
        Ok(volume)
    }

    /// What ENODATA means of a volume that the state lists.
    pub(in crate::tree) fn volume_gone(&self, id: &str, thin_id: ThinId, error: Error) -> Error {
        if error.errno() != Some(Errno::ENODATA) {
            return error;
        }
        let id = Some(id.to_owned()).filter(|id| id != BASE);
        Error::VolumeGone { id, thin_id, pool: self.thin.name().to_string() }
    }

    /// Whether the pool may have a volume, where its metadata cannot be read: one that is not there cannot be activated.
    pub(in crate::tree) fn may_have(&self, thin_id: ThinId, size: Bytes) -> Result<bool> {
        if self.dm().find(&self.names.volume_uuid(thin_id)?)?.is_some() {
            return Ok(true);
        }
        match self.activate_as(&self.names.unpublished(thin_id)?, thin_id, size, &ActivateOptions::new()) {
            Ok(volume) => self.deactivate(&volume).map(|()| true),
            Err(error) => Ok(error.errno() != Some(Errno::ENODATA)),
        }
    }

    /// An active volume of this tree, found by its uuid.
    pub(in crate::tree) fn find(&self, id: ThinId) -> Result<Option<ThinVolume>> {
        let found = self.dm().find(&self.names.volume_uuid(id)?)?;
        let live = found.filter(DeviceStatus::has_live_table);
        Ok(live.map(|status| self.thin.active_volume(&status.name)).transpose()?)
    }

    /// Finds a volume's device, and restores its name and node if another program changed them. `None` if it is gone.
    pub(in crate::tree) fn recognise(
        &self,
        volume: &mut ThinVolume,
        id: &str,
    ) -> Result<Option<DeviceStatus>> {
        let Some(status) = self.dm().find(&self.names.volume_uuid(volume.id())?)? else { return Ok(None) };
        if (status.name, status.number) != (*volume.name(), volume.number()) {
            *volume = self.thin.active_volume(&status.name)?;
        }
        let name = self.names.name(id)?;
        if *volume.name() != name {
            volume.rename(&name)?;
        }
        self.dm().ensure_node(&name, status.number)?;
        Ok(Some(status))
    }

    /// This tree's volumes that are active.
    pub(in crate::tree) fn active_devices(&self) -> Result<Vec<(DeviceStatus, ThinId)>> {
        active_devices(self.dm(), &self.names)
    }

    /// Removes the device of a volume. That it is gone already is fine.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is open longer than [`busy_timeout`](crate::tree::Options::busy_timeout).
    pub(in crate::tree) fn deactivate(&self, volume: &ThinVolume) -> Result<()> {
        self.retry_while_busy(volume.name(), || self.remove_device(volume))
    }

    /// Removes the device of a volume, whatever it is called by now.
    pub(in crate::tree) fn remove_device(&self, volume: &ThinVolume) -> Result<()> {
        match volume.deactivate() {
            Err(error) if error.errno() == Some(Errno::ENXIO) => match self.find(volume.id())? {
                Some(found) => Ok(found.deactivate()?),
                None => Err(error.into()),
            },
            result => Ok(result?),
        }
    }

    /// Removes the device of a removed snapshot that was open, or that a crash left active. Does not wait.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is open.
    pub(in crate::tree) fn remove_left(&self, thin_id: ThinId) -> Result<()> {
        let uuid = self.names.volume_uuid(thin_id)?;
        let Some(status) = self.dm().find(&uuid)? else {
            // The kernel has removed it when it was closed, and cannot remove the node.
            return Ok(self.dm().remove_node(&self.names.unpublished(thin_id)?)?);
        };
        match self.dm().remove(&uuid) {
            Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(self.dm().remove_node(&status.name)?),
            Err(error) if error.is_busy() => Err(busy(&status.name, status.open_count)),
            result => Ok(result?),
        }
    }

    /// Deletes a thin device; none of that id is fine.
    pub(in crate::tree) fn delete(&self, id: ThinId) -> Result<()> {
        match self.thin.delete(id) {
            Err(error) if error.errno() != Some(Errno::ENODATA) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Retries while the device is open, up to [`busy_timeout`](crate::tree::Options::busy_timeout). That it
    /// is gone already is fine.
    pub(in crate::tree) fn retry_while_busy(
        &self,
        name: &DmName,
        remove: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let removed = self.retry_while_busy_within(name, self.busy_timeout, remove);
        removed.map_err(|error| self.with_holders(None, error))
    }

    pub(in crate::tree) fn retry_while_busy_within(
        &self,
        name: &DmName,
        timeout: Duration,
        mut remove: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut retry = Retry::within(timeout);
        loop {
            match remove() {
                Err(error) if error.errno() == Some(Errno::ENXIO) => return Ok(()),
                Err(error) if error.is_busy() && retry.pause() => {}
                Err(error) if error.is_busy() => {
                    let open_count = self.dm().status(name).map_or(0, |status| status.open_count);
                    return Err(busy(name, open_count));
                }
                result => return result,
            }
        }
    }

    /// Adds to an error that a device is busy which snapshot's it is, and who has it open.
    pub(in crate::tree) fn with_holders(&self, id: Option<&str>, mut error: Error) -> Error {
        if let Error::Busy { snapshot, device, holders, .. } = &mut error
            && holders.is_empty()
        {
            *snapshot = id.map(str::to_owned);
            let found = DmName::new(device).and_then(|name| self.dm().find(&name));
            // Without an answer the error is as true as before.
            if let Ok(Some(status)) = found {
                *holders = of_device(self.kernel(), status.number);
            }
        }
        error
    }
}

/// Active volumes of a tree, recognised by their uuids.
pub(in crate::tree) fn active_devices(
    dm: &DeviceMapper,
    names: &Names,
) -> Result<Vec<(DeviceStatus, ThinId)>> {
    let mut active = Vec::new();
    // The kernel sorts the others out since interface 4.45; before, the list has no uuids.
    let devices = match dm.version().minor {
        45.. => dm.list_matching(None, Some(&names.uuid_prefix()?))?,
        _ => dm.list()?,
    };
    for device in devices {
        // It can go at any time.
        let Some(status) = dm.find(DmId::Number(device.number))? else { continue };
        let id = status.uuid.as_ref().and_then(|uuid| names.volume_of(uuid));
        active.extend(id.map(|id| (status, id)));
    }
    Ok(active)
}
