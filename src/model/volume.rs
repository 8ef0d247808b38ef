//! Reads and writes of thin volumes: which data blocks they go to.

use std::ops::Range;

use nix::errno::Errno;

use super::io::Io;
use super::pool::{Mode, Write};
use super::target::Kind;
use super::world::World;
use crate::kernel::DeviceNumber;
use crate::thin::metadata::format::BLOCK_SIZE;

/// Copies go in steps of so many bytes.
const STEP: u64 = 1 << 20;

/// A thin volume that is read or written.
pub(super) struct Volume {
    /// The pool's minor number.
    pub(super) pool: u32,
    pub(super) id: u32,
    pub(super) origin: Option<DeviceNumber>,
    pub(super) depth: usize,
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

    pub(super) fn transfer_thin(&mut self, volume: &Volume, at: u64, io: Io<'_>) -> Result<(), Errno> {
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
        let mut result = Ok(());
        for block in at / block_size..end.div_ceil(block_size) {
            let begin = block * block_size;
            let part = at.max(begin)..end.min(begin + block_size);
            let io = io.part(part.start - at..part.end - at);
            result = result.and(self.transfer_block(volume, block, block_size, part.start - begin, io));
        }
        result
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
            let empty = bytes.chunks(BLOCK_SIZE).all(|chunk| *chunk == [0; BLOCK_SIZE][..chunk.len()]);
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
