//! The real files: each call passed on unchanged.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, fsync, symlinkat, syncfs, unlinkat};

use super::error::errno;
use super::{DeviceNumber, Directory, Entry, FileLock, FileStatus, Files, Links, RealKernel};
use crate::sys;
use crate::units::{Bytes, Sectors};

impl Files for RealKernel {
    fn open_directory(&self, path: &Path, links: Links) -> Result<Directory, Errno> {
        Directory::open(path, links)
    }

    fn enter_directory(&self, above: &Directory, name: &OsStr) -> Result<Directory, Errno> {
        above.enter(name)
    }

    fn make_directory(&self, above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_bits_truncate(mode);
        mkdirat(above, name, mode)?;
        // Whatever the process's umask.
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        fchmod(openat(above, name, flags, Mode::empty())?, mode)
    }

    fn remove_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        unlinkat(above, name, UnlinkatFlags::RemoveDir)
    }

    fn entry(&self, above: &Directory, name: &OsStr) -> Result<Entry, Errno> {
        let stat = fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Entry::File,
            SFlag::S_IFDIR => Entry::Directory,
            SFlag::S_IFLNK => Entry::Symlink(readlinkat(above, name)?.into()),
            _ => Entry::Other,
        })
    }

    fn make_file(&self, above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        fchmod(openat(above, name, flags, mode)?, mode)
    }

    fn make_symlink(&self, above: &Directory, name: &OsStr, text: &Path) -> Result<(), Errno> {
        symlinkat(text, above, name)
    }

    fn remove_file(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        unlinkat(above, name, UnlinkatFlags::NoRemoveDir)
    }

    fn open_file(&self, above: &Directory, name: &OsStr, create: bool) -> Result<File, Errno> {
        // O_NONBLOCK: a FIFO in its place must not hang the caller.
        let mut flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        flags.set(OFlag::O_CREAT, create);
        openat(above, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
    }

    fn sync_directory(&self, directory: &Directory) -> Result<(), Errno> {
        fsync(readable(directory)?)
    }

    fn sync_filesystem(&self, directory: &Directory) -> Result<(), Errno> {
        syncfs(readable(directory)?)
    }

    fn trim_filesystem(&self, directory: &Directory) -> Result<Bytes, Errno> {
        sys::trim(readable(directory)?.as_fd()).map(Bytes)
    }

    fn lock_directory(&self, directory: &Directory) -> Result<FileLock, Errno> {
        FileLock::try_new(readable(directory)?)
    }

    fn file_status(&self, file: BorrowedFd<'_>) -> Result<FileStatus, Errno> {
        let stat = fstat(file)?;
        let (format, mode) = (stat.st_mode & SFlag::S_IFMT.bits(), stat.st_mode & 0o7777);
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        Ok(FileStatus {
            device: DeviceNumber::from_dev_t(stat.st_dev.try_into().map_err(|_| Errno::EOVERFLOW)?),
            inode: stat.st_ino.into(),
            is_file: SFlag::from_bits_truncate(format) == SFlag::S_IFREG,
            mode: mode.into(),
            owner: stat.st_uid,
            size: Bytes(stat.st_size.try_into().map_err(|_| Errno::EOVERFLOW)?),
            allocated: Sectors(stat.st_blocks.try_into().map_err(|_| Errno::EOVERFLOW)?).bytes(),
        })
    }

    fn free_space(&self, file: BorrowedFd<'_>) -> Result<Bytes, Errno> {
        let stat = fstatvfs(file)?;
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        Ok(Bytes(u64::from(stat.blocks_available()).saturating_mul(stat.fragment_size().into())))
    }

    fn resize_file(&self, file: &File, size: Bytes) -> Result<(), Errno> {
        file.set_len(size.0).map_err(errno)
    }

    fn allocate_file(&self, file: &File, from: Bytes, size: Bytes) -> Result<(), Errno> {
        let offset = |at: Bytes| libc::off_t::try_from(at.0).map_err(|_| Errno::EFBIG);
        match fallocate(file, FallocateFlags::empty(), offset(from)?, offset(size - from)?) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => rewrite(file, from.0, size.0).map_err(errno),
            result => result,
        }
    }

    fn sync_file(&self, file: &File) -> Result<(), Errno> {
        file.sync_all().map_err(errno)
    }
}

/// Writes what is there, or zeroes behind the end.
fn rewrite(file: &File, from: u64, size: u64) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    let (mut at, end) = (from, file.metadata()?.len());
    while at < size {
        let len = usize::try_from(size - at).map_or(bytes.len(), |left| left.min(bytes.len()));
        let there = usize::try_from(end.saturating_sub(at)).map_or(len, |left| left.min(len));
        file.read_exact_at(&mut bytes[..there], at)?;
        bytes[there..len].fill(0);
        file.write_all_at(&bytes[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// The directory, which is open with O_PATH, as `fsync(2)` and `flock(2)` take it.
fn readable(directory: &Directory) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(directory, ".", flags, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_that_is_rewritten_keeps_what_is_there_and_has_no_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"begin", 4096).unwrap();
        file.write_all_at(b"end", (3 << 20) - 3).unwrap();
        rewrite(&file, 0, (5 << 20) + 7).unwrap();
        let stat = file.metadata().unwrap();
        assert!(stat.len() == (5 << 20) + 7 && stat.blocks() * 512 >= stat.len());
        let mut bytes = vec![0; 5 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let mut expected = vec![0; 5 << 20];
        expected[4096..4101].copy_from_slice(b"begin");
        expected[(3 << 20) - 3..3 << 20].copy_from_slice(b"end");
        assert!(bytes == expected);
    }
}
