//! The open device of an active snapshot.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::kernel::{Access, DeviceFile, DeviceNumber, Kernel};
use crate::thin::ThinVolume;
use crate::tree::{Error, Result};

/// How the device of a snapshot is made.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DeviceOptions {
    pub(in crate::tree) read_only: bool,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
}

impl DeviceOptions {
    /// Writable unless the snapshot is sealed, with a node that belongs to root: mode 0600, or what udev's rules say.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses writes (a read-only table): also those of a file system that replays its log, which then cannot be mounted
    /// if its log is not clean. Of a sealed snapshot the device is always read-only.
    #[must_use]
    #[doc(alias = "DM_READONLY_FLAG")]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Gives the node to a user and a group (`fchown(2)`), for a process that runs as that user. Where udev runs, an
    /// event of the device (a resize) has udev set its group and mode anew: a udev rule is what lasts there.
    #[must_use]
    pub fn owner(mut self, user: u32, group: u32) -> Self {
        self.owner = Some((user, group));
        self
    }

    /// Sets the permissions of the node (`fchmod(2)`), such as `0o660`.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }
}

/// The device of an active snapshot, open: it is the snapshot's device whatever becomes of names and numbers, and a
/// process that it is passed to needs no access to `/dev`.
///
/// As long as it is open, the snapshot cannot be [deactivated](crate::tree::SnapshotTree::deactivate). Dropping it closes
/// it; the snapshot stays active.
#[derive(Debug)]
pub struct SnapshotDevice {
    file: DeviceFile,
    path: PathBuf,
}

impl SnapshotDevice {
    pub(in crate::tree) fn open(
        kernel: &dyn Kernel,
        volume: &ThinVolume,
        read_only: bool,
        options: &DeviceOptions,
    ) -> Result<Self> {
        let file = volume.open(if read_only { Access::READ } else { Access::READ_WRITE })?;
        let path = volume.path();
        if let Some(mode) = options.mode {
            let valid = if mode > 0o7777 { Err(Errno::EINVAL) } else { Ok(()) };
            let set = valid.and_then(|()| kernel.set_node_mode(&file, mode));
            set.map_err(Error::io("set the mode of", &path))?;
        }
        // Last: this process may not be allowed to change what is another user's.
        if let Some((user, group)) = options.owner {
            kernel.set_node_owner(&file, user, group).map_err(Error::io("set the owner of", &path))?;
        }
        Ok(Self { file, path })
    }

    /// The path of its node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.file.number()
    }
}

impl AsFd for SnapshotDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for SnapshotDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
