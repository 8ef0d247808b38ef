//! One loop device.

use std::ffi::OsStr;
use std::fs::File; // open ones, which `kernel::Files` or a caller gives out
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::index::{LoopIndex, device_path, refused};
use crate::abi::Ioctl;
use crate::abi::block::{BLKFLSBUF, BLKGETSIZE64};
use crate::abi::loopdev::{
    LO_NAME_SIZE, LOOP_CHANGE_FD, LOOP_CLR_FD, LOOP_GET_STATUS, LOOP_GET_STATUS64, LOOP_SET_BLOCK_SIZE,
    LOOP_SET_CAPACITY, LOOP_SET_DIRECT_IO, LOOP_SET_STATUS, LOOP_SET_STATUS64, LoopFlags, loop_info,
    loop_info64,
};
use crate::kernel::{Arg, DeviceFile, DeviceNumber, FileLock, Kernel};
use crate::loopdev::{Error, Result};
use crate::retry::Retry;
use crate::units::Bytes;

/// LOOP_SET_STATUS64 says EAGAIN on kernels 5.0 to 5.7 while the page cache is dirty.
const STATUS_TRIES: u32 = 64;

/// What a loop device is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
    /// What the program that bound it called the file; at most 63 bytes of that.
    pub file_name: PathBuf,
}

/// An open loop device. Dropping it closes it: if it is autoclear and nobody else has it open, it is
/// unbound by that.
#[derive(Debug)]
pub struct LoopDevice {
    kernel: Arc<dyn Kernel>,
    file: DeviceFile,
    index: LoopIndex,
}

impl AsFd for LoopDevice {
    /// The open device.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl LoopDevice {
    pub(super) fn new(kernel: Arc<dyn Kernel>, file: DeviceFile, index: LoopIndex) -> Self {
        Self { kernel, file, index }
    }

