//! The ioctls that every block device answers.

use std::ops::Range;

use nix::errno::Errno;

use super::table::{Kind, Table, Target};
use super::world::{DM_MAJOR, Limits, World};
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
                self.change_sectors(number, range.start / 512..range.end / 512, discard, 0)?;
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

    /// Zero or discard sectors, down through the tables to the thin volumes, which map what is zeroed and
    /// unmap what is discarded; elsewhere no data is kept. Every part is tried, and the first failure told. The kernel
    /// lets devices stand on each other, and sends a write round for ever; here it fails when it must have come round.
    fn change_sectors(
        &mut self,
        number: DeviceNumber,
        sectors: Range<u64>,
        discard: bool,
        depth: usize,
    ) -> Result<(), Errno> {
        if discard && !self.discards(number) {
            return Ok(());
        }
        if sectors.end > self.sectors(number).unwrap_or(0) || depth > self.devices.len() {
            return Err(Errno::EIO);
        }
        let device = self.devices.get(&number.minor).filter(|_| number.major == DM_MAJOR);
        let Some(table) = device.and_then(|device| device.live.as_ref()) else { return Ok(()) };
        let mut result = Ok(());
        for Target { start, length, kind } in table.targets.clone() {
            let from = sectors.start.saturating_sub(start);
            let part = from..sectors.end.saturating_sub(start).min(length);
            if part.is_empty() {
                continue;
            }
            result = result.and(match kind {
                Kind::Zero => Ok(()),
                Kind::Error => Err(Errno::EIO),
                Kind::Linear { device, offset } => {
                    let [start, end] = [part.start, part.end].map(|sector| offset.saturating_add(sector));
                    self.change_sectors(device, start..end, discard, depth + 1)
                }
                Kind::Thin { pool, id, .. } => self.change_blocks(pool.minor, id, part, discard),
                Kind::ThinPool(pool) => self.change_sectors(pool.data, part, discard, depth + 1),
            });
        }
        result
    }

    fn change_blocks(&mut self, pool: u32, id: u32, sectors: Range<u64>, discard: bool) -> Result<(), Errno> {
        let (pool, stored) = self.pool(pool).ok_or(Errno::EIO)?;
        let block = pool.current.block_sectors;
        if discard {
            // Only whole blocks are unmapped.
            let whole = sectors.start.div_ceil(block)..sectors.end / block;
            let mapped = pool.current.mapped_in(id, whole);
            mapped.into_iter().try_for_each(|block| pool.discard(id, block))
        } else {
            (sectors.start / block..sectors.end.div_ceil(block))
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
