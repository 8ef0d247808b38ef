//! Reads and writes, down through the tables.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::io::Io;
use crate::kernel::{DeviceFile, DeviceNumber};
use crate::model::number::{DM_MAJOR, LOOP_MAJOR};
use crate::model::pool::{Mode, Pool};
use crate::model::store;
use crate::model::target::{Kind, Target};
use crate::model::volume::Volume;
use crate::model::world::World;
use crate::thin::metadata::format::BLOCK_SIZE;

impl World {
    /// What is open behind `file`: the device, its size in bytes, and whether it may be written.
    fn opened(&self, file: &DeviceFile, offset: u64) -> Result<(DeviceNumber, u64, bool, bool), Errno> {
        let handle = self.handles.iter().find(|handle| handle.is(file)).ok_or(Errno::EBADF)?;
        // The control devices have neither read nor write.
        if !handle.is_block() || i64::try_from(offset).is_err() {
            return Err(Errno::EINVAL);
        }
        let sectors = self.sectors(handle.number).ok_or(Errno::ENXIO)?;
        Ok((handle.number, sectors * 512, handle.access.is_write(), handle.access.is_direct()))
    }

    /// O_DIRECT takes whole sectors at addresses that are multiples of 512 (the default `dma_alignment`).
    fn check_direct(&self, number: DeviceNumber, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let sector = u64::from(self.sector_size(number));
        let aligned =
            (offset | bytes.len() as u64).is_multiple_of(sector) && bytes.as_ptr().addr().is_multiple_of(512);
        if aligned { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// `blkdev_read_iter`.
    pub(super) fn read_at(
        &mut self,
        file: &DeviceFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let (number, size, _, direct) = self.opened(file, offset)?;
        let len =
            usize::try_from(size.saturating_sub(offset)).map_or(buffer.len(), |left| left.min(buffer.len()));
        if len == 0 {
            return Ok(0);
        }
        if direct {
            self.check_direct(number, offset, &buffer[..len])?;
        }
        self.transfer(number, offset, Io::Read(&mut buffer[..len]), 0)?;
        Ok(len)
    }

    /// `blkdev_write_iter`. A device that is read-only can be opened for writing, and refuses it here.
    pub(super) fn write_at(&mut self, file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let (number, size, writable, direct) = self.opened(file, offset)?;
        if !writable {
            return Err(Errno::EBADF);
        }
        if self.is_read_only(number) {
            return Err(Errno::EPERM);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let len =
            usize::try_from(size.saturating_sub(offset)).map_or(bytes.len(), |left| left.min(bytes.len()));
        if len == 0 {
            return Err(Errno::ENOSPC);
        }
        if direct {
            self.check_direct(number, offset, &bytes[..len])?;
        }
        self.transfer(number, offset, Io::Write(&bytes[..len]), 0)?;
        Ok(len)
    }

    /// `blkdev_fsync`: a flush goes down as writes do.
    pub(super) fn sync(&mut self, file: &DeviceFile) -> Result<(), Errno> {
        let (number, ..) = self.opened(file, 0)?;
        self.flush(number, 0)
    }

    /// Makes what was written to a device durable; a thin volume's pool commits.
    pub(super) fn flush(&mut self, number: DeviceNumber, depth: usize) -> Result<(), Errno> {
        if depth > self.devices.len() {
            return Err(Errno::EIO);
        }
        if number.major != DM_MAJOR {
            let Some((file, _)) = self.bytes(number) else { return Ok(()) };
            return self.store.sync(&file);
        }
        self.check_running(number)?;
        let mut result = Ok(());
        for Target { kind, .. } in self.targets(number) {
            result = result.and(match kind {
                Kind::Zero | Kind::Error => Ok(()),
                Kind::Linear { device, .. } => self.flush(device, depth + 1),
                // Not to the metadata: a pool's own device is its data device.
                Kind::ThinPool(pool) => self.flush(pool.data, depth + 1),
                Kind::Thin { pool, .. } => self.commit_pool(pool.minor),
            });
        }
        result
    }

    /// EIO if it cannot commit.
    fn commit_pool(&mut self, minor: u32) -> Result<(), Errno> {
        let (pool, stored) = self.pool(minor).ok_or(Errno::EIO)?;
        pool.commit(stored);
        if pool.mode >= Mode::OutOfMetadataSpace { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Commits flush the pools' data devices, then write the superblock, whatever is in its place. The kernel does
    /// that in this order; here nothing can come between.
    pub(super) fn flush_committed(&mut self) {
        let committed = |pool: &mut Pool| {
            let devices = (pool.data_device, pool.metadata_device, pool.marker);
            std::mem::take(&mut pool.flushes_data).then_some(devices)
        };
        let pools: Vec<_> = self.pools.values_mut().filter_map(committed).collect();
        for (data, metadata, marker) in pools {
            // A data device that cannot flush has nothing to make durable, and the result of a commit is nobody's.
            let _ = self.flush(data, 0);
            let _ = self.write_marker(metadata, marker);
        }
    }

    pub(super) fn targets(&self, number: DeviceNumber) -> Vec<Target> {
        let device = self.devices.get(&number.minor).filter(|_| number.major == DM_MAJOR);
        device.and_then(|device| device.live.as_ref()).map_or_else(Vec::new, |table| table.targets.clone())
    }

    /// A real kernel waits until a suspended device, or its pool, is resumed.
    pub(super) fn check_running(&self, number: DeviceNumber) -> Result<(), Errno> {
        let suspended = |minor: u32| self.devices.get(&minor).is_some_and(|device| device.suspended);
        let pool = self.thin_volume(number).is_some_and(|(pool, _)| suspended(pool));
        if pool || suspended(number.minor) { Err(Errno::EDEADLK) } else { Ok(()) }
    }

    /// The file with a device's bytes, and where they begin.
    fn bytes(&self, number: DeviceNumber) -> Option<(Arc<File>, u64)> {
        match number.major {
            LOOP_MAJOR => self.loops.get(&number.minor)?.bytes(),
            _ => self.disks.get(&number).map(|disk| (Arc::clone(&disk.file), 0)),
        }
    }

    /// The file and the byte that a sector of a device lies on, through linear tables.
    pub(super) fn backing(&self, device: DeviceNumber, sector: u64) -> Result<(Arc<File>, u64), Errno> {
        if device.major != DM_MAJOR {
            let (file, begin) = self.bytes(device).ok_or(Errno::EIO)?;
            return Ok((file, begin + sector * 512));
        }
        let live = self.devices.get(&device.minor).and_then(|device| device.live.as_ref());
        let target = live.and_then(|table| table.targets.iter().rfind(|target| target.start <= sector));
        match target {
            Some(&Target { start, kind: Kind::Linear { device, offset }, .. }) => {
                let sector = (sector - start).checked_add(offset).ok_or(Errno::EIO)?;
                self.backing(device, sector)
            }
            _ => Err(Errno::EIO),
        }
    }

    /// Does something to a range of a device's bytes. Every part is tried, and the first failure told. The kernel lets
    /// devices stand on each other, and sends a write round for ever; here it fails when it must have come round.
    pub(super) fn transfer(
        &mut self,
        number: DeviceNumber,
        at: u64,
        io: Io<'_>,
        depth: usize,
    ) -> Result<(), Errno> {
        let mut io = io;
        if matches!(io, Io::Discard(_)) && !self.discards(number) {
            return Ok(());
        }
        let end = at.checked_add(io.len()).ok_or(Errno::EIO)?;
        if end > self.sectors(number).unwrap_or(0) * 512 || depth > self.devices.len() {
            return Err(Errno::EIO);
        }
        if let Io::Read(buffer) = &mut io
            && let Some(marker) = self.metadata_on(number)
        {
            return self.read_metadata(marker, at, buffer);
        }
        if number.major != DM_MAJOR {
            return self.transfer_bytes(number, at, io);
        }
        self.check_running(number)?;
        let mut result = Ok(());
        for Target { start, length, kind } in self.targets(number) {
            let (start, length) = (start * 512, length * 512);
            let part = at.max(start)..end.min(start + length);
            if part.is_empty() {
                continue;
            }
            let inside = part.start - start;
            let io = io.part(part.start - at..part.end - at);
            result = result.and(match kind {
                Kind::Zero => {
                    if let Io::Read(buffer) = io {
                        buffer.fill(0);
                    }
                    Ok(())
                }
                Kind::Error => Err(Errno::EIO),
                Kind::Linear { device, offset } => {
                    let at = offset.checked_mul(512).and_then(|offset| offset.checked_add(inside));
                    at.map_or(Err(Errno::EIO), |at| self.transfer(device, at, io, depth + 1))
                }
                Kind::Thin { pool, id, origin } => {
                    self.transfer_thin(&Volume { pool: pool.minor, id, origin, depth }, inside, io)
                }
                Kind::ThinPool(pool) => self.transfer(pool.data, inside, io, depth + 1),
            });
        }
        result
    }

    fn transfer_bytes(&mut self, number: DeviceNumber, at: u64, io: Io<'_>) -> Result<(), Errno> {
        let (file, begin) = self.bytes(number).ok_or(Errno::EIO)?;
        let at = begin + at;
        if !matches!(io, Io::Read(_)) && self.is_read_only(number) {
            return Err(Errno::EIO);
        }
        match io {
            Io::Read(buffer) => store::read(&file, at, buffer),
            Io::Write(bytes)
                if number.major == LOOP_MAJOR
                    && self.store.full
                    && store::has_hole(&file, at, bytes.len() as u64)? =>
            {
                Err(Errno::ENOSPC)
            }
            Io::Write(bytes) => self.store.write(&file, at, bytes),
            Io::Zero(len) | Io::Discard(len) => self.store.zero(&file, at, len),
        }
    }

    /// The pool metadata that begins with the device.
    fn metadata_on(&self, number: DeviceNumber) -> Option<u64> {
        self.read_marker(number).ok().flatten().filter(|marker| self.storage.contains_key(marker))
    }

    /// What was committed last, as the kernel writes it.
    fn read_metadata(&self, marker: u64, at: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let image = self.storage.get(&marker).and_then(super::metadata::Metadata::image).ok_or(Errno::EIO)?;
        let (mut at, mut rest) = (at, buffer);
        while !rest.is_empty() {
            let inside = usize::try_from(at % BLOCK_SIZE as u64).unwrap_or(0);
            let (now, later) = rest.split_at_mut(rest.len().min(BLOCK_SIZE - inside));
            match image.block(at / BLOCK_SIZE as u64) {
                Some(block) => now.copy_from_slice(&block[inside..inside + now.len()]),
                None => now.fill(0),
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Whether the metadata on a device that no pool uses is sound; if so, `needs_check` is cleared on demand.
    pub(super) fn thin_check(&mut self, path: &Path, clear: bool) -> Result<bool, Errno> {
        let number = self.block_device(path)?;
        let marker = self.metadata_on(number);
        let Some(metadata) = marker.and_then(|marker| self.storage.get_mut(&marker)) else {
            return Ok(false);
        };
        let image = metadata.image().ok_or(Errno::EIO)?;
        let sound = crate::thin::metadata::check(image).is_ok_and(|report| report.is_sound());
        if sound && clear {
            metadata.set_needs_check(false);
        }
        Ok(sound)
    }
}
