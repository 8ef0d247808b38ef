//! Reads and writes of devices: down through the tables to thin volumes, files and disks.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::pool::{Mode, Pool, Write};
use super::store;
use super::table::{Kind, Target};
use super::world::{DM_MAJOR, LOOP_MAJOR, World};
use crate::kernel::{DeviceFile, DeviceNumber};
use crate::thin::metadata::format::BLOCK_SIZE;

/// Copies go in steps of so many bytes.
const STEP: u64 = 1 << 20;

/// What is done to a range of bytes.
#[derive(Debug)]
pub(super) enum Io<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
    /// As a write of so many zeroes.
    Zero(u64),
    /// Thin volumes unmap whole blocks; elsewhere the bytes become zeroes.
    Discard(u64),
}

impl Io<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Read(buffer) => buffer.len() as u64,
            Self::Write(bytes) => bytes.len() as u64,
            Self::Zero(len) | Self::Discard(len) => *len,
        }
    }

    /// A range of it, which lies inside.
    fn part(&mut self, range: Range<u64>) -> Io<'_> {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = index(range.start)..index(range.end);
        let len = range.end - range.start;
        match self {
            Self::Read(buffer) => Io::Read(&mut buffer[bytes]),
            Self::Write(all) => Io::Write(&all[bytes]),
            Self::Zero(_) => Io::Zero(len),
            Self::Discard(_) => Io::Discard(len),
        }
    }
}

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

    /// Commits flush the pools' data devices. The kernel does that before the superblock is written; here nothing
    /// can come between.
    pub(super) fn flush_committed(&mut self) {
        let flushed = |pool: &mut Pool| std::mem::take(&mut pool.flushes_data).then_some(pool.data_device);
        let devices: Vec<DeviceNumber> = self.pools.values_mut().filter_map(flushed).collect();
        for device in devices {
            // A data device that cannot flush has nothing to make durable.
            let _ = self.flush(device, 0);
        }
    }

    fn targets(&self, number: DeviceNumber) -> Vec<Target> {
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
}

/// A thin volume that is read or written.
struct Volume {
    /// The pool's minor number.
    pool: u32,
    id: u32,
    origin: Option<DeviceNumber>,
    depth: usize,
}

