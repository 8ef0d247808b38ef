//! udev, which is never late: nodes follow the devices, and a cookie is counted down as soon as its event is there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::cookie::Counter;
use super::number::{DM_MAJOR, dm_number};
use super::world::World;
use crate::kernel::{DeviceNumber, Semaphore};

/// The upper half of the keys of cookies.
const COOKIE_MAGIC: u32 = 0x0d4d;

impl World {
    pub(super) fn create_semaphore(&mut self, key: u32) -> Result<Semaphore, Errno> {
        if self.semaphores.values().any(|counter| counter.key == key) {
            return Err(Errno::EEXIST);
        }
        self.next_semaphore += 1;
        let semaphore = Semaphore::of_id(self.next_semaphore);
        self.semaphores.insert(semaphore, Counter { key, is_zero: false, abandoned: false });
        Ok(semaphore)
    }

    pub(super) fn is_semaphore_zero(&self, semaphore: Semaphore) -> Result<bool, Errno> {
        self.semaphores.get(&semaphore).map(|counter| counter.is_zero).ok_or(Errno::EINVAL)
    }

    pub(super) fn remove_semaphore(&mut self, semaphore: Semaphore) -> Result<(), Errno> {
        self.semaphores.remove(&semaphore).map(drop).ok_or(Errno::EINVAL)
    }

    pub(super) fn abandoned_semaphores(&self, key: u16) -> Vec<Semaphore> {
        let abandoned = self
            .semaphores
            .iter()
            .filter(|(_, counter)| counter.abandoned && counter.key >> 16 == u32::from(key));
        abandoned.map(|(&semaphore, _)| semaphore).collect()
    }

    /// An event with this cookie.
    pub(super) fn uevent(&mut self, cookie: u32) {
        let key = COOKIE_MAGIC << 16 | cookie & 0xffff;
        if self.options.udev
            && let Some(counter) = self.semaphores.values_mut().find(|counter| counter.key == key)
        {
            counter.is_zero = true;
        }
    }

    /// The nodes of mapped devices become what the devices are.
    pub(super) fn run_udev(&mut self) {
        if !self.options.udev {
            return;
        }
        let shown = self.devices.iter().filter(|(_, device)| device.has_disk);
        let shown: Vec<(PathBuf, DeviceNumber)> =
            shown.map(|(&minor, device)| (node(&device.name), dm_number(minor))).collect();
        self.nodes.retain(|path, number| {
            let is_its = |(node, device): &(PathBuf, _)| node == path && device == number;
            number.major != DM_MAJOR || shown.iter().any(is_its)
        });
        self.nodes.extend(shown);
    }
}

fn node(name: &[u8]) -> PathBuf {
    Path::new("/dev/mapper").join(OsStr::from_bytes(name))
}
