//! The ioctls that every block device answers.

use std::ops::Range;

use nix::errno::Errno;

use super::io::Io;
use super::number::DM_MAJOR;
use super::target::{Kind, Table};
use super::world::{Limits, World};
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
                let discard = request == abi::BLKDISCARD;
                let newer = discard && self.options.interface_minor >= 48;
                let read_only = self.is_read_only(number);
                // 6.12 asks whether the device can, before whether this handle may.
                if newer && !self.discards(number) {
                    return Err(Errno::EOPNOTSUPP);
                }
                if !writable {
                    return Err(Errno::EBADF);
                }
                if discard && !self.discards(number) {
                    return Err(Errno::EOPNOTSUPP);
                }
                if newer && read_only {
                    return Err(Errno::EPERM);
                }
                let range = byte_range(bytes)?;
                let sector = u64::from(self.sector_size(number));
                let aligned = range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector);
                if !aligned || range.is_empty() || range.end > sectors * 512 {
                    return Err(Errno::EINVAL);
                }
                if read_only {
                    return Err(Errno::EPERM);
                }
                let len = range.end - range.start;
                let io = if discard { Io::Discard(len) } else { Io::Zero(len) };
                self.transfer(number, range.start, io, 0)?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    pub(super) fn discards(&self, number: DeviceNumber) -> bool {
        let device = self.devices.get(&number.minor).filter(|_| number.major == DM_MAJOR);
        device.is_none_or(|device| device.limits.discards)
    }

    /// What a device's queue says once it has this table: what is below is looked at only then.
    pub(super) fn limits(&self, table: &Table) -> Limits {
        let below = table.dependencies();
        let sector_size = below.into_iter().map(|number| self.sector_size(number)).max().unwrap_or(512);
        let discards = table.targets.iter().all(|target| match &target.kind {
            // Not before 6.2.
            Kind::Zero | Kind::Error => self.options.interface_minor >= 48,
            Kind::Linear { device, .. } => self.discards(*device),
            Kind::Thin { pool, .. } => self.pools.get(&pool.minor).is_some_and(|pool| pool.features.discard),
            Kind::ThinPool(pool) => pool.requested.discard && pool.requested.discard_passdown,
        });
        Limits { sector_size, discards }
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
