//! Loop devices over real files.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::store::{self, errno};
use super::world::{World, loop_number};
use crate::abi::Ioctl;
use crate::abi::loopdev::{
    self as abi, LO_KEY_SIZE, LO_NAME_SIZE, LOOP_CONFIGURE_SETTABLE_FLAGS, LOOP_SET_STATUS_CLEARABLE_FLAGS,
    LOOP_SET_STATUS_SETTABLE_FLAGS, LoopFlags, loop_config, loop_info, loop_info64,
};
use crate::kernel::{Access, Arg, DeviceNumber};

/// A loop device, bound or not.
#[derive(Debug, Default)]
pub(super) struct Loop {
    binding: Option<Binding>,
}

#[derive(Debug)]
struct Binding {
    file: Arc<File>,
    sectors: u64,
    offset: u64,
    size_limit: u64,
    flags: LoopFlags,
    name: [u8; LO_NAME_SIZE],
    sector_size: u32,
}

impl Binding {
    /// SET_FD: EBADF, EINVAL for what is neither file nor block device.
    fn new(fd: RawFd, writable: bool) -> Result<Self, Errno> {
        let (file, file_writable) = reopen(fd)?;
        let mut flags = LoopFlags::empty();
        flags.set(LoopFlags::READ_ONLY, !(file_writable && writable));
        let name = [0; LO_NAME_SIZE];
        let file = Arc::new(file);
        let mut binding = Self { file, sectors: 0, offset: 0, size_limit: 0, flags, name, sector_size: 512 };
        binding.measure()?;
        Ok(binding)
    }

    fn measure(&mut self) -> Result<(), Errno> {
        self.sectors = self.measured()?;
        Ok(())
    }

    /// The sectors that there are now: a file may have changed since.
    fn measured(&self) -> Result<u64, Errno> {
        use std::io::{Seek, SeekFrom};
        let bytes = (&*self.file).seek(SeekFrom::End(0)).map_err(errno)?.saturating_sub(self.offset);
        let limit = if self.size_limit == 0 { bytes } else { self.size_limit };
        Ok(bytes.min(limit) / 512)
    }

