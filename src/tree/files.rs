//! The seam between the state and the disk, small enough to fail at every call.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// The directory that holds a tree's state.
pub trait StateDir: fmt::Debug + Send + Sync {
    /// Open a file for reading and writing, made with mode 0600 if it is not there and `create` is set.
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>>;

    /// Put `from` in the place of `to`, at once.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Remove a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Make names durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file in it.
pub trait StateFile: fmt::Debug + Send + Sync {
    /// All of it.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Write all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// See to it that writes up to `len` find space, if the file system can promise that. The size of
    /// the file stays.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Cut or extend the file; what was reserved behind its end is given back.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Make contents and size durable.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct RealDir {
    path: PathBuf,
    dir: File,
}

impl RealDir {
    /// Open the directory at `path`.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let dir = File::open(&path)?;
        Ok(Self { path, dir })
    }
}

impl StateDir for RealDir {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        Ok(Box::new(options.open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.sync_all()
    }
}

impl StateFile for File {
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
