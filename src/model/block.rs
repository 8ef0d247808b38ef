//! The ioctls that every block device answers.

use std::ops::Range;

use nix::errno::Errno;

use super::table::Kind;
use super::world::{DM_MAJOR, World};
use crate::abi::Ioctl;
use crate::abi::block as abi;
use crate::kernel::{Arg, DeviceNumber};

impl World {
    pub(super) fn block_ioctl(
        &mut self,
        number: DeviceNumber,
        writable: bool,
        request: Ioctl,
        argument: Arg<'_>,
    ) -> Result<u32, Errno> {
        let sectors = self.sectors(number).ok_or(Errno::ENXIO)?;
        match (request, argument) {
            (abi::BLKGETSIZE64, Arg::Bytes(bytes)) => {
                bytes.copy_from_slice(&(sectors * 512).to_ne_bytes());
            }
            (abi::BLKSSZGET | abi::BLKPBSZGET, Arg::Bytes(bytes)) => {
                bytes.copy_from_slice(&self.sector_size(number).to_ne_bytes());
            }
            (abi::BLKROGET, Arg::Bytes(bytes)) => {
                bytes.copy_from_slice(&i32::from(self.is_read_only(number)).to_ne_bytes());
            }
            (abi::BLKFLSBUF, Arg::Value(_)) => {}
            (abi::BLKDISCARD | abi::BLKZEROOUT, Arg::Bytes(bytes)) => {
                if !writable {
                    return Err(Errno::EBADF);
                }
                if request == abi::BLKDISCARD && !self.discards(number) {
                    return Err(Errno::EOPNOTSUPP);
                }
                let range = byte_range(bytes)?;
                let sector = u64::from(self.sector_size(number));
                let aligned = range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector);
                if !aligned || range.is_empty() || range.end > sectors * 512 {
                    return Err(Errno::EINVAL);
                }
                if self.is_read_only(number) {
                    return Err(Errno::EPERM);
                }
                self.change_blocks(number, range, request == abi::BLKDISCARD)?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    /// Before 6.2 zeroes could not be discarded. What is below other targets is not looked at.
    fn discards(&self, number: DeviceNumber) -> bool {
        let device = self.devices.get(&number.minor).filter(|_| number.major == DM_MAJOR);
        let live = device.and_then(|device| device.live.as_ref());
        let zeroes =
            live.is_some_and(|table| table.targets.iter().any(|target| matches!(target.kind, Kind::Zero)));
        !zeroes || self.options.interface_minor >= 48
    }

    /// Thin volumes map what is zeroed and unmap what is discarded; elsewhere no data is kept.
    fn change_blocks(&mut self, number: DeviceNumber, bytes: Range<u64>, discard: bool) -> Result<(), Errno> {
        let Some((pool, id)) = self.thin_volume(number) else { return Ok(()) };
        let (pool, stored) = self.pool(pool).ok_or(Errno::EIO)?;
        let block = pool.current.block_sectors * 512;
        if discard {
            // Only whole blocks are unmapped.
            let whole = bytes.start.div_ceil(block)..bytes.end / block;
            let mapped = pool.current.mapped_in(id, whole);
            mapped.into_iter().try_for_each(|block| pool.discard(id, block))
        } else {
            (bytes.start / block..bytes.end.div_ceil(block))
                .try_for_each(|block| pool.write(stored, id, block))
        }
    }

    /// The pool's minor number and the id of an active thin volume.
    pub(super) fn thin_volume(&self, number: DeviceNumber) -> Option<(u32, u32)> {
        if number.major != DM_MAJOR {
            return None;
        }
        match self.devices.get(&number.minor)?.live.as_ref()?.targets.first()?.kind {
            Kind::Thin { pool, id, .. } => Some((pool.minor, id)),
            _ => None,
        }
    }
}

fn byte_range(bytes: &[u8]) -> Result<Range<u64>, Errno> {
    let (words, _) = bytes.as_chunks::<8>();
    match words {
        [start, length] => {
            let (start, length) = (u64::from_ne_bytes(*start), u64::from_ne_bytes(*length));
            Ok(start..start.checked_add(length).ok_or(Errno::EINVAL)?)
        }
        _ => Err(Errno::EINVAL),
    }
}
