//! Binding a file to a free loop device: on any kernel, and while others do the same.
//!
//! 1. Take a free device: LOOP_CTL_GET_FREE, or a scan.
//! 2. Bind it: LOOP_CONFIGURE; on kernels before 5.8, LOOP_SET_FD and LOOP_SET_STATUS64.
//! 3. EBUSY: another process took it first, or has the free device open exclusively. One of the latter, and one that
//!    cannot be opened, is left out from then on: LOOP_CTL_GET_FREE would say it again. Wait a little, at random, and
//!    begin again, a bounded number of times.

use std::fs::File; // open ones, which `kernel::Files` or a caller gives out
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::control::TRIES;
use super::device::label;
use super::index::refused;
use super::{LoopControl, LoopDevice, LoopFlags};
use crate::abi::loopdev::{
    LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_SET_DIRECT_IO, LOOP_SET_FD, LOOP_SET_STATUS_SETTABLE_FLAGS,
    LOOP_SET_STATUS64, loop_config, loop_info64,
};
use crate::kernel::is_permission;
use crate::kernel::{Access, Arg};
use crate::loopdev::{Error, Result};
use crate::retry::Retry;
use crate::sys;
use crate::units::Bytes;

/// How a file is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AttachOptions {
    flags: LoopFlags,
    offset: Bytes,
    size_limit: Bytes,
    block_size: Bytes,
}

impl AttachOptions {
    /// The whole file, writable, through the page cache, until detached.
    pub fn new() -> Self {
        Self::default()
    }

    /// Unbinds the device when it is closed for the last time; a mapping counts as an opener.
    #[must_use]
    pub fn autoclear(mut self, on: bool) -> Self {
        self.flags.set(LoopFlags::AUTOCLEAR, on);
        self
    }

    /// Bypass the page cache, where the file system can do that; nothing happens where it cannot.
    #[must_use]
    pub fn direct_io(mut self, on: bool) -> Self {
        self.flags.set(LoopFlags::DIRECT_IO, on);
        self
    }

    /// Makes the device read-only. Needed for a file that is open for reading only.
    #[must_use]
    pub fn read_only(mut self, on: bool) -> Self {
        self.flags.set(LoopFlags::READ_ONLY, on);
        self
    }

    /// Skip this much at the start of the file: a multiple of the block size.
    #[must_use]
    pub fn offset(mut self, offset: Bytes) -> Self {
        self.offset = offset;
        self
    }

    /// Uses only this much of the file; 0 for all.
    #[must_use]
    pub fn size_limit(mut self, limit: Bytes) -> Self {
        self.size_limit = limit;
        self
    }

    /// The logical block size: 512 to the page size, a power of two; 0 for the kernel's choice.
    #[must_use]
    pub fn block_size(mut self, size: Bytes) -> Self {
        self.block_size = size;
        self
    }
}

impl LoopControl {
    /// Binds `file` to a free device. `path` is only a label that others see as the device's file.
    ///
    /// # Errors
    /// [`Error::NoLoopDevices`], [`Error::NoFreeLoopDevice`], [`Error::NotPermitted`]; EINVAL if `file` is
    /// neither a regular file nor a block device, or an option does not fit. Whatever fails, no device
    /// stays bound to the file.
    pub fn attach(&self, file: &File, path: &Path, options: &AttachOptions) -> Result<LoopDevice> {
        // The device is read-only if it was opened so, on any kernel; LOOP_SET_FD has no flag for it.
        let read_only = options.flags.contains(LoopFlags::READ_ONLY);
        let access = if read_only { Access::READ } else { Access::READ_WRITE };
        let mut unusable = Vec::new();
        let mut retry = Retry::unlimited();
        for _ in 0..TRIES {
            let index = self.find_free_except(&unusable)?;
            let device = match self.device_with_node(index, access) {
                Ok(device) => device,
                // Being torn down, removed since it was found, or its node is another device's.
                Err(
                    Error::Replaced { .. }
                    | Error::Open {
                        errno: Errno::ENXIO | Errno::ENOENT | Errno::ENODEV | Errno::EBUSY, ..
                    },
                ) => {
                    unusable.push(index);
                    retry.pause();
                    continue;
                }
                Err(Error::Open { path, errno }) if is_permission(errno) => {
                    return Err(Error::NotPermitted { what: format!("open {}", path.display()) });
                }
                Err(error) => return Err(error),
            };
            match self.bind(&device, file, path, options) {
                Ok(()) => return Ok(device),
                Err(error) if error.errno() == Some(Errno::EBUSY) => {
                    let is_free = |error: &Error| error.errno() == Some(Errno::ENXIO);
                    if device.status().is_err_and(|error| is_free(&error)) {
                        unusable.push(index);
                    }
                    retry.pause();
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::NoFreeLoopDevice { tried: TRIES })
    }

    fn bind(&self, device: &LoopDevice, file: &File, path: &Path, options: &AttachOptions) -> Result<()> {
        let mut info = loop_info64::zeroed();
        info.lo_offset = options.offset.0;
        info.lo_sizelimit = options.size_limit.0;
        info.lo_flags = options.flags.bits();
        info.lo_file_name = label(path);

        if !self.without_configure.load(Ordering::Relaxed) {
            let mut config = loop_config::new_zeroed();
            config.fd = sys::raw_fd(file.as_fd());
            config.block_size = u32::try_from(options.block_size.0).unwrap_or(u32::MAX);
            config.info = info;
            match device.raw_ioctl(LOOP_CONFIGURE, Arg::Bytes(config.as_mut_bytes())) {
                Ok(_) => return Ok(()),
                // Too old a kernel, or a bad argument: what SET_FD says decides.
                Err(Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {}
                Err(errno) => return Err(refused(LOOP_CONFIGURE, device.path().display(), errno)),
            }
        }
        bind_in_steps(device, file, info, options)?;
        self.without_configure.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Before LOOP_CONFIGURE. In between, the device shows the whole file; autoclear comes last, so that a
/// process that dies here leaves a bound device, which [`LoopControl::find`] finds.
fn bind_in_steps(device: &LoopDevice, file: &File, info: loop_info64, options: &AttachOptions) -> Result<()> {
    device.ioctl(LOOP_SET_FD, Arg::Fd(file.as_fd()))?;
    let finished = set_up(device, info, options);
    if finished.is_err() {
        // Best effort: this call bound it, so it unbinds it; return the original error.
        let _ = device.raw_ioctl(LOOP_CLR_FD, Arg::Value(0));
    }
    finished
}

fn set_up(device: &LoopDevice, mut info: loop_info64, options: &AttachOptions) -> Result<()> {
    if options.block_size.0 > 0 {
        device.set_block_size(options.block_size)?;
    }
    info.lo_flags &= LOOP_SET_STATUS_SETTABLE_FLAGS.bits();
    device.set_info(LOOP_SET_STATUS64, info.as_mut_bytes())?;
    if options.flags.contains(LoopFlags::DIRECT_IO) {
        // Where it cannot be had the page cache serves.
        let _ = device.raw_ioctl(LOOP_SET_DIRECT_IO, Arg::Value(1));
    }
    Ok(())
}
