//! The seam between the state and the disk, small enough to fail at every call.

#![allow(clippy::disallowed_methods)] // the real one of `StateDir`, which is a seam of its own

use std::fmt;
use std::fs::File; // see above
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// The directory that holds a tree's state.
pub trait StateDir: fmt::Debug + Send + Sync {
    /// Opens a file for reading and writing, created with mode 0600 if it is missing and `create` is set.
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>>;

    /// Renames `from` to `to`, replacing it atomically.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Syncs the directory: names are durable after this.
    fn sync(&self) -> io::Result<()>;
}

/// A file of a [`StateDir`].
pub trait StateFile: fmt::Debug + Send + Sync {
    /// All of it.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Its size in bytes.
    fn size(&self) -> io::Result<u64> {
        self.read().map(|bytes| bytes.len() as u64)
    }

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Allocates space for writes up to `len`, if the file system can. The size of
    /// the file stays.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Cut or extend the file; what was reserved behind its end is given back.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Syncs contents and size.
    fn sync(&self) -> io::Result<()>;
}

/// All of a file. EFBIG if it is longer than `max`: then it is not read into memory.
pub(in crate::tree) fn read_at_most(file: &dyn StateFile, max: u64) -> io::Result<Vec<u8>> {
    if file.size()? > max { Err(Errno::EFBIG.into()) } else { file.read() }
}

/// A directory of the file system. It stays the same directory when it is renamed.
#[derive(Debug)]
pub struct RealDir {
    dir: File,
}

impl RealDir {
    /// Opens the directory at `path`.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        File::open(path.into()).map(Self::new)
    }

    pub(in crate::tree) fn new(dir: File) -> Self {
        Self { dir }
    }
}

impl StateDir for RealDir {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let mut flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        flags.set(OFlag::O_CREAT, create);
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        Ok(Box::new(File::from(openat(&self.dir, name, flags, mode)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.sync_all()
    }
}

impl StateFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
        match fallocate(self, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
