//! Nodes under `/dev/mapper`: judged by the number they carry, made when nobody else does.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::DmName;
use crate::kernel::{DeviceNumber, Kernel};
use crate::{Error, Result};

/// Where a device of that name is found.
pub(super) fn path(name: &DmName) -> PathBuf {
    Path::new("/dev/mapper").join(OsStr::from_bytes(name.as_bytes()))
}

/// See to it that the node is there and means `number`.
pub(super) fn ensure(kernel: &dyn Kernel, name: &DmName, number: DeviceNumber) -> Result<PathBuf> {
    let path = path(name);
    if name.is_reserved() {
        let reason = "reserved: it can have no node";
        return Err(Error::InvalidName { what: "device name", value: name.to_string(), reason });
    }
    // Twice: udev may make the node between the look and the mknod.
    for _ in 0..2 {
        if kernel.block_device(&path) == Ok(number) {
            return Ok(path);
        }
        // Absent, dangling, or left over from an earlier device.
        remove(kernel, name)?;
        match kernel.make_node(&path, number) {
            Ok(()) => return Ok(path),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::Io { action: "make node", path, source: errno.into() }),
        }
    }
    Err(Error::Io { action: "make node", path, source: Errno::EEXIST.into() })
}

/// See to it that there is none. What a reserved name stands for is not the device's.
pub(super) fn remove(kernel: &dyn Kernel, name: &DmName) -> Result<()> {
    if name.is_reserved() {
        return Ok(());
    }
    let path = path(name);
    match kernel.remove_node(&path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::Io { action: "remove node", path, source: errno.into() }),
    }
}
