//! The files that hold devices' bytes, and what of it a power cut or a failed sync takes back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

use crate::kernel::{Directory, Files, RealKernel};
use crate::units::Bytes;

const CHUNK: u64 = 4096;
const CHUNK_BYTES: usize = 4096;

/// Writes that are not durable. Bytes go to the files at once; kept here is what was there before.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// By the file's device and inode.
    unsynced: BTreeMap<(u64, u64), Unsynced>,
    /// The lengths that a power cut leaves of files that were resized.
    lengths: BTreeMap<(u64, u64), (File, u64)>,
    /// Names that a power cut takes, after the directories that they are in.
    names: Vec<((u64, u64), PathBuf)>,
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
            if let Entry::Vacant(entry) = unsynced.before.entry(chunk) {
                let mut before = Box::new([0; CHUNK_BYTES]);
                read(file, chunk * CHUNK, &mut before[..])?;
                entry.insert((*before != [0; CHUNK_BYTES]).then_some(before));
            }
        }
        Ok(())
    }

    /// Cuts or extends a file. The host gives it no space.
    pub(super) fn resize(&mut self, file: &File, size: u64) -> Result<(), Errno> {
        let file = Arc::new(file.try_clone().map_err(errno)?);
        let old = file.metadata().map_err(errno)?.len();
        if size < old {
            self.zero(&file, size, old - size)?;
        }
        self.keep_length(&file)?;
        file.set_len(size).map_err(errno)
    }

    pub(super) fn allocate(&mut self, file: &File, from: Bytes, size: Bytes) -> Result<(), Errno> {
        if self.full && has_hole(file, from.0, (size - from).0)? {
            return Err(Errno::ENOSPC);
        }
        self.keep_length(file)?;
        RealKernel.allocate_file(file, from, size)
    }

    fn keep_length(&mut self, file: &File) -> Result<(), Errno> {
        if let Entry::Vacant(entry) = self.lengths.entry(key(file)?) {
            let old = file.metadata().map_err(errno)?.len();
            entry.insert((file.try_clone().map_err(errno)?, old));
        }
        Ok(())
    }

    /// What was written to the file, and its length, stay from now on.
    pub(super) fn sync(&mut self, file: &File) -> Result<(), Errno> {
        let key = key(file)?;
        self.unsynced.remove(&key);
        self.lengths.remove(&key);
        Ok(())
    }

    /// A name that was just made.
    pub(super) fn made(&mut self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        self.names.push((directory_key(above)?, above.path().join(name)));
        Ok(())
    }

    /// A name that was just removed. The power does not bring it back.
    pub(super) fn unmade(&mut self, above: &Directory, name: &OsStr) {
        let gone = above.path().join(name);
        self.names.retain(|(_, path)| !path.starts_with(&gone));
    }

    /// What was made in the directory stays from now on.
    pub(super) fn sync_names(&mut self, directory: &Directory) -> Result<(), Errno> {
        let synced = directory_key(directory)?;
        self.names.retain(|(above, _)| *above != synced);
        Ok(())
    }

    pub(super) fn sync_all(&mut self) {
        self.unsynced.clear();
        self.lengths.clear();
        self.names.clear();
    }

    /// Takes back what was written and is not durable.
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

    /// The power goes: lengths and names that are not durable go, too.
    pub(super) fn power_cut(&mut self) {
        for (file, len) in std::mem::take(&mut self.lengths).into_values() {
            // As in `take_back`.
            let _ = file.set_len(len);
        }
        self.take_back();
        for (_, path) in std::mem::take(&mut self.names).into_iter().rev() {
            // As in `take_back`. Somebody may have removed it.
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
    }
}

fn directory_key(directory: &Directory) -> Result<(u64, u64), Errno> {
    let status = RealKernel.file_status(directory.as_fd())?;
    Ok((status.device.to_huge(), status.inode))
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
