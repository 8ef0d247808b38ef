//! Thin devices of a pool to block devices.

use std::time::Duration;

use nix::errno::Errno;

use super::identity::Identity;
use super::reload::while_pool_is_suspended;
use super::{ThinId, ThinPool, ThinTable, ThinVolume};
use crate::dm::{self, DeviceStatus, DmFlags, DmName, DmUuid, TableKind, TargetSpec, TargetType};
use crate::kernel::DeviceNumber;
use crate::retry::Retry;
use crate::thin::{Error, Result};
use crate::units::Sectors;

/// How a volume is activated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct ActivateOptions {
    pub(super) read_only: bool,
    pub(super) external_origin: Option<DeviceNumber>,
}

impl ActivateOptions {
    /// Writable, and what is not mapped reads as zeroes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses writes (a read-only table).
    #[must_use]
    #[doc(alias = "DM_READONLY_FLAG")]
    pub fn read_only(mut self, on: bool) -> Self {
        self.read_only = on;
        self
    }

    /// Sets the external origin: a device that is read where the volume has nothing mapped, and is never written to. It
    /// must not change as long as there are volumes over it, and every activation must name it again: the pool does not
    /// remember it.
    #[must_use]
    pub fn external_origin(mut self, device: DeviceNumber) -> Self {
        self.external_origin = Some(device);
        self
    }
}

impl ThinPool {
    /// Activates a thin device as a block device of `size`.
    ///
    /// # Errors
    /// ENODATA if the pool has no such device ([`Error::is_not_found`]), EBUSY if the name or the uuid is
    /// taken ([`Error::is_busy`]), [`dm::Error::Replaced`](crate::dm::Error::Replaced) if the pool's number is
    /// another pool's now. On an error no device is left.
    pub fn activate(&self, name: &DmName, uuid: &DmUuid, id: ThinId, size: Sectors) -> Result<ThinVolume> {
        self.activate_with(name, uuid, id, size, &ActivateOptions::new())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`activate`](Self::activate); [`Error::InvalidOption`] if the external origin is the pool. A pool that
    /// another process has suspended for 2 seconds is EINVAL, like a size that is not whole logical blocks of the
    /// pool's devices.
    pub fn activate_with(
        &self,
        name: &DmName,
        uuid: &DmUuid,
        id: ThinId,
        size: Sectors,
        options: &ActivateOptions,
    ) -> Result<ThinVolume> {
        let table = ThinTable { pool: self.number(), id, external_origin: options.external_origin };
        table.check()?;
        let line =
            TargetSpec { start: Sectors(0), length: size, target_type: TargetType::THIN, parameters: &table };
        let flags = if options.read_only { DmFlags::READONLY } else { DmFlags::empty() };
        // The number in the table may be another pool's by now. From the load on the pool that has it stays.
        let is_ours = || self.identity.check_number(&self.dm);
        let create = || self.dm.create_active_if(name, uuid, &[line], flags, is_ours);
        let status = while_pool_is_suspended(&self.dm, &self.identity, create)?;
        Ok(self.volume(&status, id))
    }

    /// A volume that is known to be active.
    pub(crate) fn volume(&self, status: &DeviceStatus, id: ThinId) -> ThinVolume {
        ThinVolume { dm: self.dm.clone(), identity: status.into(), id, pool: self.identity }
    }

