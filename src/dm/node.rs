//! Nodes under `/dev/mapper`: judged by the number they carry, created where udev does not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::DmName;
use crate::dm::{Error, Result};
use crate::kernel::{DeviceNumber, Kernel};

/// Where a device of that name is found.
pub(super) fn path(name: &DmName) -> PathBuf {
    Path::new("/dev/mapper").join(OsStr::from_bytes(name.as_bytes()))
}

/// Ensures that the node is there and carries `number`. A stale node is replaced; what is no block device is not.
pub(super) fn ensure(kernel: &dyn Kernel, name: &DmName, number: DeviceNumber) -> Result<PathBuf> {
    let path = path(name);
    if name.is_reserved() {
        let reason = "reserved: it can have no node";
        return Err(Error::InvalidName { what: "device name", value: name.to_string(), reason });
    }
    // Twice: udev may make the node between the look and the mknod.
    for _ in 0..2 {
        match kernel.block_device(&path) {
            Ok(found) if found == number => return Ok(path),
            Ok(_) => unlink(kernel, &path)?,
            Err(_) => {}
        }
        match kernel.make_node(&path, number) {
            Ok(()) => return Ok(path),
            // A link that leads nowhere.
            Err(Errno::EEXIST) if kernel.block_device(&path) == Err(Errno::ENOENT) => unlink(kernel, &path)?,
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::Io { action: "make node", path, source: errno.into() }),
        }
    }
    match kernel.block_device(&path) {
        Ok(found) if found == number => Ok(path),
        _ => Err(Error::Io { action: "make node", path, source: Errno::EEXIST.into() }),
    }
}

/// The number that the node carries, if it is a block device's.
pub(super) fn number(kernel: &dyn Kernel, name: &DmName) -> Result<Option<DeviceNumber>> {
    let path = path(name);
    match kernel.block_device(&path) {
        Ok(_) if name.is_reserved() => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(Errno::ENOENT | Errno::ENOTBLK) => Ok(None),
        Err(errno) => Err(Error::Io { action: "look at node", path, source: errno.into() }),
    }
}

/// Whether something is there that is no block device: nothing for this crate to touch.
pub(super) fn is_foreign(kernel: &dyn Kernel, name: &DmName) -> bool {
    kernel.block_device(&path(name)) == Err(Errno::ENOTBLK)
}

/// Removes the node if it still carries `number`.
pub(super) fn remove(kernel: &dyn Kernel, name: &DmName, number: DeviceNumber) -> Result<()> {
    match self::number(kernel, name)? {
        Some(found) if found == number => unlink(kernel, &path(name)),
        _ => Ok(()),
    }
}

fn unlink(kernel: &dyn Kernel, path: &Path) -> Result<()> {
    match kernel.remove_node(path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::Io { action: "remove node", path: path.into(), source: errno.into() }),
    }
}
