//! What the errors of the floors above are made of. The seam itself answers bare errnos.

use std::fmt;

use nix::errno::Errno;

/// An ioctl that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoctlError {
    /// The kernel's name of the ioctl.
    pub ioctl: &'static str,
    /// The device or file that it was about.
    pub device: String,
    /// What was asked in particular: the message, the table line.
    pub detail: Option<String>,
    /// The kernel's answer.
    pub errno: Errno,
}

impl fmt::Display for IoctlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.ioctl, self.device)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        write!(f, ": {}", self.errno)
    }
}

impl std::error::Error for IoctlError {}

/// A mount or unmount that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountError {
    /// The whole call: what on what, the file system, the flags.
    pub call: String,
    /// The kernel's answer.
    pub errno: Errno,
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.errno.desc())
    }
}

impl std::error::Error for MountError {}

pub(super) fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Whether an open failed for lack of privilege.
pub(crate) fn is_permission(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM)
}

/// What an error says about the thing that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Busy,
    NotFound,
    Exists,
    OutOfSpace,
}

impl Condition {
    pub(crate) fn of(errno: Errno) -> Option<Self> {
        match errno {
            Errno::EBUSY => Some(Self::Busy),
            // Of device mapper, of a thin pool, of a driver, of a file system.
            Errno::ENXIO | Errno::ENODATA | Errno::ENODEV | Errno::ENOENT => Some(Self::NotFound),
            Errno::EEXIST => Some(Self::Exists),
            Errno::ENOSPC | Errno::EDQUOT => Some(Self::OutOfSpace),
            _ => None,
        }
    }
}

/// What the errors of all floors have in common: a variant `Io`, and what they answer out of their `condition()`.
macro_rules! floor_error {
    ($error:ty) => {
        impl $error {
            pub(crate) fn io<E: Into<std::io::Error>>(
                action: &'static str,
                path: impl Into<std::path::PathBuf>,
            ) -> impl FnOnce(E) -> Self {
                let path = path.into();
                move |source| Self::Io { action, path, source: source.into() }
            }

            /// It is in use: EBUSY.
            pub fn is_busy(&self) -> bool {
                self.condition() == Some($crate::kernel::Condition::Busy)
            }

            /// It does not exist: ENXIO from device mapper, ENODATA from a thin pool, ENOENT from a file system.
            pub fn is_not_found(&self) -> bool {
                self.condition() == Some($crate::kernel::Condition::NotFound)
            }

            /// It exists already: EEXIST.
            pub fn is_exists(&self) -> bool {
                self.condition() == Some($crate::kernel::Condition::Exists)
            }

            /// No space, in a pool or on the disk under it.
            pub fn is_out_of_space(&self) -> bool {
                self.condition() == Some($crate::kernel::Condition::OutOfSpace)
            }
        }
    };
}
pub(crate) use floor_error;
