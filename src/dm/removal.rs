//! The end of devices and of their nodes.

use super::wire::{Command, ListedDevice, Request};
use super::{Claim, DeviceMapper, DmFlags, DmId, DmName, Exclusive, node};
use crate::dm::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

/// Outcome of a removal.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Removal {
    /// The device is gone.
    Removed,
    /// It was open: the kernel removes it when it is closed for the last time.
    Deferred,
}

impl DeviceMapper {
    /// Removes a device and its node.
    ///
    /// # Errors
    /// EBUSY if it is open ([`Error::is_busy`]), ENXIO if it does not exist ([`Error::is_not_found`]).
    #[doc(alias = "DM_DEV_REMOVE")]
    pub fn remove<'a>(&self, id: impl Into<DmId<'a>>) -> Result<()> {
        self.remove_with(id.into(), DmFlags::empty()).map(drop)
    }

    /// Removes a device now if it is closed, else when it is closed for the last time.
    ///
    /// A device waiting for that can still be used, until [`cancel_deferred_remove`](Self::cancel_deferred_remove)
    /// or its end, by whoever has it open. Where udev does not run, its node goes at once: nobody would remove it
    /// later, and its number is soon another device's. Since interface 4.27.
    #[doc(alias = "DM_DEFERRED_REMOVE")]
    pub fn remove_deferred<'a>(&self, id: impl Into<DmId<'a>>) -> Result<Removal> {
        self.remove_with(id.into(), DmFlags::DEFERRED_REMOVE)
    }

    fn remove_with(&self, id: DmId<'_>, flags: DmFlags) -> Result<Removal> {
        if let DmId::Name(name) = id {
            let held = self.exclusive(id);
            // The node of a device that is there carries its number, or is stale.
            let number = node::number(&**self.kernel(), name)?;
            return self.remove_held(&held, id, name, number, flags);
        }
        // The name is claimed for the node's sake, so it has to be the same before and after.
        let mut device = self.status(id)?;
        loop {
            let held = self.exclusive(Claim::from(id).with_name(&device.name));
            let now = self.status(id)?;
            if now.name == device.name {
                return self.remove_held(&held, id, &now.name, Some(now.number), flags);
            }
            device = now;
        }
    }

    /// Removes a device, and its node if that carries `number`. `name` is what it was called when last looked at.
    pub(crate) fn remove_held(
        &self,
        _held: &Exclusive,
        id: DmId<'_>,
        name: &DmName,
        number: Option<DeviceNumber>,
        flags: DmFlags,
    ) -> Result<Removal> {
        let minor = if flags.contains(DmFlags::DEFERRED_REMOVE) { 27 } else { 0 };
        let request = Request::on(Command::DEV_REMOVE, id).flags(flags).since(minor);
        let (flags, name) = match self.with_udev(request, |answer| Ok((answer.flags(), answer.name()))) {
            Ok(answer) => answer,
            Err(error) => {
                // Gone all the same: then the node goes, too.
                if matches!(error, Error::Ioctl(_)) && !error.is_busy() {
                    self.remove_stale_node(name)?;
                }
                return Err(error);
            }
        };
        let deferred = flags.contains(DmFlags::DEFERRED_REMOVE);
        if let (Some(name), Some(number)) = (name, number)
            && !(deferred && self.waits_for_udev())
        {
            node::remove(&**self.kernel(), &name, number)?;
        }
        Ok(if deferred { Removal::Deferred } else { Removal::Removed })
    }

    /// Removes every device of the system that is not open, whoever created it; the devices left are
    /// returned. Their nodes go too.
    ///
    /// With [`DmFlags::DEFERRED_REMOVE`], which came with interface 4.27, open ones are removed when
    /// they are closed for the last time; other flags are ignored.
    #[doc(alias = "DM_REMOVE_ALL")]
    pub fn remove_all(&self, flags: DmFlags) -> Result<Vec<ListedDevice>> {
        let flags = flags & DmFlags::DEFERRED_REMOVE;
        let minor = if flags.is_empty() { 0 } else { 27 };
        let _held = self.exclusive(Claim::all());
        let before = self.list()?;
        self.transact(&Request::new(Command::REMOVE_ALL).flags(flags).since(minor), |_| Ok(()))?;
        let left = self.list()?;
        for device in before.iter().filter(|device| left.iter().all(|other| other.name != device.name)) {
            node::remove(&**self.kernel(), &device.name, device.number)?;
        }
        Ok(left)
    }

    /// Cancels a deferred removal (`@cancel_deferred_remove`). Where udev does not run, the node is made again.
    ///
    /// # Errors
    /// ENXIO if the device is gone, EBUSY if it is going right now. That none is pending is no error.
    #[doc(alias = "@cancel_deferred_remove")]
    pub fn cancel_deferred_remove<'a>(&self, id: impl Into<DmId<'a>>) -> Result<()> {
        let id = id.into();
        let _held = self.exclusive(id);
        self.message(id, Sectors(0), &"@cancel_deferred_remove")?;
        if !self.waits_for_udev() {
            let device = self.status(id)?;
            self.ensure_node(&device.name, device.number)?;
        }
        Ok(())
    }

    /// Removes the node of a device that is gone, or one that carries another number than the device of that
    /// name. What is no block device is left alone.
    pub fn remove_node(&self, name: &DmName) -> Result<()> {
        let _held = self.exclusive(name);
        self.remove_stale_node(name)
    }

    fn remove_stale_node(&self, name: &DmName) -> Result<()> {
        let Some(number) = node::number(&**self.kernel(), name)? else { return Ok(()) };
        match self.find(name)? {
            Some(device) if device.number == number => Ok(()),
            _ => node::remove(&**self.kernel(), name, number),
        }
    }
}
