//! Open devices, and how they are opened.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::DeviceNumber;
use crate::abi::DeviceKind;
use crate::sys::Device;

/// An open device of a known kind.
#[derive(Debug)]
pub struct DeviceFile(Opened);

#[derive(Debug)]
enum Opened {
    Real(Device),
    Simulated {
        fd: OwnedFd,
        kind: DeviceKind,
        number: DeviceNumber,
        /// Ends with the file. The descriptor does not show that: a child of fork has a copy of it until its exec.
        #[cfg_attr(not(feature = "model"), allow(dead_code))] // the model alone watches it
        lifetime: Arc<()>,
    },
}

impl DeviceFile {
    /// ENOTBLK if what was opened is nothing for this crate.
    pub(super) fn real(fd: OwnedFd) -> Result<Self, Errno> {
        Device::new(fd).map(|device| Self(Opened::Real(device)))
    }

    /// A device of a kernel that is not real: [`RealKernel`](super::RealKernel) refuses it.
    pub fn simulated(fd: OwnedFd, kind: DeviceKind, number: DeviceNumber) -> Self {
        Self(Opened::Simulated { fd, kind, number, lifetime: Arc::new(()) })
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        match &self.0 {
            Opened::Real(device) => device.kind(),
            Opened::Simulated { kind, .. } => *kind,
        }
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        match &self.0 {
            Opened::Real(device) => DeviceNumber::from_dev_t(device.number()),
            Opened::Simulated { number, .. } => *number,
        }
    }

    /// Whether the running kernel opened it.
    pub(crate) fn is_real(&self) -> bool {
        matches!(self.0, Opened::Real(_))
    }

    /// What ends with a simulated file.
    #[cfg(feature = "model")]
    pub(crate) fn lifetime(&self) -> std::sync::Weak<()> {
        match &self.0 {
            Opened::Real(_) => std::sync::Weak::new(),
            Opened::Simulated { lifetime, .. } => Arc::downgrade(lifetime),
        }
    }

    /// ENOTTY unless the running kernel opened it.
    pub(super) fn device(&self) -> Result<&Device, Errno> {
        match &self.0 {
            Opened::Real(device) => Ok(device),
            Opened::Simulated { .. } => Err(Errno::ENOTTY),
        }
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Opened::Real(device) => device.as_fd(),
            Opened::Simulated { fd, .. } => fd.as_fd(),
        }
    }
}

impl AsRawFd for DeviceFile {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// How a device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    write: bool,
    direct: bool,
    exclusive: bool,
}

impl Access {
    /// O_RDONLY.
    pub const READ: Self = Self { write: false, direct: false, exclusive: false };
    /// O_RDWR.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };

    /// Also O_DIRECT: reads and writes pass by the page cache. Offsets, lengths and buffers are whole
    /// [`AlignedBlock`]s.
    #[must_use]
    pub const fn direct(self) -> Self {
        Self { direct: true, ..self }
    }

    /// Also O_EXCL: claims the block device, EBUSY if a table, a mount or another exclusive opener has it.
    #[must_use]
    pub const fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }

    /// Whether it is opened for writing.
    pub const fn is_write(self) -> bool {
        self.write
    }

    /// Whether it is opened with O_DIRECT.
    pub const fn is_direct(self) -> bool {
        self.direct
    }

    /// Whether it is opened with O_EXCL.
    pub const fn is_exclusive(self) -> bool {
        self.exclusive
    }
}

/// A buffer that O_DIRECT accepts: 4 KiB, aligned to 4 KiB.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct AlignedBlock(pub [u8; 4096]);

impl AlignedBlock {
    /// `count` blocks of zeroes.
    pub fn zeroed(count: usize) -> Vec<Self> {
        vec![Self([0; 4096]); count]
    }
}

impl fmt::Debug for AlignedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AlignedBlock")
    }
}
