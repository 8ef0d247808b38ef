//! A tree is one manager's in the whole system, however many roots hold a copy of its state.
//!
//! The claim is a device with the tree's uuid, one sector of `error` target, opened O_EXCL: device mapper knows each
//! uuid once, and the exclusive open ends with its process. So a device that is not open is a dead manager's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use crate::dm::targets::{ErrorTarget, Target};
use crate::dm::{DeviceMapper, DeviceStatus, DmFlags, DmName, DmUuid};
use crate::kernel::{Access, DeviceFile, Process};
use crate::retry::Retry;
use crate::tree::error::busy;
use crate::tree::holders::{self, holder::Holder};
use crate::tree::names::{LOCK, Names};
use crate::tree::{Error, Result};
use crate::units::Sectors;

/// For what another manager is about to finish.
const PATIENCE: Duration = Duration::from_secs(1);

/// The claim of this process. Dropped, it is released.
#[derive(Debug)]
pub(in crate::tree) struct Claim {
    dm: Arc<DeviceMapper>,
    name: DmName,
    uuid: DmUuid,
    file: Option<DeviceFile>,
    released: bool,
    owner: Process,
}

impl Claim {
    /// # Errors
    /// [`Error::Locked`] if another manager of this root has it, [`Error::OtherRoot`] if one of another root has.
    pub(in crate::tree) fn take(dm: &Arc<DeviceMapper>, names: &Names, root: &Path) -> Result<Self> {
        let (name, uuid) = (names.name(LOCK)?, names.lock_uuid()?);
        // Another manager may be making it, or going, just now.
        let mut retry = Retry::within(PATIENCE);
        loop {
            let found = match create(dm, &name, &uuid) {
                Ok(status) => Some((status, true)),
                Err(error) if error.is_busy() => {
                    dm.find(&uuid)?.map(|status| (status, status.has_live_table()))
                }
                Err(error) => {
                    if let Ok(Some(left)) = dm.find(&uuid)
                        && left.name == name
                    {
                        // Best effort: return the original error. Of this root's devices no other manager makes one.
                        let _ = dm.remove(&uuid);
                    }
                    return Err(error);
                }
            };
            match found {
                Some((status, true)) => match open(dm, &status) {
                    Ok(file) => {
                        let (dm, name, owner) = (dm.clone(), status.name, Process::current());
                        return Ok(Self { dm, name, uuid, file: Some(file), released: false, owner });
                    }
                    // Gone meanwhile.
                    Err(error) if error.is_not_found() && !retry.is_over() => {}
                    Err(error) => {
                        // Best effort: return the original error. One that is open stays.
                        let _ = dm.remove(&uuid);
                        return Err(if error.is_busy() { taken(dm, names, root, &status) } else { error });
                    }
                },
                // Its maker died before it had a table. Of this root's there is none but this one.
                Some((status, false)) if status.name == name || retry.is_over() => {
                    dm.remove(&uuid)?;
                    continue;
                }
                Some(_) => {}
                None if retry.is_over() => {
                    return Err(busy(&name, 0));
                }
                None => {}
            }
            retry.pause();
        }
    }
}

/// Another manager has it; the device's name contains its root's device and inode numbers.
fn taken(dm: &DeviceMapper, names: &Names, root: &Path, claim: &DeviceStatus) -> Error {
    let path = root.to_owned();
    if !names.is_of_root(&claim.name, LOCK) {
        return Error::OtherRoot { path, device: claim.name.to_string() };
    }
    let holder =
        holders::of_device(&**dm.kernel(), claim.number).into_iter().find_map(|holder| match holder {
            Holder::Process(process) => Some(process),
            _ => None,
        });
    Error::Locked { path, holder }
}

fn create(dm: &DeviceMapper, name: &DmName, uuid: &DmUuid) -> Result<DeviceStatus> {
    let line = ErrorTarget.over(Sectors(0), Sectors(1));
    Ok(dm.create_active(name, uuid, &[line], DmFlags::empty())?)
}

fn open(dm: &DeviceMapper, status: &DeviceStatus) -> Result<DeviceFile> {
    let path = dm.ensure_node(&status.name, status.number)?;
    let opened = dm.kernel().open(&path, Access::READ.exclusive());
    let file = opened.map_err(|errno| Error::Open { path: path.clone(), errno })?;
    // The node may have become another device's.
    if file.number() == status.number { Ok(file) } else { Err(Error::Open { path, errno: Errno::ENXIO }) }
}

impl Claim {
    /// Gives the tree up: the device is gone, or another manager's. After an error this can be tried again.
    pub(in crate::tree) fn release(&mut self) -> Result<()> {
        if self.released {
            return Ok(());
        }
        self.file = None;
        if let Err(error) = self.dm.remove(&self.uuid) {
            match self.dm.find(&self.uuid)? {
                None => self.dm.remove_node(&self.name)?,
                Some(status) => match open(&self.dm, &status) {
                    // The next manager has it.
                    Err(Error::Open { errno: Errno::EBUSY, .. }) if status.open_count > 0 => {}
                    reopened => {
                        self.file = reopened.ok();
                        return Err(error.into());
                    }
                },
            }
        }
        self.released = true;
        Ok(())
    }

    pub(in crate::tree) fn name(&self) -> &DmName {
        &self.name
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.owner.is_current() {
            // A child of fork: the claim is its parent's.
            std::mem::forget(self.file.take());
            return;
        }
        // The next manager takes over a device that stays.
        let _ = self.release();
    }
}
