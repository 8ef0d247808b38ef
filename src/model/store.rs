//! The files that hold devices' bytes, and what of it a power cut or a failed sync takes back.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

const CHUNK: u64 = 4096;
const CHUNK_BYTES: usize = 4096;

/// Writes that are not durable. Bytes go to the files at once; kept here is what was there before.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// By the file's device and inode.
    unsynced: BTreeMap<(u64, u64), Unsynced>,
    /// Files below loop devices get no more blocks.
    pub(super) full: bool,
}

#[derive(Debug)]
struct Unsynced {
    file: Arc<File>,
    /// What a power cut leaves of each chunk; none if that is zeroes.
    before: BTreeMap<u64, Option<Box<[u8; CHUNK_BYTES]>>>,
}

/// A sparse file in memory.
pub(super) fn memory() -> Result<Arc<File>, Errno> {
    memfd_create("disk", MFdFlags::MFD_CLOEXEC).map(|fd| Arc::new(File::from(fd)))
}

/// Fills the buffer; zeroes where there is no file any more.
pub(super) fn read(file: &File, at: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let (mut at, mut rest) = (at, buffer);
    while !rest.is_empty() {
        match file.read_at(rest, at).map_err(errno)? {
            0 => {
                rest.fill(0);
                break;
            }
            read => {
                at += read as u64;
                rest = &mut rest[read..];
            }
        }
    }
    Ok(())
}

fn key(file: &File) -> Result<(u64, u64), Errno> {
    file.metadata().map(|stat| (stat.dev(), stat.ino())).map_err(errno)
}

impl Store {
    pub(super) fn write(&mut self, file: &Arc<File>, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.keep(file, at, bytes.len() as u64)?;
        file.write_all_at(bytes, at).map_err(errno)
    }

    /// Punches a hole.
    pub(super) fn zero(&mut self, file: &Arc<File>, at: u64, len: u64) -> Result<(), Errno> {
        let end = at + len;
        let mut from = at;
        // Where there is a hole already nothing is to be done.
        while let Some(data) = next_data(file, from)?.filter(|&data| data < end) {
            let hole = seek(file, data, Whence::SeekHole)?.unwrap_or(end).min(end);
            self.keep(file, data, hole - data)?;
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if fallocate(file, punch, offset(data)?, offset(hole - data)?).is_err() {
                // Not every file system can.
                let zeroes = [0; CHUNK_BYTES];
                for at in (data..hole).step_by(CHUNK_BYTES) {
                    let len = usize::try_from(hole - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
                    file.write_all_at(&zeroes[..len], at).map_err(errno)?;
                }
            }
            from = hole;
        }
        Ok(())
    }

    fn keep(&mut self, file: &Arc<File>, at: u64, len: u64) -> Result<(), Errno> {
        let unsynced = self.unsynced.entry(key(file)?);
        let unsynced =
            unsynced.or_insert_with(|| Unsynced { file: Arc::clone(file), before: BTreeMap::new() });
        for chunk in at / CHUNK..(at + len).div_ceil(CHUNK) {
            if let std::collections::btree_map::Entry::Vacant(entry) = unsynced.before.entry(chunk) {
                let mut before = Box::new([0; CHUNK_BYTES]);
                read(file, chunk * CHUNK, &mut before[..])?;
                entry.insert((*before != [0; CHUNK_BYTES]).then_some(before));
            }
        }
        Ok(())
    }

    /// What was written to the file stays from now on.
    pub(super) fn sync(&mut self, file: &File) -> Result<(), Errno> {
        self.unsynced.remove(&key(file)?);
        Ok(())
    }

    /// Takes back what is not durable.
    pub(super) fn take_back(&mut self) {
        for Unsynced { file, before } in std::mem::take(&mut self.unsynced).into_values() {
            // A file that somebody cut off meanwhile stays so.
            let end = file.metadata().map_or(0, |stat| stat.len());
            for (chunk, before) in before {
                let at = chunk * CHUNK;
                let len =
                    usize::try_from(end.saturating_sub(at)).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
                let before = before.as_deref().unwrap_or(&[0; CHUNK_BYTES]);
                // Nobody waits for these bytes any more.
                let _ = file.write_all_at(&before[..len], at);
            }
        }
    }
}

/// Whether a part of the range is in a hole, or behind the end.
pub(super) fn has_hole(file: &File, at: u64, len: u64) -> Result<bool, Errno> {
    Ok(seek(file, at, Whence::SeekHole)?.is_none_or(|hole| hole < at + len))
}

/// Where the next bytes are that are not in a hole.
fn next_data(file: &File, from: u64) -> Result<Option<u64>, Errno> {
    seek(file, from, Whence::SeekData)
}

fn seek(file: &File, from: u64, whence: Whence) -> Result<Option<u64>, Errno> {
    match lseek(file, offset(from)?, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn offset(at: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(at).map_err(|_| Errno::EINVAL)
}

pub(super) fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