    /// `loop_set_status_from_info`, without the flags.
    fn set_info(&mut self, info: &loop_info64) -> Result<(), Errno> {
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

    fn set_sector_size(&mut self, size: u32) -> Result<(), Errno> {
        if !(512..=4096).contains(&size) || !size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        self.sector_size = size;
        Ok(())
    }

    /// Past the page cache only where sectors lie as on the disk below, which here has small ones.
    fn set_direct_io(&mut self, wanted: bool) {
        self.flags.set(LoopFlags::DIRECT_IO, wanted && self.offset.is_multiple_of(512));
    }

    fn info(&self, index: u32) -> Result<loop_info64, Errno> {
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

    fn has(&self, flag: LoopFlags) -> bool {
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

impl World {
    /// An ioctl of `/dev/loop-control`.
    pub(super) fn loop_control(&mut self, request: Ioctl, value: i32) -> Result<u32, Errno> {
        let lowest_unused =
            |world: &Self| (0..).find(|index| !world.loops.contains_key(index)).ok_or(Errno::ENOSPC);
        if request == abi::LOOP_CTL_GET_FREE {
            let unbound = self.loops.iter().find(|(_, device)| !device.is_bound()).map(|(&index, _)| index);
            let index = unbound.map_or_else(|| lowest_unused(self), Ok)?;
            self.loops.entry(index).or_default();
            return Ok(index);
        }
        let index = u32::try_from(value);
        if request == abi::LOOP_CTL_ADD {
            let index = index.or_else(|_| lowest_unused(self))?;
            if self.loops.contains_key(&index) {
                return Err(Errno::EEXIST);
            }
            self.loops.insert(index, Loop::default());
            return Ok(index);
        }
        if request != abi::LOOP_CTL_REMOVE {
            return Err(Errno::ENOTTY);
        }
        let index = index.map_err(|_| Errno::EINVAL)?;
        let bound = self.loops.get(&index).ok_or(Errno::ENODEV)?.is_bound();
        if bound || self.open_count(loop_number(index)) > 0 {
            return Err(Errno::EBUSY);
        }
        self.loops.remove(&index);
        Ok(0)
    }

    /// An ioctl of a loop device.
    pub(super) fn loop_ioctl(
        &mut self,
        index: u32,
        access: Access,
        request: Ioctl,
        argument: Arg<'_>,
    ) -> Result<u32, Errno> {
        use std::os::fd::AsRawFd;
        let number = loop_number(index);
        let writable = access.is_write();
        // Claimed by a table, a file system or another O_EXCL open: an O_EXCL open of one's own is the claim.
        let claimed = !access.is_exclusive()
            && (self.is_in_table(number) || self.is_mounted(number) || self.is_open_exclusively(number));
        let openers = self.open_count(number);
        // 6.12 looks at the file before it looks at the device, and at the block size last,
        // of which 0 is the default.
        let newer = self.options.interface_minor >= 48;
        let device = self.loops.get_mut(&index).ok_or(Errno::ENXIO)?;
        match (request, argument) {
            (abi::LOOP_SET_FD, Arg::Fd(fd)) => {
                check_backing(fd.as_raw_fd(), newer)?;
                if claimed || device.is_bound() {
                    return Err(Errno::EBUSY);
                }
                device.binding = Some(Binding::new(fd.as_raw_fd(), writable)?);
            }
            (abi::LOOP_CONFIGURE, Arg::Bytes(bytes)) => {
                let config = loop_config::read_from_bytes(bytes).map_err(|_| Errno::EINVAL)?;
                let fd = RawFd::try_from(config.fd).map_err(|_| Errno::EBADF)?;
                check_backing(fd, newer)?;
                if claimed || device.is_bound() {
                    return Err(Errno::EBUSY);
                }
                let mut binding = Binding::new(fd, writable)?;
                let flags = LoopFlags::from_bits_retain(config.info.lo_flags);
                if !(flags - LOOP_CONFIGURE_SETTABLE_FLAGS).is_empty() {
                    return Err(Errno::EINVAL);
                }
                if newer {
                    binding.set_info(&config.info)?;
                }
                if config.block_size != 0 {
                    binding.set_sector_size(config.block_size)?;
                }
                binding.set_info(&config.info)?;
                binding.flags |= flags;
                binding.set_direct_io(flags.contains(LoopFlags::DIRECT_IO));
                device.binding = Some(binding);
            }
            (abi::LOOP_CLR_FD, Arg::Value(_)) => {
                let binding = device.binding.as_mut().ok_or(Errno::ENXIO)?;
                if openers > 1 {
                    binding.flags |= LoopFlags::AUTOCLEAR;
                } else {
                    device.binding = None;
                }
            }
            (abi::LOOP_SET_STATUS | abi::LOOP_SET_STATUS64, Arg::Bytes(bytes)) => {
                let info = if request == abi::LOOP_SET_STATUS {
                    loop_info::read_from_bytes(bytes).map(|old| from_old(&old)).ok()
                } else {
                    loop_info64::read_from_bytes(bytes).ok()
                };
                let info = info.ok_or(Errno::EINVAL)?;
                let binding = device.binding.as_mut().ok_or(Errno::ENXIO)?;
                binding.set_info(&info)?;
                let asked = LoopFlags::from_bits_retain(info.lo_flags) & LOOP_SET_STATUS_SETTABLE_FLAGS;
                binding.flags = asked | (binding.flags - LOOP_SET_STATUS_CLEARABLE_FLAGS);
                binding.set_direct_io(binding.flags.contains(LoopFlags::DIRECT_IO));
            }
            (abi::LOOP_GET_STATUS64, Arg::Bytes(bytes)) => {
                let binding = device.binding.as_ref().ok_or(Errno::ENXIO)?;
                binding.info(index)?.write_to(bytes).map_err(|_| Errno::EINVAL)?;
            }
            (abi::LOOP_GET_STATUS, Arg::Bytes(bytes)) => {
                let binding = device.binding.as_ref().ok_or(Errno::ENXIO)?;
                to_old(&binding.info(index)?)?.write_to(bytes).map_err(|_| Errno::EINVAL)?;
            }
            (abi::LOOP_CHANGE_FD, Arg::Fd(fd)) => {
                check_backing(fd.as_raw_fd(), newer)?;
                let old = device.binding.as_mut().ok_or(Errno::ENXIO)?;
                if !old.flags.contains(LoopFlags::READ_ONLY) {
                    return Err(Errno::EINVAL);
                }
                let mut new = Binding::new(fd.as_raw_fd(), false)?;
                (new.offset, new.size_limit) = (old.offset, old.size_limit);
                if new.measured()? != old.measured()? {
                    return Err(Errno::EINVAL);
                }
                old.file = new.file;
            }
            (abi::LOOP_SET_CAPACITY, Arg::Value(_)) => {
                device.binding.as_mut().ok_or(Errno::ENXIO)?.measure()?;
            }
            (abi::LOOP_SET_DIRECT_IO, Arg::Value(value)) => {
                let binding = device.binding.as_mut().ok_or(Errno::ENXIO)?;
                binding.set_direct_io(value != 0);
                if binding.flags.contains(LoopFlags::DIRECT_IO) != (value != 0) {
                    return Err(Errno::EINVAL);
                }
            }
            (abi::LOOP_SET_BLOCK_SIZE, Arg::Value(value)) => {
                if claimed {
                    return Err(Errno::EBUSY);
                }
                let binding = device.binding.as_mut().ok_or(Errno::ENXIO)?;
                let size = u32::try_from(value).map_err(|_| Errno::EINVAL)?;
                binding.set_sector_size(if newer && size == 0 { 512 } else { size })?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        self.released = true;
        Ok(0)
    }

    /// The marker of the thin metadata that a device begins with; none if its first block is all zero.
    ///
    /// # Errors
    /// EILSEQ for bytes that are no superblock of this kernel.
    pub(super) fn read_marker(&self, device: DeviceNumber) -> Result<Option<u64>, Errno> {
        let (file, at) = self.backing(device, 0)?;
        let mut block = [0; 4096];
        store::read(&file, at, &mut block)?;
        let (marker, rest) = block.split_first_chunk::<8>().ok_or(Errno::EIO)?;
        match (u64::from_le_bytes(*marker), rest.iter().all(|&byte| byte == 0)) {
            (0, true) => Ok(None),
            (marker, true) => Ok(Some(marker)),
            (_, false) => Err(Errno::EILSEQ),
        }
    }

    /// Formatting ends in a commit: the marker is durable, and what was written to the device before.
    pub(super) fn write_marker(&mut self, device: DeviceNumber, marker: u64) -> Result<(), Errno> {
        let (file, at) = self.backing(device, 0)?;
        self.store.write(&file, at, &marker.to_le_bytes())?;
        self.store.sync(&file)
    }
}

/// `loop_info64_from_old`
fn from_old(old: &loop_info) -> loop_info64 {
    let mut info = loop_info64::zeroed();
    info.lo_offset = i64::from(old.lo_offset).cast_unsigned();
    info.lo_flags = old.lo_flags.cast_unsigned();
    info.lo_file_name = old.lo_name;
    info
}

/// `loop_info64_to_old`
#[allow(clippy::useless_conversion)] // the types differ between architectures
fn to_old(info: &loop_info64) -> Result<loop_info, Errno> {
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
fn check_backing(fd: RawFd, checks_first: bool) -> Result<(), Errno> {
    let backing = std::fs::metadata(format!("/proc/self/fd/{fd}")).map_err(|_| Errno::EBADF)?;
    if checks_first && backing.is_dir() { Err(Errno::EINVAL) } else { Ok(()) }
}

/// The file behind a number of this process, opened anew, and whether that number may write to it.
fn reopen(fd: RawFd) -> Result<(File, bool), Errno> {
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
