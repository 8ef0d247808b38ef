//! One loop device.

use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::control::{device_path, refused};
use crate::abi::Ioctl;
use crate::abi::block::{BLKFLSBUF, BLKGETSIZE64};
use crate::abi::loopdev::{
    LOOP_CLR_FD, LOOP_GET_STATUS64, LOOP_SET_BLOCK_SIZE, LOOP_SET_CAPACITY, LOOP_SET_DIRECT_IO, LoopFlags,
    loop_info64,
};
use crate::kernel::{Arg, DeviceFile, DeviceNumber, Kernel};
use crate::units::Bytes;
use crate::{Error, Result};

/// What a loop device is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopStatus {
    /// The file system that holds the backing file.
    pub backing_device: DeviceNumber,
    /// The backing file's inode number in it.
    pub backing_inode: u64,
    /// Bytes skipped at the start of the file.
    pub offset: Bytes,
    /// Bytes used of the file; `None` for all.
    pub size_limit: Option<Bytes>,
    /// How it is bound.
    pub flags: LoopFlags,
}

/// An open loop device. Dropping it closes it: if it is autoclear and nobody else has it open, it is
/// unbound by that.
#[derive(Debug)]
pub struct LoopDevice {
    kernel: Arc<dyn Kernel>,
    file: DeviceFile,
    index: u32,
}

impl LoopDevice {
    pub(super) fn new(kernel: Arc<dyn Kernel>, file: DeviceFile, index: u32) -> Self {
        Self { kernel, file, index }
    }

    /// N of `/dev/loopN`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> PathBuf {
        device_path(self.index)
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.file.number()
    }

    /// What it is bound to.
    ///
    /// # Errors
    /// ENXIO if it is free.
    #[doc(alias = "LOOP_GET_STATUS64")]
    pub fn status(&self) -> Result<LoopStatus> {
        let mut info = loop_info64::zeroed();
        self.ioctl(LOOP_GET_STATUS64, Arg::Bytes(info.as_mut_bytes()))?;
        Ok(LoopStatus {
            backing_device: DeviceNumber::from_huge(info.lo_device),
            backing_inode: info.lo_inode,
            offset: Bytes(info.lo_offset),
            size_limit: Some(Bytes(info.lo_sizelimit)).filter(|limit| limit.0 > 0),
            flags: LoopFlags::from_bits_retain(info.lo_flags),
        })
    }

    /// The size of the device.
    #[doc(alias = "BLKGETSIZE64")]
    pub fn size(&self) -> Result<Bytes> {
        let mut size = 0u64;
        self.ioctl(BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes()))?;
        Ok(Bytes(size))
    }

    /// Take over the size of the backing file, after it grew.
    #[doc(alias = "LOOP_SET_CAPACITY")]
    pub fn set_capacity(&self) -> Result<()> {
        self.ioctl(LOOP_SET_CAPACITY, Arg::Value(0)).map(drop)
    }

    /// Bypass the page cache of the backing file, or stop doing so.
    ///
    /// # Errors
    /// EINVAL where the file system, or the block sizes, do not allow it.
    #[doc(alias = "LOOP_SET_DIRECT_IO")]
    pub fn set_direct_io(&self, on: bool) -> Result<()> {
        self.ioctl(LOOP_SET_DIRECT_IO, Arg::Value(on.into())).map(drop)
    }

    /// Set the logical block size in bytes: 512 to the page size, a power of two.
    #[doc(alias = "LOOP_SET_BLOCK_SIZE")]
    pub fn set_block_size(&self, size: Bytes) -> Result<()> {
        let value = i32::try_from(size.0).map_err(|_| Error::InvalidOption {
            option: "loop block size",
            value: size.to_string(),
            reason: "too large",
        })?;
        self.ioctl(LOOP_SET_BLOCK_SIZE, Arg::Value(value)).map(drop)
    }

    /// Unbind it, after writing out what its own page cache holds: the kernel drops that. While somebody
    /// else has it open it becomes autoclear instead.
    ///
    /// # Errors
    /// ENXIO if it is free.
    #[doc(alias = "LOOP_CLR_FD")]
    pub fn detach(self) -> Result<()> {
        self.ioctl(BLKFLSBUF, Arg::Value(0))?;
        self.ioctl(LOOP_CLR_FD, Arg::Value(0)).map(drop)
    }

    pub(super) fn ioctl(&self, request: Ioctl, argument: Arg<'_>) -> Result<u32> {
        self.raw_ioctl(request, argument).map_err(|errno| refused(request, self.path().display(), errno))
    }

    pub(super) fn raw_ioctl(&self, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        self.kernel.ioctl(&self.file, request, argument)
    }
}