impl World {
    /// Maps a block of a thin volume as for a write that leaves its bytes as they are.
    pub(super) fn map_block(&mut self, number: DeviceNumber, block: u64) -> Result<(), Errno> {
        match self.targets(number).first().map(|target| &target.kind) {
            Some(&Kind::Thin { pool, id, origin }) => {
                let volume = Volume { pool: pool.minor, id, origin, depth: 0 };
                let (pool, _) = self.pool(volume.pool).ok_or(Errno::EIO)?;
                let block_size = pool.current.block_sectors() * 512;
                self.transfer_block(&volume, block, block_size, 0, Io::Write(&[]))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn transfer_thin(&mut self, volume: &Volume, at: u64, io: Io<'_>) -> Result<(), Errno> {
        let mut io = io;
        let (pool, _) = self.pool(volume.pool).ok_or(Errno::EIO)?;
        if pool.mode == Mode::Fail {
            return Err(Errno::EIO);
        }
        let (block_size, end) = (pool.current.block_sectors() * 512, at + io.len());
        if matches!(io, Io::Discard(_)) {
            // Only whole blocks are unmapped.
            return self.discard_blocks(volume, at.div_ceil(block_size)..end / block_size, block_size);
        }
        for block in at / block_size..end.div_ceil(block_size) {
            let begin = block * block_size;
            let part = at.max(begin)..end.min(begin + block_size);
            let io = io.part(part.start - at..part.end - at);
            self.transfer_block(volume, block, block_size, part.start - begin, io)?;
        }
        Ok(())
    }

    fn discard_blocks(&mut self, volume: &Volume, blocks: Range<u64>, block_size: u64) -> Result<(), Errno> {
        let (pool, _) = self.pool(volume.pool).ok_or(Errno::EIO)?;
        let (data_device, passdown) = (pool.data_device, pool.features.discard_passdown);
        let mapped = pool.current.mapped_in(volume.id, blocks);
        let freed = mapped.into_iter().map(|block| pool.discard(volume.id, block));
        for data in freed.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().filter(|_| passdown) {
            self.transfer(data_device, data * block_size, Io::Discard(block_size), volume.depth + 1)?;
        }
        Ok(())
    }

    /// A part of one block.
    fn transfer_block(
        &mut self,
        volume: &Volume,
        block: u64,
        block_size: u64,
        at: u64,
        io: Io<'_>,
    ) -> Result<(), Errno> {
        let depth = volume.depth + 1;
        let (pool, stored) = self.pool(volume.pool).ok_or(Errno::EIO)?;
        let (device, zeroes) = (pool.data_device, pool.features.zero_new_blocks);
        if let Io::Read(buffer) = io {
            return match (pool.current.find(volume.id, block), volume.origin) {
                (Some((data, _)), _) => {
                    self.transfer(device, data * block_size + at, Io::Read(buffer), depth)
                }
                (None, Some(origin)) => self.read_origin(origin, block * block_size + at, buffer, depth),
                (None, None) => {
                    buffer.fill(0);
                    Ok(())
                }
            };
        }
        let write = pool.provision(stored, volume.id, block)?;
        let (Write::InPlace(data) | Write::Fresh(data) | Write::Copy { to: data, .. }) = write;
        let to = data * block_size;
        match (write, volume.origin) {
            (Write::InPlace(_), _) => {}
            (Write::Copy { from, .. }, _) => {
                self.copy_block(to, device, block_size, depth, |world, at, buffer| {
                    world.transfer(device, from * block_size + at, Io::Read(buffer), depth)
                })?;
            }
            (Write::Fresh(_), Some(origin)) => {
                self.copy_block(to, device, block_size, depth, |world, at, buffer| {
                    world.read_origin(origin, block * block_size + at, buffer, depth)
                })?;
            }
            (Write::Fresh(_), None) if zeroes => self.transfer(device, to, Io::Zero(block_size), depth)?,
            (Write::Fresh(_), None) => {}
        }
        self.transfer(device, to + at, io, depth)?;
        if matches!(write, Write::InPlace(_)) {
            return Ok(());
        }
        let (pool, _) = self.pool(volume.pool).ok_or(Errno::EIO)?;
        pool.insert(volume.id, block, data)
    }

    /// Fills a block of the data device.
    fn copy_block(
        &mut self,
        to: u64,
        device: DeviceNumber,
        block_size: u64,
        depth: usize,
        read: impl Fn(&mut Self, u64, &mut [u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut buffer = vec![0; usize::try_from(block_size.min(STEP)).unwrap_or(0)];
        let mut at = 0;
        while at < block_size {
            let len = (block_size - at).min(buffer.len() as u64);
            let bytes = &mut buffer[..usize::try_from(len).unwrap_or(0)];
            read(self, at, bytes)?;
            let empty = bytes.iter().all(|&byte| byte == 0);
            let io = if empty { Io::Zero(len) } else { Io::Write(bytes) };
            self.transfer(device, to + at, io, depth)?;
            at += len;
        }
        Ok(())
    }

    /// An external origin may end before the volume does: zeroes from there on.
    fn read_origin(
        &mut self,
        origin: DeviceNumber,
        at: u64,
        buffer: &mut [u8],
        depth: usize,
    ) -> Result<(), Errno> {
        let left = (self.sectors(origin).unwrap_or(0) * 512).saturating_sub(at);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (there, behind) = buffer.split_at_mut(len);
        behind.fill(0);
        if there.is_empty() { Ok(()) } else { self.transfer(origin, at, Io::Read(there), depth) }
    }
}
