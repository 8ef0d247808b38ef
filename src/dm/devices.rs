//! The commands about devices: which there are, their life, their names and their state.

use std::path::PathBuf;

use nix::errno::Errno;

use super::wire::{Command, DeviceStatus, EventNr, Geometry, ListedDevice, Payload, Request};
use super::{DeviceMapper, DmFlags, DmId, DmName, DmUuid, TargetLine, TargetSpec, node};
use crate::abi::dm::DM_MPATH_PROBE_PATHS;
use crate::error::{IoctlError, is_permission};
use crate::kernel::{Access, Arg, DeviceNumber};
use crate::units::Sectors;
use crate::{Error, Result};

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Removal {
    /// The device is gone.
    Removed,
    /// It was open: the kernel removes it when it is closed for the last time.
    Deferred,
}

impl DeviceMapper {
    /// All devices, with their event numbers since interface 4.37 and their uuids since 4.45. Whatever
    /// bytes a device's name has, it is among them.
    #[doc(alias = "DM_LIST_DEVICES")]
    pub fn list(&self) -> Result<Vec<ListedDevice>> {
        // From 4.45 on the flag asks for uuids.
        let uuids = if self.version().minor >= 45 { DmFlags::UUID } else { DmFlags::empty() };
        self.transact(&Request::new(Command::LIST_DEVICES).flags(uuids), |answer| answer.devices())
    }

    /// The devices whose name and uuid begin so; the kernel sorts them out. Since interface 4.45.
    #[doc(alias = "DM_LIST_DEVICES")]
    pub fn list_matching(
        &self,
        name_prefix: Option<&DmName>,
        uuid_prefix: Option<&DmUuid>,
    ) -> Result<Vec<ListedDevice>> {
        let request = Request::matching(name_prefix, uuid_prefix).flags(DmFlags::UUID).since(45);
        self.transact(&request, |answer| answer.devices())
    }

    /// Create a device without a table. Its node is there when this returns, unless udev makes it,
    /// which it does at the first [`resume`](Self::resume).
    ///
    /// # Errors
    /// EBUSY if the name or the uuid is taken: [`Error::is_busy`].
    #[doc(alias = "DM_DEV_CREATE")]
    pub fn create(&self, name: &DmName, uuid: Option<&DmUuid>) -> Result<DeviceStatus> {
        self.create_with_number(name, uuid, None)
    }

    /// The same with a device number of the caller's choice; the major number is device mapper's own.
    ///
    /// # Errors
    /// As [`create`](Self::create); EBUSY also if the minor number is taken.
    #[doc(alias = "DM_PERSISTENT_DEV_FLAG")]
    pub fn create_with_number(
        &self,
        name: &DmName,
        uuid: Option<&DmUuid>,
        number: Option<DeviceNumber>,
    ) -> Result<DeviceStatus> {
        let status = self.transact(&Request::create(name, uuid, number), |answer| answer.device())?;
        if !self.waits_for_udev()
            && let Err(error) = node::ensure(&**self.kernel(), name, status.number)
        {
            let _ = self.remove(name);
            return Err(error);
        }
        Ok(status)
    }