    /// A volume, active already or not: a deferred removal of it is cancelled; one that is gone, or goes
    /// meanwhile, is activated again; one that another caller is activating is waited for. What is active keeps its
    /// size and its options.
    ///
    /// Nothing is asked first, so a volume that is not active costs what [`activate`](Self::activate)
    /// costs.
    ///
    /// # Errors
    /// As [`activate_with`](Self::activate_with); EBUSY if the name or the uuid is taken, or the
    /// removal is not over after `patience`; [`Error::WrongTarget`] if the device is not that volume.
    pub fn reactivate(
        &self,
        name: &DmName,
        uuid: &DmUuid,
        id: ThinId,
        size: Sectors,
        options: &ActivateOptions,
        patience: Duration,
    ) -> Result<ThinVolume> {
        let mut retry = Retry::within(patience);
        loop {
            let taken = match self.activate_with(name, uuid, id, size, options) {
                Err(error) if error.errno() == Some(Errno::EBUSY) => error,
                result => return result,
            };
            match self.take_over(name, uuid, id) {
                Ok(Some(volume)) => return Ok(volume),
                // On its way in or out.
                Ok(None) => {}
                Err(error) if error.errno() == Some(Errno::ENXIO) => return Err(taken),
                Err(error) => return Err(error),
            }
            if !retry.pause() {
                return Err(taken);
            }
        }
    }

    /// The volume, if it is active; `None` if it is coming or going. ENXIO if another device has the name.
    fn take_over(&self, name: &DmName, uuid: &DmUuid, id: ThinId) -> Result<Option<ThinVolume>> {
        let dm = &self.dm;
        let take = || {
            dm.cancel_deferred_remove(uuid)?;
            if dm.table(uuid, TableKind::Live)?.is_empty() {
                return Ok(None);
            }
            let volume = self.active_volume(name)?;
            if volume.id != id || volume.uuid() != Some(uuid) {
                return Err(self.not_the_volume(name, &volume));
            }
            // Its activator may still be at work, or have died.
            if !dm.waits_for_udev() {
                dm.ensure_node(name, volume.number())?;
            }
            Ok(Some(volume))
        };
        let taken: Result<_> = take();
        match taken.as_ref().map_err(Error::errno) {
            Err(Some(Errno::EBUSY)) => Ok(None),
            // The uuid is not there, or no more; is it the name that is taken, by another device?
            Err(Some(Errno::ENXIO)) if dm.find(name)?.is_none_or(|found| found.uuid == Some(*uuid)) => {
                Ok(None)
            }
            _ => taken,
        }
    }

    /// A volume of this pool that is active already.
    ///
    /// # Errors
    /// ENXIO if there is no such device, [`Error::WrongTarget`] if it is not a thin volume of this pool.
    pub fn active_volume(&self, name: &DmName) -> Result<ThinVolume> {
        let dm = self.device_mapper();
        let status = dm.status(name)?;
        let lines = dm.table(Identity::from(&status).id(dm)?, TableKind::Live)?;
        let found = || lines.first().map(|line| line.to_string()).unwrap_or_default();
        let wrong = || Error::WrongTarget { device: name.to_string(), found: found(), expected: "thin" };
        let [line] = &lines[..] else { return Err(wrong()) };
        if line.target_type != TargetType::THIN {
            return Err(wrong());
        }
        let table: ThinTable = line.text.parse()?;
        if table.pool != self.number() {
            return Err(wrong());
        }
        self.identity.check_number(dm)?;
        Ok(self.volume(&status, table.id))
    }

    /// The volumes of this pool that are active, whoever activated them.
    ///
    /// # Errors
    /// As [`DeviceMapper::list`](crate::dm::DeviceMapper::list) and [`active_volume`](Self::active_volume).
    pub fn active_volumes(&self) -> Result<Vec<ThinVolume>> {
        let mut volumes = Vec::new();
        for device in self.device_mapper().list()? {
            match self.active_volume(&device.name) {
                Ok(volume) => volumes.push(volume),
                // Another kind of device, one that is gone since it was listed, or one that replaced it.
                Err(Error::WrongTarget { .. } | Error::Dm(dm::Error::Malformed { .. })) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(volumes)
    }

    fn not_the_volume(&self, name: &DmName, volume: &ThinVolume) -> Error {
        let found = format!("thin {} {}", self.number(), volume.id);
        Error::WrongTarget { device: name.to_string(), found, expected: "thin" }
    }
}
