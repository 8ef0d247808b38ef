//! The errors of loop devices.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::kernel::{Condition, DeviceNumber, IoctlError, floor_error};

/// A [`Result`](std::result::Result) with this floor's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a loop device.
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

    /// The kernel has no loop devices.
    // The path is for people.
    #[error("no loop devices: neither /dev/loop-control nor /sys/block/loop*; load the module loop")]
    NoLoopDevices,

    /// Every loop device is taken.
    #[error("no free loop device: {tried} tried")]
    NoFreeLoopDevice {
        /// How many were tried.
        tried: u32,
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
    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Ioctl(error) => Some(error.errno),
            Self::Open { errno, .. } => Some(*errno),
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
