//! The commands about devices: which there are, their life, their names and their state.

use std::path::PathBuf;

use nix::errno::Errno;

use super::wire::{Command, DeviceStatus, EventNr, Geometry, ListedDevice, Payload, Request};
use super::{Claim, DeviceMapper, DmFlags, DmId, DmName, DmUuid, Exclusive, TargetLine, TargetSpec, node};
use crate::abi::dm::DM_MPATH_PROBE_PATHS;
use crate::dm::{Error, Result};
use crate::kernel::{Access, Arg, DeviceNumber};
use crate::kernel::{IoctlError, is_permission};

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

    /// Creates a device without a table. Its node is there when this returns, unless udev makes it,
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
        let held = self.exclusive(Claim::from(name).with_uuid(uuid));
        self.create_held(&held, name, uuid, number)
    }

    fn create_held(
        &self,
        held: &Exclusive,
        name: &DmName,
        uuid: Option<&DmUuid>,
        number: Option<DeviceNumber>,
    ) -> Result<DeviceStatus> {
        let status = self.transact(&Request::create(name, uuid, number), |answer| answer.device())?;
        if !self.waits_for_udev()
            && let Err(error) = node::ensure(&**self.kernel(), name, status.number)
        {
            // The device has no table and no other user; return the first error.
            let _ = self.remove_held(held, name.into(), name, Some(status.number), DmFlags::empty());
            return Err(error);
        }
        Ok(status)
    }

    /// Creates a device, loads its table and resumes it; undone if any of that fails.
    ///
    /// The state before the resume is returned, with the number that the device got.
    pub fn create_active(
        &self,
        name: &DmName,
        uuid: &DmUuid,
        table: &[TargetSpec<'_>],
        flags: DmFlags,
    ) -> Result<DeviceStatus> {
        self.create_active_if(name, uuid, table, flags, || Ok(()))
    }

    /// The same if what the loaded table refers to passes `check`: from the load on it stays what it is.
    pub(crate) fn create_active_if(
        &self,
        name: &DmName,
        uuid: &DmUuid,
        table: &[TargetSpec<'_>],
        flags: DmFlags,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<DeviceStatus> {
        let held = self.exclusive(Claim::from(name).with_uuid(Some(uuid)));
        let status = self.create_held(&held, name, Some(uuid), None)?;
        let active = self
            .load_held(&held, uuid.into(), table, flags)
            .and_then(|()| check())
            .and_then(|()| self.resume_held(&held, uuid.into()))
            .and_then(|()| self.ensure_node(name, status.number));
        match active {
            Ok(_) => Ok(status),
            Err(error) => {
                // Return the first error; a device that cannot be removed is found by its uuid.
                let _ = self.remove_held(&held, uuid.into(), name, Some(status.number), DmFlags::empty());
                Err(error.of_device(name))
            }
        }
    }

    /// Renames the device and its node (`DM_DEV_RENAME`). Open file descriptors stay valid.
    ///
    /// The kernel renames by name alone: the name of a device that is addressed otherwise is asked for first. That
    /// the node cannot follow, as on a read-only `/dev`, is no error: see [`ensure_node`](Self::ensure_node).
    ///
    /// # Errors
    /// EBUSY if the new name is taken, ENXIO if there is no such device; EEXIST if something else than a block
    /// device is where the new node belongs.
    #[doc(alias = "DM_DEV_RENAME")]
    pub fn rename<'a>(&self, from: impl Into<DmId<'a>>, to: &DmName) -> Result<()> {
        let from = from.into();
        let held = self.exclusive(Claim::from(from).with_name(to));
        if let DmId::Name(name) = from {
            return self.rename_held(&held, name, to, None);
        }
        let device = self.status(from)?;
        self.rename_held(&held, &device.name, to, Some(device.number))
    }

    /// Renames a device; undone if it was not the one with `number`.
    pub(crate) fn rename_held(
        &self,
        _held: &Exclusive,
        from: &DmName,
        to: &DmName,
        number: Option<DeviceNumber>,
    ) -> Result<()> {
        if node::is_foreign(&**self.kernel(), to) {
            let source = Errno::EEXIST.into();
            return Err(Error::Io { action: "make node", path: node::path(to), source });
        }
        let rename = |from: &DmName, to: &DmName| {
            let request = Request::on(Command::DEV_RENAME, from.into()).payload(Payload::NewName(to));
            self.with_udev(request, |answer| Ok(answer.number()))
        };
        let found = rename(from, to)?;
        if let Some(expected) = number
            && expected != found
        {
            // Another process gave the name to another device in between.
            rename(to, from)?;
            return Err(Error::Replaced { device: from.to_string(), expected, found });
        }
        // The device has its new name, even if its nodes could not be changed.
        let _ = node::remove(&**self.kernel(), from, found);
        let _ = self.ensure_node(to, found);
        Ok(())
    }

    /// Gives a device that has none a uuid, which cannot be changed after. Since interface 4.19.
    ///
    /// # Errors
    /// EBUSY if another device has it, EINVAL if this one has a uuid, ENXIO if there is no such device.
    #[doc(alias("DM_DEV_RENAME", "DM_UUID_FLAG"))]
    pub fn set_uuid(&self, name: &DmName, uuid: &DmUuid) -> Result<()> {
        let request = Request::on(Command::DEV_RENAME, name.into())
            .since(19)
            .flags(DmFlags::UUID)
            .payload(Payload::NewUuid(uuid));
        let _held = self.exclusive(Claim::from(name).with_uuid(Some(uuid)));
        self.with_udev(request, |_| Ok(()))
    }

    /// Sets what HDIO_GETGEO answers; it is forgotten when the device's size changes. Since interface
    /// 4.6.
    ///
    /// # Errors
    /// EINVAL if `start` is beyond what the geometry spans.
    #[doc(alias = "DM_DEV_SET_GEOMETRY")]
    pub fn set_geometry<'a>(&self, id: impl Into<DmId<'a>>, geometry: Geometry) -> Result<()> {
        let request = Request::on(Command::DEV_SET_GEOMETRY, id.into()).payload(Payload::Geometry(geometry));
        self.transact(&request, |_| Ok(()))
    }

    /// Suspends a device: new I/O waits until [`resume`](Self::resume). A suspended one stays so.
    ///
    /// With no flag, a mounted file system is frozen and I/O on its way is finished first;
    /// [`DmFlags::SKIP_LOCKFS`] and [`DmFlags::NOFLUSH`] leave that out. Other flags are ignored. A
    /// signal that interrupts the wait does not end it.
    #[doc(alias = "DM_DEV_SUSPEND")]
    pub fn suspend<'a>(&self, id: impl Into<DmId<'a>>, flags: DmFlags) -> Result<DeviceStatus> {
        let id = id.into();
        let held = self.exclusive(id);
        self.suspend_held(&held, id, flags)
    }

    pub(crate) fn suspend_held(
        &self,
        _held: &Exclusive,
        id: DmId<'_>,
        flags: DmFlags,
    ) -> Result<DeviceStatus> {
        let flags = flags & (DmFlags::SKIP_LOCKFS | DmFlags::NOFLUSH) | DmFlags::SUSPEND;
        let request = Request::on(Command::DEV_SUSPEND, id).flags(flags);
        loop {
            match self.transact(&request, |answer| answer.device()) {
                Err(error) if error.errno() == Some(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Resumes a device; an inactive table becomes the live one. A resume that swaps tables suspends first; a
    /// signal that interrupts that does not end it.
    ///
    /// # Errors
    /// If the table cannot be put to use it is dropped.
    #[doc(alias = "DM_DEV_SUSPEND")]
    pub fn resume<'a>(&self, id: impl Into<DmId<'a>>) -> Result<()> {
        let id = id.into();
        let held = self.exclusive(id);
        self.resume_held(&held, id)
    }

    pub(crate) fn resume_held(&self, _held: &Exclusive, id: DmId<'_>) -> Result<()> {
        let request = Request::on(Command::DEV_SUSPEND, id);
        loop {
            // The kernel keeps the inactive table when its suspend is interrupted.
            match self.with_udev(request, |_| Ok(())) {
                Err(error) if error.errno() == Some(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// The state of a device.
    ///
    /// # Errors
    /// ENXIO if it does not exist ([`Error::is_not_found`]).
    #[doc(alias = "DM_DEV_STATUS")]
    pub fn status<'a>(&self, id: impl Into<DmId<'a>>) -> Result<DeviceStatus> {
        self.transact(&Request::on(Command::DEV_STATUS, id.into()), |answer| answer.device())
    }

    /// The state of a device, or `None` if it does not exist.
    pub fn find<'a>(&self, id: impl Into<DmId<'a>>) -> Result<Option<DeviceStatus>> {
        match self.status(id) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until a device's event number is another than `seen`, which a [`DeviceStatus`] or an earlier
    /// wait told: it returns at once if that has happened already, so that no event is missed. What
    /// the targets say then comes with it.
    ///
    /// [`DmFlags::NOFLUSH`] keeps a thin pool from committing for that, other flags are ignored.
    ///
    /// # Errors
    /// EINTR if a signal with a handler came; ENXIO if the device does not exist.
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

    /// Arms the control file: [`AsFd`](std::os::fd::AsFd) then polls readable once a device was created,
    /// removed, renamed, suspended or resumed, or had an event, and stays so until armed again. Since
    /// interface 4.37.
    ///
    /// There is one state for each open file: two users of the same [`DeviceMapper`] would take each
    /// other's events. [`events`](Self::events) opens its own.
    #[doc(alias = "DM_DEV_ARM_POLL")]
    pub fn arm_poll(&self) -> Result<()> {
        self.transact(&Request::new(Command::DEV_ARM_POLL), |_| Ok(()))
    }

    /// Lets a multipath device test the paths that it does not use now, and wait for the outcome. Since
    /// interface 4.50.
    ///
    /// # Errors
    /// ENOTTY if it is no multipath device.
    #[doc(alias = "DM_MPATH_PROBE_PATHS")]
    pub fn probe_paths(&self, name: &DmName) -> Result<()> {
        let ioctl = DM_MPATH_PROBE_PATHS;
        self.needs(ioctl, 50)?;
        let path = self.ensure_node(name, self.status(name)?.number)?;
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

    /// Ensures that `/dev/mapper/<name>` exists and carries `number`.
    ///
    /// # Errors
    /// EEXIST if something else than a block device is there.
    pub fn ensure_node(&self, name: &DmName, number: DeviceNumber) -> Result<PathBuf> {
        node::ensure(&**self.kernel(), name, number)
    }
}
