//! Mounts: reserved and recognised by what they are, not by their paths.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::kernel::{DeviceNumber, Directory, Kernel, Links, MountId};
use crate::tree::{Error, Result};

/// A directory by the one above it and its name: what is mounted on it, and what it covers, are found from there.
#[derive(Debug)]
pub(in crate::tree) struct MountPoint {
    pub(in crate::tree) above: Directory,
    pub(in crate::tree) name: OsString,
}

impl MountPoint {
    pub(in crate::tree) fn open(kernel: &dyn Kernel, path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
        let (Some(above), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(bad_target(path, "does not end in the name of a directory"));
        };
        let directory = kernel.files().open_directory(above, Links::Trusted);
        let directory = directory.map_err(Error::above("open", &absolute))?;
        Ok(Self { above: directory, name: name.to_owned() })
    }

    pub(in crate::tree) fn path(&self) -> PathBuf {
        self.above.path().join(&self.name)
    }

    /// The directory, or what is mounted on it; `None` if it does not exist.
    pub(in crate::tree) fn top(&self, kernel: &dyn Kernel) -> Result<Option<Directory>> {
        match kernel.files().enter_directory(&self.above, &self.name) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                Err(bad_target(&self.path(), "not a directory; a symbolic link is not followed"))
            }
            Err(errno) => Err(Error::io("open", self.path())(errno)),
        }
    }

    pub(in crate::tree) fn is_same(&self, other: &Self) -> bool {
        self.above.mount() == other.above.mount()
            && self.above.inode() == other.above.inode()
            && self.name == other.name
    }

    /// Removes the directory, if it is the one of that identity and empty.
    pub(in crate::tree) fn remove(&self, kernel: &dyn Kernel, covered: Covered) {
        if self.top(kernel).is_ok_and(|top| top.is_some_and(|top| Covered::of(&top) == covered)) {
            // Somebody may have put something into it: then it is theirs now.
            let _ = kernel.files().remove_directory(&self.above, &self.name);
        }
    }
}

pub(in crate::tree) fn bad_target(path: &Path, reason: &'static str) -> Error {
    Error::InvalidOption { option: "mount target", value: path.display().to_string(), reason }
}

/// Identity of a directory that is mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::tree) struct Covered {
    device: DeviceNumber,
    inode: u64,
}

impl Covered {
    pub(in crate::tree) fn of(directory: &Directory) -> Self {
        Self { device: directory.mount().device, inode: directory.inode() }
    }
}

/// A mount of a volume, and how often it was asked for.
#[derive(Debug)]
pub(in crate::tree) struct Mounted {
    pub(in crate::tree) target: PathBuf,
    pub(in crate::tree) count: u32,
    pub(in crate::tree) id: MountId,
    pub(in crate::tree) place: MountPoint,
}

impl Mounted {
    /// A path that leads there whatever happens to the names above it.
    pub(in crate::tree) fn path(&self) -> PathBuf {
        self.place.above.proc_path().join(&self.place.name)
    }

    pub(in crate::tree) fn id(&self) -> MountId {
        self.id
    }

    /// Its own directory. Nobody can unmount it as long as that is open.
    pub(in crate::tree) fn root(&self, kernel: &dyn Kernel) -> Result<Directory> {
        let covered = || Error::Covered { target: self.target.clone() };
        self.place.top(kernel)?.filter(|top| top.mount() == self.id).ok_or_else(covered)
    }
}

/// Where a mount is that this tree made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tree) enum Where {
    OnTop,
    /// Another mount lies over it, or it was moved elsewhere.
    Covered,
    Gone,
}
