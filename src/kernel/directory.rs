//! Directories that something is, or will be, mounted on: opened with O_PATH, compared by mount, device and inode.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, fstat};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use super::DeviceNumber;
use super::error::errno;

/// What identifies a mount. The kernel reuses plain ids at once, so the device number counts, too.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct MountId {
    /// The id in `/proc/self/mountinfo`.
    pub id: u64,
    /// The id that is never used again (STATX_MNT_ID_UNIQUE, since 6.8).
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub unique: Option<u64>,
    /// The device of its file system.
    pub device: DeviceNumber,
}

impl PartialEq for MountId {
    fn eq(&self, other: &Self) -> bool {
        let ids = match (self.unique, other.unique) {
            (Some(one), Some(other)) => one == other,
            _ => self.id == other.id,
        };
        ids && self.device == other.device
    }
}

/// Which symbolic links are followed on the way to a directory.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// All, as `open(2)` does.
    All,
    /// Those that belong to root or to this process's user, so that no other user decides where it leads.
    Trusted,
}

/// A directory opened with O_PATH. One that something is mounted on is the root of what is on top.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    inode: u64,
    mount: MountId,
}

/// As many symbolic links as the kernel follows in one path.
const LINKS_MAX: u32 = 40;

const FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Directory {
    /// Opens `path`.
    ///
    /// # Errors
    /// As `open(2)`; EACCES for a symbolic link that is not followed.
    pub fn open(path: &Path, links: Links) -> Result<Self, Errno> {
        if links == Links::All {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            return Self::found(open(path, flags, Mode::empty())?);
        }
        let path = std::path::absolute(path).map_err(errno)?;
        let mut left = reversed(&path);
        let mut at = open("/", FLAGS | OFlag::O_DIRECTORY, Mode::empty())?;
        let mut links = 0;
        while let Some(name) = left.pop() {
            let next = openat(&at, name.as_os_str(), FLAGS, Mode::empty())?;
            let stat = fstat(&next)?;
            match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFDIR => at = next,
                SFlag::S_IFLNK if links == LINKS_MAX => return Err(Errno::ELOOP),
                SFlag::S_IFLNK if ![0, nix::unistd::geteuid().as_raw()].contains(&stat.st_uid) => {
                    return Err(Errno::EACCES);
                }
                SFlag::S_IFLNK => {
                    links += 1;
                    let text = PathBuf::from(readlinkat(&next, "")?);
                    if text.is_absolute() {
                        at = open("/", FLAGS | OFlag::O_DIRECTORY, Mode::empty())?;
                    }
                    left.extend(reversed(&text));
                }
                _ => return Err(Errno::ENOTDIR),
            }
        }
        Self::found(at)
    }

    /// Opens the directory `name` in this one; a symbolic link is not followed (ENOTDIR).
    ///
    /// # Errors
    /// As `openat(2)`.
    pub fn enter(&self, name: &OsStr) -> Result<Self, Errno> {
        let fd = openat(&self.fd, name, FLAGS | OFlag::O_DIRECTORY, Mode::empty())?;
        Self::new(fd, self.path.join(name))
    }

    /// The kernel knows its path.
    fn found(fd: OwnedFd) -> Result<Self, Errno> {
        let path = std::fs::read_link(proc_path(&fd)).map_err(errno)?;
        Self::new(fd, path)
    }

    fn new(fd: OwnedFd, path: PathBuf) -> Result<Self, Errno> {
        let stat = fstat(&fd)?;
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        let device = DeviceNumber::from_dev_t(stat.st_dev.try_into().map_err(|_| Errno::EOVERFLOW)?);
        let (plain, unique) = crate::sys::mount_ids(fd.as_fd());
        let id = plain.map_or_else(|| mount_id_of(&fd), Ok)?;
        #[allow(clippy::useless_conversion)]
        let inode = stat.st_ino.into();
        Ok(Self { path, inode, mount: MountId { id, unique, device }, fd })
    }

    /// A directory that only a kernel that is not real has.
    ///
    /// # Errors
    /// As `memfd_create(2)`.
    pub fn simulated(path: PathBuf, inode: u64, mount: MountId) -> Result<Self, Errno> {
        let fd = memfd_create("directory", MFdFlags::MFD_CLOEXEC)?;
        Ok(Self { fd, path, inode, mount })
    }

    /// The same directory, with another mount on it: for kernels that are not real.
    #[must_use]
    pub fn with_mount(self, mount: MountId) -> Self {
        Self { mount, ..self }
    }

    /// Its path when it, or the directory that it was [entered](Self::enter) from, was opened; without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its current path: it may have been renamed.
    pub fn current_path(&self) -> PathBuf {
        std::fs::read_link(self.proc_path()).unwrap_or_else(|_| self.path.clone())
    }

    /// Its inode number.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The mount that it is in.
    pub fn mount(&self) -> MountId {
        self.mount
    }

    /// A path that leads to this very directory, and to what is mounted on it, whatever it is called by now.
    pub fn proc_path(&self) -> PathBuf {
        proc_path(&self.fd)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The components of a path but its root, last first.
fn reversed(path: &Path) -> Vec<OsString> {
    let components = path.components().filter(|component| *component != Component::RootDir);
    components.rev().map(|component| component.as_os_str().to_owned()).collect()
}

/// The mount id on kernels before 5.8.
fn mount_id_of(fd: &OwnedFd) -> Result<u64, Errno> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(errno)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or(Errno::ENOSYS)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_open_follows_links() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().canonicalize().unwrap().join(name);
        fs::create_dir_all(path("a/b")).unwrap();
        symlink("b", path("a/last")).unwrap();
        symlink(path("a"), path("before")).unwrap();
        let above = Directory::open(&path("a"), Links::Trusted).unwrap();
        assert_eq!(above.enter(OsStr::new("last")).unwrap_err(), Errno::ENOTDIR);
        // Made by this user.
        let through = Directory::open(&path("before/../before/b/."), Links::Trusted).unwrap();
        assert_eq!(through.path(), path("a/b"));
        assert_eq!(through.inode(), above.enter(OsStr::new("b")).unwrap().inode());
        symlink("loop", path("loop")).unwrap();
        assert_eq!(Directory::open(&path("loop"), Links::Trusted).unwrap_err(), Errno::ELOOP);
    }

    #[test]
    fn both_ways_tell_the_same_mount() {
        let directory = Directory::open(Path::new("/proc"), Links::All).unwrap();
        assert_eq!(mount_id_of(&directory.fd), Ok(directory.mount().id));
        assert_ne!(Directory::open(Path::new("/"), Links::All).unwrap().mount(), directory.mount());
    }
}