    /// N of `/dev/loopN`.
    pub fn index(&self) -> LoopIndex {
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
            file_name: file_name(&info.lo_file_name),
        })
    }

    /// Changes offset, size limit and file name, and of the flags AUTOCLEAR and PARTSCAN, of which the
    /// latter cannot be taken back; the rest of `status` does not count.
    ///
    /// # Errors
    /// ENXIO if it is free; EBUSY while another process has it exclusively (since 6.17).
    #[doc(alias = "LOOP_SET_STATUS64")]
    pub fn set_status(&self, status: &LoopStatus) -> Result<()> {
        let mut info = loop_info64::zeroed();
        info.lo_offset = status.offset.0;
        info.lo_sizelimit = status.size_limit.unwrap_or_default().0;
        info.lo_flags = status.flags.bits();
        info.lo_file_name = label(&status.file_name);
        self.set_info(LOOP_SET_STATUS64, info.as_mut_bytes())
    }

    /// What it is bound to, in the old form, which has no size limit (`None`, whatever it is) and narrow
    /// numbers: [`status`](Self::status) says it all.
    ///
    /// # Errors
    /// ENXIO if it is free; EOVERFLOW for an offset of 2 GiB or more, and, depending on the architecture,
    /// for an inode or a device number that does not fit.
    #[doc(alias = "LOOP_GET_STATUS")]
    pub fn status_old(&self) -> Result<LoopStatus> {
        let mut info = loop_info::zeroed();
        self.ioctl(LOOP_GET_STATUS, Arg::Bytes(info.as_mut_bytes()))?;
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        Ok(LoopStatus {
            backing_device: DeviceNumber::from_huge(info.lo_device.into()),
            backing_inode: info.lo_inode.into(),
            // Never negative: that is EOVERFLOW.
            offset: Bytes(info.lo_offset.cast_unsigned().into()),
            size_limit: None,
            flags: LoopFlags::from_bits_retain(info.lo_flags.cast_unsigned()),
            file_name: file_name(&info.lo_name),
        })
    }

    /// Changes what [`set_status`](Self::set_status) does, and drops the size limit, in the old form, which
    /// only a kernel before 2.6 would need.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a size limit, which the kernel would drop, and for an offset of 2 GiB
    /// or more, which it would cut; ENXIO if it is free.
    #[doc(alias = "LOOP_SET_STATUS")]
    pub fn set_status_old(&self, status: &LoopStatus) -> Result<()> {
        let does_not_fit =
            |option, value: Bytes, reason| Error::InvalidOption { option, value: value.to_string(), reason };
        if let Some(limit) = status.size_limit {
            let reason = "LOOP_SET_STATUS has none; LOOP_SET_STATUS64 does";
            return Err(does_not_fit("loop size limit", limit, reason));
        }
        let mut info = loop_info::zeroed();
        info.lo_offset = i32::try_from(status.offset.0).map_err(|_| {
            let reason = "too large for LOOP_SET_STATUS; LOOP_SET_STATUS64 takes it";
            does_not_fit("loop offset", status.offset, reason)
        })?;
        info.lo_flags = status.flags.bits().cast_signed();
        info.lo_name = label(&status.file_name);
        self.set_info(LOOP_SET_STATUS, info.as_mut_bytes())
    }

    pub(super) fn set_info(&self, request: Ioctl, info: &mut [u8]) -> Result<()> {
        self.set(request, || self.raw_ioctl(request, Arg::Bytes(info)))
    }

    /// Tries again while the page cache of the device is in use (EAGAIN): udev looks at a device that was just bound.
    fn set(&self, request: Ioctl, mut attempt: impl FnMut() -> Result<u32, Errno>) -> Result<()> {
        let mut retry = Retry::unlimited();
        let mut attempts = 1..STATUS_TRIES;
        loop {
            match attempt() {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) if attempts.next().is_some() => drop(retry.pause()),
                Err(errno) => return Err(refused(request, self.path().display(), errno)),
            }
        }
    }

    /// Exchanges the file under a device, in use or not, for another one of the same size. The name that
    /// [`status`](Self::status) returns is not changed.
    ///
    /// # Errors
    /// EINVAL if the device is not read-only, or the size differs; ENXIO if it is free.
    #[doc(alias = "LOOP_CHANGE_FD")]
    pub fn change_file(&self, file: &File) -> Result<()> {
        self.ioctl(LOOP_CHANGE_FD, Arg::Fd(file.as_fd())).map(drop)
    }

    /// The size of the device.
    #[doc(alias = "BLKGETSIZE64")]
    pub fn size(&self) -> Result<Bytes> {
        let mut size = 0u64;
        self.ioctl(BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes()))?;
        Ok(Bytes(size))
    }

    /// Adopts the size of the backing file after it grew (`LOOP_SET_CAPACITY`).
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

    /// Sets the logical block size in bytes: 512 to the page size, a power of two.
    #[doc(alias = "LOOP_SET_BLOCK_SIZE")]
    pub fn set_block_size(&self, size: Bytes) -> Result<()> {
        let value = i32::try_from(size.0).map_err(|_| Error::InvalidOption {
            option: "loop block size",
            value: size.to_string(),
            reason: "too large",
        })?;
        self.set(LOOP_SET_BLOCK_SIZE, || self.raw_ioctl(LOOP_SET_BLOCK_SIZE, Arg::Value(value)))
    }

    /// Keeps others that lock it out, until the lock is dropped.
    pub(crate) fn lock(&self) -> Result<FileLock> {
        self.kernel.lock_device(&self.file).map_err(|errno| Error::io("lock", self.path())(errno))
    }

    /// Unbinds it, after writing out what its own page cache holds: the kernel drops that. While somebody
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

/// A path as a loop device's label: cut where the kernel would cut it.
pub(super) fn label(path: &Path) -> [u8; LO_NAME_SIZE] {
    let mut label = [0; LO_NAME_SIZE];
    let path = path.as_os_str().as_bytes();
    let path = &path[..path.len().min(LO_NAME_SIZE - 1)];
    label[..path.len()].copy_from_slice(path);
    label
}

fn file_name(label: &[u8; LO_NAME_SIZE]) -> PathBuf {
    let end = label.iter().position(|&byte| byte == 0).unwrap_or(LO_NAME_SIZE);
    OsStr::from_bytes(&label[..end]).into()
}