    /// Create a device, load its table and resume it; undone if any of that fails.
    ///
    /// The state before the resume is returned, with the number that the device got.
    pub fn create_active(
        &self,
        name: &DmName,
        uuid: &DmUuid,
        table: &[TargetSpec<'_>],
        flags: DmFlags,
    ) -> Result<DeviceStatus> {
        let status = self.create(name, Some(uuid))?;
        let active = self
            .load_table(status.number.into(), table, flags)
            .and_then(|()| self.resume(name))
            .and_then(|_| self.ensure_node(name, status.number));
        match active {
            Ok(_) => Ok(status),
            Err(error) => {
                // What failed is the news; a device that cannot be removed either has its own.
                let _ = self.remove(name);
                Err(error)
            }
        }
    }

    /// Remove a device and its node.
    ///
    /// # Errors
    /// EBUSY if it is open ([`Error::is_busy`]), ENXIO if it is not there ([`Error::is_not_found`]).
    #[doc(alias = "DM_DEV_REMOVE")]
    pub fn remove(&self, name: &DmName) -> Result<()> {
        self.remove_with(name, DmFlags::empty()).map(drop)
    }

    /// Remove a device now if it is closed, else when it is closed for the last time.
    ///
    /// A device waiting for that can still be used, until [`cancel_deferred_remove`](Self::cancel_deferred_remove)
    /// or its end. Where udev does not run its node is left then: [`remove`](Self::remove), which says that the device
    /// is gone, takes it away. Since interface 4.27.
    #[doc(alias = "DM_DEFERRED_REMOVE")]
    pub fn remove_deferred(&self, name: &DmName) -> Result<Removal> {
        self.remove_with(name, DmFlags::DEFERRED_REMOVE)
    }

    fn remove_with(&self, name: &DmName, flags: DmFlags) -> Result<Removal> {
        let minor = if flags.contains(DmFlags::DEFERRED_REMOVE) { 27 } else { 0 };
        let request = Request::on(Command::DEV_REMOVE, name.into()).flags(flags).since(minor);
        match self.with_udev(request) {
            Ok((flags, _)) if flags.contains(DmFlags::DEFERRED_REMOVE) => return Ok(Removal::Deferred),
            Err(error) => {
                // Gone all the same: then the node goes, too.
                let refused = matches!(error, Error::Ioctl(_)) && !error.is_busy();
                if refused && matches!(self.find(name.into()), Ok(None)) {
                    node::remove(&**self.kernel(), name)?;
                }
                return Err(error);
            }
            Ok(_) => {}
        }
        node::remove(&**self.kernel(), name)?;
        Ok(Removal::Removed)
    }

    /// Remove every device of the system that is not open, whoever made it; the ones left are
    /// returned. Their nodes go too.
    ///
    /// With [`DmFlags::DEFERRED_REMOVE`], which came with interface 4.27, open ones are removed when
    /// they are closed for the last time; other flags are ignored.
    #[doc(alias = "DM_REMOVE_ALL")]
    pub fn remove_all(&self, flags: DmFlags) -> Result<Vec<ListedDevice>> {
        let flags = flags & DmFlags::DEFERRED_REMOVE;
        let minor = if flags.is_empty() { 0 } else { 27 };
        let before = self.list()?;
        self.transact(&Request::new(Command::REMOVE_ALL).flags(flags).since(minor), |_| Ok(()))?;
        let left = self.list()?;
        for device in before.iter().filter(|device| left.iter().all(|other| other.name != device.name)) {
            node::remove(&**self.kernel(), &device.name)?;
        }
        Ok(left)
    }

    /// Take back a deferred removal.
    ///
    /// # Errors
    /// ENXIO if the device is gone, EBUSY if it is going right now. That none is pending is no error.
    #[doc(alias = "@cancel_deferred_remove")]
    pub fn cancel_deferred_remove(&self, id: DmId<'_>) -> Result<()> {
        self.message(id, Sectors(0), &"@cancel_deferred_remove").map(drop)
    }

    /// Give a device another name; its node moves along. Not after [`clear_table`](Self::clear_table): see there.
    ///
    /// # Errors
    /// EBUSY if the new name is taken, ENXIO if there is no device of the old one.
    #[doc(alias = "DM_DEV_RENAME")]
    pub fn rename(&self, from: &DmName, to: &DmName) -> Result<()> {
        let request = Request::on(Command::DEV_RENAME, from.into()).payload(Payload::NewName(to));
        let (_, number) = self.with_udev(request)?;
        node::remove(&**self.kernel(), from)?;
        self.ensure_node(to, number).map(drop)
    }

    /// Give a device that has none a uuid, which cannot be changed after. Since interface 4.19.
    ///
    /// # Errors
    /// EBUSY if another device has it, EINVAL if this one has a uuid, ENXIO if there is no such device.
    #[doc(alias("DM_DEV_RENAME", "DM_UUID_FLAG"))]
    pub fn set_uuid(&self, name: &DmName, uuid: &DmUuid) -> Result<()> {
        let request = Request::on(Command::DEV_RENAME, name.into())
            .since(19)
            .flags(DmFlags::UUID)
            .payload(Payload::NewUuid(uuid));
        self.with_udev(request).map(drop)
    }

    /// Set what HDIO_GETGEO answers; it is forgotten when the device's size changes. Since interface
    /// 4.6.
    ///
    /// # Errors
    /// EINVAL if `start` is beyond what the geometry spans.
    #[doc(alias = "DM_DEV_SET_GEOMETRY")]
    pub fn set_geometry(&self, id: DmId<'_>, geometry: Geometry) -> Result<()> {
        let request = Request::on(Command::DEV_SET_GEOMETRY, id).payload(Payload::Geometry(geometry));
        self.transact(&request, |_| Ok(()))
    }

    /// Suspend a device: new I/O waits until [`resume`](Self::resume). A suspended one stays so.
    ///
    /// With no flag, a mounted file system is frozen and I/O on its way is finished first;
    /// [`DmFlags::SKIP_LOCKFS`] and [`DmFlags::NOFLUSH`] leave that out. Other flags are ignored. A
    /// signal that interrupts the wait does not end it.
    #[doc(alias = "DM_DEV_SUSPEND")]
    pub fn suspend(&self, id: DmId<'_>, flags: DmFlags) -> Result<DeviceStatus> {
        let flags = flags & (DmFlags::SKIP_LOCKFS | DmFlags::NOFLUSH) | DmFlags::SUSPEND;
        let request = Request::on(Command::DEV_SUSPEND, id).flags(flags);
        loop {
            match self.transact(&request, |answer| answer.device()) {
                Err(error) if error.errno() == Some(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Resume a device; an inactive table becomes the live one. A resume that swaps tables suspends first; a
    /// signal that interrupts that does not end it.
    ///
    /// # Errors
    /// If the table cannot be put to use it is dropped.
    #[doc(alias = "DM_DEV_SUSPEND")]
    pub fn resume(&self, name: &DmName) -> Result<()> {
        let request = Request::on(Command::DEV_SUSPEND, name.into());
        loop {
            // The kernel keeps the inactive table when its suspend is interrupted.
            match self.with_udev(request) {
                Err(error) if error.errno() == Some(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// The state of a device.
    ///
    /// # Errors
    /// ENXIO if it is not there ([`Error::is_not_found`]).
    #[doc(alias = "DM_DEV_STATUS")]
    pub fn status(&self, id: DmId<'_>) -> Result<DeviceStatus> {
        self.transact(&Request::on(Command::DEV_STATUS, id), |answer| answer.device())
    }

    /// The state of a device, or `None` if it is not there.
    pub fn find(&self, id: DmId<'_>) -> Result<Option<DeviceStatus>> {
        match self.status(id) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Wait until a device's event number is another than `seen`, which a [`DeviceStatus`] or an earlier
    /// wait told: it returns at once if that has happened already, so that no event is missed. What
    /// the targets say then comes with it.
    ///
    /// [`DmFlags::NOFLUSH`] keeps a thin pool from committing for that, other flags are ignored.
    ///
    /// # Errors
    /// EINTR if a signal with a handler came; ENXIO if the device is not there.
    #[doc(alias = "DM_DEV_WAIT")]
    pub fn wait(
        &self,
        id: DmId<'_>,
        seen: EventNr,
        flags: DmFlags,
    ) -> Result<(DeviceStatus, Vec<TargetLine>)> {
        let request = Request::on(Command::DEV_WAIT, id).event_nr(seen).flags(flags & DmFlags::NOFLUSH);
        self.transact(&request, |answer| Ok((answer.device()?, answer.targets()?)))
    }

    /// Arm the control file: [`AsFd`](std::os::fd::AsFd) then polls readable once a device was created,
    /// removed, renamed, suspended or resumed, or had an event, and stays so until armed again. Since
    /// interface 4.37.
    ///
    /// There is one state for each open file: two users of the same [`DeviceMapper`] would take each
    /// other's events. [`events`](Self::events) opens its own.
    #[doc(alias = "DM_DEV_ARM_POLL")]
    pub fn arm_poll(&self) -> Result<()> {
        self.transact(&Request::new(Command::DEV_ARM_POLL), |_| Ok(()))
    }

    /// Let a multipath device test the paths that it does not use now, and wait for the outcome. Since
    /// interface 4.50.
    ///
    /// # Errors
    /// ENOTTY if it is no multipath device.
    #[doc(alias = "DM_MPATH_PROBE_PATHS")]
    pub fn probe_paths(&self, name: &DmName) -> Result<()> {
        let ioctl = DM_MPATH_PROBE_PATHS;
        self.needs(ioctl, 50)?;
        let path = self.ensure_node(name, self.status(name.into())?.number)?;
        let device = match self.kernel().open(&path, Access::READ) {
            Ok(device) => device,
            Err(errno) if is_permission(errno) => {
                return Err(Error::NotPermitted { what: format!("open {}", path.display()) });
            }
            Err(errno) => return Err(Error::Open { path, errno }),
        };
        let refused = |errno| {
            let device = name.to_string();
            Error::Ioctl(Box::new(IoctlError { ioctl: ioctl.name(), device, detail: None, errno }))
        };
        self.kernel().ioctl(&device, ioctl, Arg::Value(0)).map(drop).map_err(refused)
    }

    /// Where the node of a device of that name is.
    pub fn node_path(&self, name: &DmName) -> PathBuf {
        node::path(name)
    }

    /// Remove the node of a device that is gone.
    pub fn remove_node(&self, name: &DmName) -> Result<()> {
        node::remove(&**self.kernel(), name)
    }

    /// See to it that the node of an active device is there and means that device.
    pub fn ensure_node(&self, name: &DmName, number: DeviceNumber) -> Result<PathBuf> {
        node::ensure(&**self.kernel(), name, number)
    }
}
