//! Loop devices over real files.

use std::os::fd::RawFd;

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::binding::{Binding, Loop, check_backing, from_old, to_old};
use super::number::loop_number;
use super::store::{self};
use super::world::World;
use crate::abi::Ioctl;
use crate::abi::loopdev::{
    self as abi, LOOP_CONFIGURE_SETTABLE_FLAGS, LOOP_SET_STATUS_CLEARABLE_FLAGS,
    LOOP_SET_STATUS_SETTABLE_FLAGS, LoopFlags, loop_config, loop_info, loop_info64,
};
use crate::kernel::{Access, Arg, DeviceNumber};

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
            // Before 5.14 this found any that is unbound, and it was there.
            let index = match index {
                Err(_) if self.loops.values().any(|device| !device.is_bound()) => return Err(Errno::EEXIST),
                index => index.or_else(|_| lowest_unused(self))?,
            };
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
        match (u64::from_le_bytes(*marker), *rest == [0; 4088]) {
            (0, true) => Ok(None),
            (marker, true) => Ok(Some(marker)),
            (_, false) => Err(Errno::EILSEQ),
        }
    }

    /// Puts the marker where the superblock is. It is durable, as is what was written to the device before.
    pub(super) fn write_marker(&mut self, device: DeviceNumber, marker: u64) -> Result<(), Errno> {
        let (file, at) = self.backing(device, 0)?;
        if self.read_marker(device) != Ok(Some(marker)) {
            let mut block = [0; 4096];
            block[..8].copy_from_slice(&marker.to_le_bytes());
            self.store.write(&file, at, &block)?;
        }
        self.store.sync(&file)
    }
}
