//! Regular files and directories: roots of trees, the files below loop devices, what is in a mounted file system.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::errno;
use super::process::Process;
use super::{DeviceNumber, Directory, Links};
use crate::units::Bytes;

/// What this crate asks of file systems: the second half of the seam, reached by
/// [`Kernel::files`](super::Kernel::files).
///
/// Names are direct children of open directories, and no call follows a symbolic link but
/// [`open_directory`](Self::open_directory). Open files are the system's own, whatever the kernel: it gives them out,
/// and says what they are.
pub trait Files: fmt::Debug + Send + Sync {
    /// Opens a directory by its path: see [`Directory::open`].
    fn open_directory(&self, path: &Path, links: Links) -> Result<Directory, Errno>;

    /// Opens the directory `name` in another one: see [`Directory::enter`].
    fn enter_directory(&self, above: &Directory, name: &OsStr) -> Result<Directory, Errno>;

    /// `mkdirat(2)`.
    fn make_directory(&self, above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno>;

    /// `unlinkat(2)` with AT_REMOVEDIR.
    fn remove_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno>;

    /// `fstatat(2)`, `readlinkat(2)`: what has that name.
    fn entry(&self, above: &Directory, name: &OsStr) -> Result<Entry, Errno>;

    /// Makes an empty regular file. EEXIST if there is something of that name.
    fn make_file(&self, above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno>;

    /// `symlinkat(2)`.
    fn make_symlink(&self, above: &Directory, name: &OsStr, text: &Path) -> Result<(), Errno>;

    /// `unlinkat(2)`.
    fn remove_file(&self, above: &Directory, name: &OsStr) -> Result<(), Errno>;

    /// Opens a file for reading and writing, created with mode 0600 if it is missing and `create` is set.
    fn open_file(&self, above: &Directory, name: &OsStr, create: bool) -> Result<File, Errno>;

    /// `fsync(2)` of a directory: the names in it are durable.
    fn sync_directory(&self, directory: &Directory) -> Result<(), Errno>;

    /// `syncfs(2)`: the whole file system of a directory is durable.
    fn sync_filesystem(&self, directory: &Directory) -> Result<(), Errno>;

    /// `FITRIM`: discards what the directory's file system does not use. EOPNOTSUPP if its device does not discard.
    fn trim_filesystem(&self, directory: &Directory) -> Result<Bytes, Errno>;

    /// Locks a directory. EWOULDBLOCK if it is locked.
    fn lock_directory(&self, directory: &Directory) -> Result<FileLock, Errno>;

    /// `fstat(2)`.
    fn file_status(&self, file: BorrowedFd<'_>) -> Result<FileStatus, Errno>;

    /// `fstatvfs(2)`: what this process can still use of the file system.
    fn free_space(&self, file: BorrowedFd<'_>) -> Result<Bytes, Errno>;

    /// `ftruncate(2)`.
    fn resize_file(&self, file: &File, size: Bytes) -> Result<(), Errno>;

    /// Gives a file its space between an offset and a size, which it has then at least: `fallocate(2)`. What is there
    /// stays. Where the file system has no such call it is written again, so nobody else may write there.
    fn allocate_file(&self, file: &File, from: Bytes, size: Bytes) -> Result<(), Errno>;

    /// `fsync(2)` of a file.
    fn sync_file(&self, file: &File) -> Result<(), Errno>;
}

impl dyn Files + '_ {
    /// [`open_directory`](Files::open_directory) and [`open_file`](Files::open_file) of a file that is there.
    pub(crate) fn open_path(&self, path: &Path) -> Result<File, Errno> {
        let path = std::path::absolute(path).map_err(errno)?;
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EISDIR) };
        self.open_file(&self.open_directory(above, Links::All)?, name, false)
    }
}

/// What has a name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and its text.
    Symlink(PathBuf),
    /// Something else.
    Other,
}

/// What a file or a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// The device of its file system.
    pub device: DeviceNumber,
    /// Its inode number.
    pub inode: u64,
    /// Whether it is a regular file.
    pub is_file: bool,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub owner: u32,
    /// Its length.
    pub size: Bytes,
    /// What it has of its file system.
    pub allocated: Bytes,
}

/// An exclusive `flock(2)`, released when it is dropped, but not by a child of fork, which shares it.
#[derive(Debug)]
pub struct FileLock {
    file: Option<Flock<File>>,
    owner: Process,
}

impl FileLock {
    /// Locks a file. EWOULDBLOCK if it is locked.
    pub fn try_new(file: File) -> Result<Self, Errno> {
        Self::new(file, FlockArg::LockExclusiveNonblock)
    }

    /// Locks a file, waiting while it is locked.
    pub fn wait(file: File) -> Result<Self, Errno> {
        Self::new(file, FlockArg::LockExclusive)
    }

    fn new(file: File, arg: FlockArg) -> Result<Self, Errno> {
        let file = Flock::lock(file, arg).map_err(|(_, errno)| errno)?;
        Ok(Self { file: Some(file), owner: Process::current() })
    }

    /// The file again.
    pub(crate) fn file(&self) -> Result<File, Errno> {
        self.file.as_deref().ok_or(Errno::EBADF)?.try_clone().map_err(errno)
    }

    /// The process that took it.
    pub(crate) fn owner(&self) -> Process {
        self.owner
    }

    /// As in a child of the process that took it.
    #[cfg(test)]
    pub(crate) fn inherit(&mut self) {
        self.owner = Process::parent();
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if !self.owner.is_current() {
            // To unlock it here would unlock the parent's.
            std::mem::forget(self.file.take());
        }
    }
}
