//! Devices as raw images.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::Mapping;
use dm_thin::units::{Bytes, SECTOR_SIZE};
use tempfile::NamedTempFile;

use crate::pool::Pool;
use crate::{Device, Error, Result, Store};

/// Data that is read at once.
const CHUNK: usize = 1 << 20;
/// What is left out if it contains zeroes only: the block size of most file systems.
const PIECE: usize = 4096;

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Size of the image.
    pub size: Bytes,
    /// How much of it was written: what is mapped and not zero.
    pub written: Bytes,
}

/// A device that can be read.
pub(crate) struct Readable<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) device: &'a Device,
    pub(crate) id: ThinId,
    pub(crate) size: u64,
}

impl Store {
    /// Writes a device into `file`, whose content it replaces. What is not mapped, and what is zero, becomes a hole.
    ///
    /// The size is the one in Docker's files. Without one, it is that of the file system, or else the end of the last
    /// mapped block.
    ///
    /// # Errors
    /// [`Error::NoPool`], [`Error::NoData`], [`Error::OtherBase`], [`Error::Metadata`], [`Error::BeyondData`],
    /// [`Error::BeyondDevice`] before anything is written; [`Error::Read`], [`Error::Write`].
    pub fn export_raw(&self, device: &Device, file: &File) -> Result<Exported> {
        self.check_base()?;
        let readable = self.readable(device)?;
        let write = |source| Error::Write { path: None, source };
        file.set_len(0).map_err(write)?;
        file.set_len(readable.size).map_err(write)?;
        let mut written = 0;
        readable.each_piece(|offset, data| {
            written += data.len() as u64;
            file.write_all_at(data, offset).map_err(write)
        })?;
        Ok(Exported { size: Bytes(readable.size), written: Bytes(written) })
    }

    /// Writes a device to a new file, which gets its name when it is complete and durable.
    ///
    /// # Errors
    /// As [`export_raw`](Self::export_raw); [`Error::Write`] also if `path` exists.
    pub fn export_raw_to(&self, device: &Device, path: impl AsRef<Path>) -> Result<Exported> {
        let path = path.as_ref();
        write_new(path, |file| self.export_raw(device, file))
    }

    /// Checks all mappings of a device.
    pub(crate) fn readable<'a>(&'a self, device: &'a Device) -> Result<Readable<'a>> {
        let name = &device.name;
        let pool = self.pool.as_ref().ok_or_else(|| Error::NoPool { device: name.clone() })?;
        let id = device.thin_id.filter(|id| pool.device(*id).is_some());
        let id = id.ok_or_else(|| Error::NoData { device: name.clone(), state: device.state })?;
        let mut readable = Readable { pool, device, id, size: 0 };
        let (block_size, mut end) = (pool.block_size(), 0);
        for mapping in readable.mappings()? {
            let Mapping { virtual_block, data_block, length, .. } = mapping?;
            let data_end = (data_block + length).saturating_mul(block_size);
            if data_end > pool.data_len {
                let (offset, size) = (Bytes(data_end), Bytes(pool.data_len));
                return Err(Error::BeyondData { device: name.clone(), block: virtual_block, offset, size });
            }
            end = virtual_block.saturating_add(length);
        }
        readable.size = match device.size {
            Some(size) => size.0,
            None => {
                let filesystem = pool.filesystem(id).map_err(|source| readable.damaged(source))?;
                let size = filesystem.map_or(0, |filesystem| filesystem.size.0);
                // A superblock is not trusted with more than a size.
                size.checked_next_multiple_of(SECTOR_SIZE.0).unwrap_or(0).max(end.saturating_mul(block_size))
            }
        };
        if end > readable.size.div_ceil(block_size) || i64::try_from(readable.size).is_err() {
            let (block, size) = (end.saturating_sub(1), Bytes(readable.size));
            return Err(Error::BeyondDevice { device: name.clone(), block, size });
        }
        Ok(readable)
    }
}

impl Readable<'_> {
    pub(crate) fn damaged(&self, source: dm_thin::thin::metadata::MetadataError) -> Error {
        Error::Metadata { device: self.device.name.clone(), source }
    }

    fn mappings(&self) -> Result<impl Iterator<Item = Result<Mapping>>> {
        let mappings = self.pool.metadata.mappings(self.id, 0).map_err(|source| self.damaged(source))?;
        Ok(mappings.map(|mapping| mapping.map_err(|source| self.damaged(source))))
    }

    /// Calls `write` with all data that is not zero, in ascending order.
    fn each_piece(&self, mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for mapping in self.mappings()? {
            self.copy(&mapping?, &mut write)?;
        }
        Ok(())
    }

    /// Calls `write` with what is not zero in a run of blocks.
    pub(crate) fn copy(
        &self,
        mapping: &Mapping,
        write: &mut impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let block_size = self.pool.block_size();
        // All of these were checked; the last block can end beyond the device.
        let mut from = mapping.data_block * block_size;
        let mut to = mapping.virtual_block * block_size;
        let end = (to + mapping.length * block_size).min(self.size);
        let mut buffer = vec![0; CHUNK];
        while to < end {
            let length = usize::try_from(end - to).unwrap_or(CHUNK).min(CHUNK);
            let buffer = &mut buffer[..length];
            self.pool.read(buffer, from).map_err(|source| Error::Read {
                device: self.device.name.clone(),
                offset: from,
                source,
            })?;
            for (offset, data) in nonzero(buffer) {
                write(to + offset as u64, data)?;
            }
            from += length as u64;
            to += length as u64;
        }
        Ok(())
    }
}

/// The runs of pieces that are not zero.
fn nonzero(buffer: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let zero = |at: usize| buffer[at..].iter().take(PIECE).all(|byte| *byte == 0);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < buffer.len() && zero(at) {
            at += PIECE;
        }
        let start = at;
        while at < buffer.len() && !zero(at) {
            at += PIECE;
        }
        let end = at.min(buffer.len());
        (start < end).then(|| (start, &buffer[start..end]))
    })
}

/// The directory that a file is in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a new file under a temporary name beside its own, which it gets at the end.
pub(crate) fn write_new<T>(path: &Path, write: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    let failed = |source| Error::Write { path: Some(path.to_owned()), source };
    let file = NamedTempFile::with_prefix_in(".dm-thin-", directory_of(path)).map_err(failed)?;
    let result = write(file.as_file()).map_err(|error| match error {
        Error::Write { path: None, source } => failed(source),
        error => error,
    })?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| failed(error.error))?;
    // Best effort: the file has its name, and not every directory can be opened or synced.
    let _ = File::open(directory_of(path)).and_then(|directory| directory.sync_all());
    Ok(result)
}
