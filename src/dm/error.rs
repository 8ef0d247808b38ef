//! The errors of device mapper.

use std::path::PathBuf;

use nix::errno::Errno;

use super::DmVersion;
use crate::kernel::{Condition, DeviceNumber, IoctlError, floor_error};

/// A [`Result`](std::result::Result) with this floor's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of device mapper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An ioctl failed.
    #[error(transparent)]
    Ioctl(#[from] Box<IoctlError>),

    /// A device node cannot be opened.
    #[error("open {path}: {errno}", path = path.display())]
    Open {
        /// The node.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },

    /// The caller lacks CAP_SYS_ADMIN.
    #[error("{what}: not permitted; root (CAP_SYS_ADMIN) is needed")]
    NotPermitted {
        /// What was tried.
        what: String,
    },

    /// The kernel has no device mapper, or its module is not loaded.
    #[error("no device mapper: {path}: {errno}; load the modules dm-mod and dm-thin-pool", path = path.display())]
    NoDeviceMapper {
        /// The control node that is missing.
        path: PathBuf,
        /// Why it cannot be opened.
        errno: Errno,
    },

    /// The kernel does not know a target type, and has no module for it.
    #[error("the kernel has no device-mapper target {target}; load the module {module}")]
    NoTarget {
        /// The target type.
        target: String,
        /// The module that has it.
        module: String,
    },

    /// The kernel's device-mapper interface is too old for the request.
    #[error("{ioctl} needs device-mapper interface 4.{needed}, the kernel has {kernel}")]
    TooOld {
        /// The ioctl.
        ioctl: &'static str,
        /// The minor version that it needs.
        needed: u32,
        /// The kernel's version.
        kernel: DmVersion,
    },

    /// A device is not the one that was opened: that one is gone, and its name or number is another one's.
    #[error("{device} was replaced: it is {found} now, not {expected}")]
    Replaced {
        /// The device's name.
        device: String,
        /// The number of the one that was opened.
        expected: DeviceNumber,
        /// The number that was found.
        found: DeviceNumber,
    },

    /// The kernel, or a file, said something that cannot be understood.
    #[error("malformed {what}: {raw:?}")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// What it is; cut after some hundred bytes.
        raw: String,
    },

    /// The answer outgrew every buffer that this crate is ready to give.
    #[error("the answer to {ioctl} on {device} does not fit into {capacity} bytes")]
    AnswerTooLarge {
        /// The ioctl.
        ioctl: &'static str,
        /// What it was about.
        device: String,
        /// The largest buffer given.
        capacity: usize,
    },

    /// A name that the kernel, or this crate, does not take.
    #[error("{what} {value:?}: {reason}")]
    InvalidName {
        /// The kind of name.
        what: &'static str,
        /// The name.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An invalid value.
    #[error("{option}: {value}: {reason}")]
    InvalidOption {
        /// The option or argument.
        option: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was done: `create`, `sync` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// The same error with the device's name, however the request addressed it.
    pub(crate) fn of_device(mut self, name: &dyn std::fmt::Display) -> Self {
        if let Self::Ioctl(refused) = &mut self {
            refused.device = name.to_string();
        }
        self
    }

    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Ioctl(error) => Some(error.errno),
            Self::Open { errno, .. } | Self::NoDeviceMapper { errno, .. } => Some(*errno),
            Self::NotPermitted { .. } => Some(Errno::EPERM),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    pub(crate) fn condition(&self) -> Option<Condition> {
        match self {
            Self::Replaced { .. } => Some(Condition::NotFound),
            _ => self.errno().and_then(Condition::of),
        }
    }
}

floor_error!(Error);
