//! What a loop device is bound to.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use nix::errno::Errno;

use crate::abi::loopdev::{LO_KEY_SIZE, LO_NAME_SIZE, LoopFlags, loop_info, loop_info64};
use crate::kernel::DeviceNumber;
use crate::model::store::errno;

/// A loop device, bound or not.
#[derive(Debug, Default)]
pub(super) struct Loop {
    pub(super) binding: Option<Binding>,
}

#[derive(Debug)]
pub(super) struct Binding {
    pub(super) file: Arc<File>,
    pub(super) sectors: u64,
    pub(super) offset: u64,
    pub(super) size_limit: u64,
    pub(super) flags: LoopFlags,
    pub(super) name: [u8; LO_NAME_SIZE],
    pub(super) sector_size: u32,
}

impl Binding {
    /// SET_FD: EBADF, EINVAL for what is neither file nor block device.
    pub(super) fn new(fd: RawFd, writable: bool) -> Result<Self, Errno> {
        let (file, file_writable) = reopen(fd)?;
        let mut flags = LoopFlags::empty();
        flags.set(LoopFlags::READ_ONLY, !(file_writable && writable));
        let name = [0; LO_NAME_SIZE];
        let file = Arc::new(file);
        let mut binding = Self { file, sectors: 0, offset: 0, size_limit: 0, flags, name, sector_size: 512 };
        binding.measure()?;
        Ok(binding)
    }

    pub(super) fn measure(&mut self) -> Result<(), Errno> {
        self.sectors = self.measured()?;
        Ok(())
    }

    /// The sectors that there are now: a file may have changed since.
    pub(super) fn measured(&self) -> Result<u64, Errno> {
        use std::io::{Seek, SeekFrom};
        let bytes = (&*self.file).seek(SeekFrom::End(0)).map_err(errno)?.saturating_sub(self.offset);
        let limit = if self.size_limit == 0 { bytes } else { self.size_limit };
        Ok(bytes.min(limit) / 512)
    }

    /// `loop_set_status_from_info`, without the flags.
    pub(super) fn set_info(&mut self, info: &loop_info64) -> Result<(), Errno> {
        if info.lo_encrypt_key_size as usize > LO_KEY_SIZE || info.lo_encrypt_type != 0 {
            return Err(Errno::EINVAL);
        }
        if i64::try_from(info.lo_offset).is_err() || i64::try_from(info.lo_sizelimit).is_err() {
            return Err(Errno::EOVERFLOW);
        }
        self.offset = info.lo_offset;
        self.size_limit = info.lo_sizelimit;
        self.name = info.lo_file_name;
        self.name[LO_NAME_SIZE - 1] = 0;
        self.measure()
    }

    pub(super) fn set_sector_size(&mut self, size: u32) -> Result<(), Errno> {
        if !(512..=4096).contains(&size) || !size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        self.sector_size = size;
        Ok(())
    }

    /// Past the page cache only where sectors lie as on the disk below, which here has small ones.
    pub(super) fn set_direct_io(&mut self, wanted: bool) {
        self.flags.set(LoopFlags::DIRECT_IO, wanted && self.offset.is_multiple_of(512));
    }

    pub(super) fn info(&self, index: u32) -> Result<loop_info64, Errno> {
        let stat = self.file.metadata().map_err(errno)?;
        let huge = |dev: u64| DeviceNumber::from_dev_t(dev).to_huge();
        let mut info = loop_info64::zeroed();
        info.lo_device = huge(stat.dev());
        info.lo_inode = stat.ino();
        info.lo_rdevice = huge(stat.rdev());
        info.lo_offset = self.offset;
        info.lo_sizelimit = self.size_limit;
        info.lo_number = index;
        info.lo_flags = self.flags.bits();
        info.lo_file_name = self.name;
        Ok(info)
    }
}

impl Loop {
    pub(super) fn is_bound(&self) -> bool {
        self.binding.is_some()
    }

    pub(super) fn sectors(&self) -> u64 {
        self.binding.as_ref().map_or(0, |binding| binding.sectors)
    }

    pub(super) fn sector_size(&self) -> u32 {
        self.binding.as_ref().map_or(512, |binding| binding.sector_size)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.has(LoopFlags::READ_ONLY)
    }

    pub(super) fn is_autoclear(&self) -> bool {
        self.has(LoopFlags::AUTOCLEAR)
    }

    pub(super) fn has(&self, flag: LoopFlags) -> bool {
        self.binding.as_ref().is_some_and(|binding| binding.flags.contains(flag))
    }

    /// The backing file, and the byte that the device begins with.
    pub(super) fn bytes(&self) -> Option<(Arc<File>, u64)> {
        self.binding.as_ref().map(|binding| (Arc::clone(&binding.file), binding.offset))
    }

    /// Device number and inode of the backing file.
    pub(super) fn backing(&self) -> Option<String> {
        let stat = self.binding.as_ref()?.file.metadata().ok()?;
        Some(format!("inode {}", stat.ino()))
    }
}

/// `loop_info64_from_old`
pub(super) fn from_old(old: &loop_info) -> loop_info64 {
    let mut info = loop_info64::zeroed();
    info.lo_offset = i64::from(old.lo_offset).cast_unsigned();
    info.lo_flags = old.lo_flags.cast_unsigned();
    info.lo_file_name = old.lo_name;
    info
}

/// `loop_info64_to_old`
#[allow(clippy::useless_conversion)] // the types differ between architectures
pub(super) fn to_old(info: &loop_info64) -> Result<loop_info, Errno> {
    let mut old = loop_info::zeroed();
    old.lo_number = info.lo_number.cast_signed();
    old.lo_device = info.lo_device.try_into().map_err(|_| Errno::EOVERFLOW)?;
    old.lo_inode = info.lo_inode.try_into().map_err(|_| Errno::EOVERFLOW)?;
    old.lo_rdevice = info.lo_rdevice.try_into().map_err(|_| Errno::EOVERFLOW)?;
    old.lo_offset = info.lo_offset.try_into().map_err(|_| Errno::EOVERFLOW)?;
    old.lo_flags = info.lo_flags.cast_signed();
    old.lo_name = info.lo_file_name;
    Ok(old)
}

/// `loop_check_backing_file`, where the kernel has it: a directory is refused whatever the device's state.
pub(super) fn check_backing(fd: RawFd, checks_first: bool) -> Result<(), Errno> {
    let backing = std::fs::metadata(format!("/proc/self/fd/{fd}")).map_err(|_| Errno::EBADF)?;
    if checks_first && backing.is_dir() { Err(Errno::EINVAL) } else { Ok(()) }
}

/// The file behind a number of this process, opened anew, and whether that number may write to it.
pub(super) fn reopen(fd: RawFd) -> Result<(File, bool), Errno> {
    const ACCESS_MODE: u32 = 3;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|_| Errno::EBADF)?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).ok_or(Errno::EBADF)?;
    let path = format!("/proc/self/fd/{fd}");
    let kind = std::fs::metadata(&path).map_err(|_| Errno::EBADF)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Errno::EINVAL);
    }
    let writable = flags & ACCESS_MODE != 0;
    let file = File::options().read(true).write(writable).open(path).map_err(errno)?;
    Ok((file, writable))
}
