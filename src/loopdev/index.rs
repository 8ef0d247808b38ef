//! Which loop device.

use std::fmt;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::abi::Ioctl;
use crate::kernel::IoctlError;
use crate::loopdev::Error;

/// N of `/dev/loopN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoopIndex(pub u32);

impl fmt::Display for LoopIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) fn device_path(index: LoopIndex) -> PathBuf {
    format!("/dev/loop{index}").into()
}

#[cold]
pub(super) fn refused(request: Ioctl, device: impl std::fmt::Display, errno: Errno) -> Error {
    let error = IoctlError { ioctl: request.name(), device: device.to_string(), detail: None, errno };
    Error::Ioctl(Box::new(error))
}
