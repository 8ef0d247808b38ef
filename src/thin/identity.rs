//! What a device was when a handle to it was made: names and numbers are given to others, a uuid is not.

use nix::errno::Errno;

use crate::dm::{
    Claim, DeviceMapper, DeviceStatus, DmFlags, DmId, DmName, DmUuid, Error, Exclusive, Removal, Result,
};
use crate::kernel::DeviceNumber;

/// A device, as it was when its handle was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    /// What it was called then; another process may have renamed it.
    pub(super) name: DmName,
    pub(super) uuid: Option<DmUuid>,
    pub(super) number: DeviceNumber,
}

impl From<&DeviceStatus> for Identity {
    fn from(status: &DeviceStatus) -> Self {
        Self { name: status.name, uuid: status.uuid, number: status.number }
    }
}

impl Identity {
    /// How a request addresses the device: by its uuid. A device without one is addressed by name, after its
    /// number was compared, which costs a DEV_STATUS.
    pub(super) fn id(&self, dm: &DeviceMapper) -> Result<DmId<'_>> {
        match &self.uuid {
            Some(uuid) => Ok(uuid.into()),
            None => {
                let found = dm.status(&self.name)?;
                self.compare(&found)?;
                Ok((&self.name).into())
            }
        }
    }

    /// The id by which suspensions are counted.
    fn key(&self) -> DmId<'_> {
        self.uuid.as_ref().map_or(DmId::Number(self.number), DmId::Uuid)
    }

    fn compare(&self, found: &DeviceStatus) -> Result<()> {
        if found.number == self.number && found.uuid == self.uuid {
            return Ok(());
        }
        let (device, expected) = (self.name.to_string(), self.number);
        Err(Error::Replaced { device, expected, found: found.number })
    }

    /// A text of the kernel's sysfs about the device that has the number now. That costs no ioctl.
    fn attribute(&self, dm: &DeviceMapper, attribute: &str) -> Option<Vec<u8>> {
        dm.kernel().block_attribute(&format!("dm-{}", self.number.minor), attribute).ok()
    }

    /// Whether sysfs says that the device still has its number; if not, the kernel has to be asked.
    fn has_its_number(&self, dm: &DeviceMapper) -> bool {
        let uuid = self.uuid.as_ref().map(DmUuid::as_bytes);
        uuid.is_some() && self.attribute(dm, "dm/uuid").as_deref() == uuid
    }

    /// Checks that the device still has its number. Where sysfs can be read, that costs no ioctl.
    pub(super) fn check_number(&self, dm: &DeviceMapper) -> Result<()> {
        if self.has_its_number(dm) {
            return Ok(());
        }
        let found = dm.status(self.key()).map_err(|error| self.named(error))?;
        self.compare(&found)
    }

    /// Renames the device, whatever it is called now.
    pub(super) fn rename(&mut self, dm: &DeviceMapper, to: &DmName) -> Result<()> {
        let held = dm.exclusive(Claim::from(self.key()).with_name(&self.name).with_name(to));
        let name = self.attribute(dm, "dm/name").and_then(|name| DmName::from_bytes(&name).ok());
        let known = name.filter(|_| self.has_its_number(dm)).map(|name| (name, self.number));
        let (name, number) = match known {
            Some(known) => known,
            None => {
                let found = dm.status(self.id(dm)?).map_err(|error| self.named(error))?;
                (found.name, found.number)
            }
        };
        dm.rename_held(&held, &name, to, Some(number)).map_err(|error| self.named(error))?;
        self.name = *to;
        Ok(())
    }

    /// Whether it is the same device.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.uuid, self.number) == (other.uuid, other.number)
    }

    /// An error that names the device by its name, however the request addressed it.
    pub(super) fn named(&self, error: Error) -> Error {
        error.of_device(&self.name)
    }

    /// Keeps other operations on the device away, in this process.
    pub(super) fn exclusive(&self, dm: &DeviceMapper) -> Exclusive {
        dm.exclusive(Claim::from(self.key()).with_name(&self.name))
    }

    /// Removes the device and its node.
    pub(super) fn remove(&self, dm: &DeviceMapper, flags: DmFlags) -> Result<Removal> {
        let held = self.exclusive(dm);
        let removed =
            self.id(dm).and_then(|id| dm.remove_held(&held, id, &self.name, Some(self.number), flags));
        removed.map_err(|error| self.named(error))
    }

    /// Suspends the device, or counts one more suspension if this process has suspended it already.
    pub(super) fn suspend(&self, dm: &DeviceMapper, flags: DmFlags) -> Result<()> {
        let held = self.exclusive(dm);
        let suspended = self.id(dm).and_then(|id| dm.suspend_held(&held, id, flags));
        suspended.map_err(|error| self.named(error))?;
        held.suspended(self.key());
        Ok(())
    }

    /// Takes back one [`suspend`](Self::suspend); the last one resumes the device.
    pub(super) fn resume(&self, dm: &DeviceMapper) -> Result<()> {
        let held = self.exclusive(dm);
        if !held.released(self.key()) {
            return Ok(());
        }
        let resumed = self.id(dm).and_then(|id| dm.resume_held(&held, id));
        resumed.map_err(|error| self.named(error))
    }

    /// Refuses while a [`SuspendedVolume`](crate::thin::SuspendedVolume) of this process keeps the device suspended.
    pub(super) fn check_not_suspended(&self, held: &Exclusive) -> Result<()> {
        if held.suspensions(self.key()) == 0 {
            return Ok(());
        }
        Err(Error::Ioctl(Box::new(crate::kernel::IoctlError {
            ioctl: crate::abi::dm::DM_TABLE_LOAD.name(),
            device: self.name.to_string(),
            detail: Some("suspended for a snapshot".to_owned()),
            errno: Errno::EBUSY,
        })))
    }
}
