use std::io;
use std::path::PathBuf;

use dm_thin::Errno;
use dm_thin::thin::metadata::MetadataError;
use dm_thin::units::Bytes;

use crate::{DeviceName, DeviceState, Finding};

/// The result of an operation on a [`Store`](crate::Store).
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of opening a store, or of an export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory, or a file that the caller has named, cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// The directory has neither files of Docker's devicemapper driver nor a pool.
    #[error("{}: neither a Docker directory with devicemapper files nor a directory with `metadata` and `data`", path.display())]
    NothingFound {
        /// The directory.
        path: PathBuf,
    },

    /// The directory has a pool alone, and that cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// No image, container or device has that name.
    #[error("no image, container or device {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },

    /// An abbreviated id that several devices have.
    #[error("{name:?} is the beginning of several ids")]
    Ambiguous {
        /// The abbreviation.
        name: String,
    },

    /// There is no pool to read the device from.
    #[error("device {device}: its pool is not in the directory, or cannot be read")]
    NoPool {
        /// The device.
        device: DeviceName,
    },

    /// The pool does not have the device.
    #[error("device {device} cannot be read: {state}")]
    NoData {
        /// The device.
        device: DeviceName,
        /// Why.
        state: DeviceState,
    },

    /// The pool's metadata is damaged.
    #[error("device {device}: {source}")]
    Metadata {
        /// The device.
        device: DeviceName,
        /// The damage.
        source: MetadataError,
    },

    /// A block of the device is not in the data file.
    #[error(
        "device {device}: block {block} is at {offset} of the data file, which has {size}; not copied completely?"
    )]
    BeyondData {
        /// The device.
        device: DeviceName,
        /// The virtual block.
        block: u64,
        /// Where its end should be.
        offset: Bytes,
        /// Size of the data file.
        size: Bytes,
    },

    /// A block is mapped beyond the end of the device.
    #[error("device {device}: block {block} is mapped, beyond its size of {size}")]
    BeyondDevice {
        /// The device.
        device: DeviceName,
        /// The virtual block.
        block: u64,
        /// Size of the device.
        size: Bytes,
    },

    /// The data file cannot be read.
    #[error("device {device}: read the data file at {offset}: {source}")]
    Read {
        /// The device.
        device: DeviceName,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        source: io::Error,
    },

    /// The output cannot be written.
    #[error("write {}: {source}", path.as_ref().map_or_else(|| "the output".into(), |path| path.to_string_lossy()))]
    Write {
        /// Its path, if it has been named.
        path: Option<PathBuf>,
        /// Why.
        source: io::Error,
    },

    /// Mounting needs root (CAP_SYS_ADMIN).
    #[error(
        "the content of a device has to be mounted, which needs root (CAP_SYS_ADMIN): {errno}; a raw image does not"
    )]
    NotPermitted {
        /// The kernel's answer.
        errno: Errno,
    },

    /// A device has neither an ext4 nor an XFS file system.
    #[error("device {device}: neither an ext4 nor an XFS file system")]
    NoFilesystem {
        /// The device.
        device: DeviceName,
    },

    /// No loop device for the copy, or for a loop file.
    #[error("{source}")]
    Loop {
        /// Why.
        source: Box<dm_thin::loopdev::Error>,
    },

    /// The file system cannot be mounted.
    #[error("device {device}: mount: {errno}; `fsck` of a raw image may repair it")]
    Mount {
        /// The device.
        device: DeviceName,
        /// The kernel's answer.
        errno: Errno,
    },

    /// The file system has no directory `rootfs`: it is the base device's, or not Docker's.
    #[error("device {device}: no directory rootfs")]
    NoRootfs {
        /// The device.
        device: DeviceName,
    },

    /// The tree could not mount the device.
    #[error(
        "device {device} has a file system of type {found}, the tree {expected}; make a tree with --filesystem {found}"
    )]
    OtherFilesystem {
        /// The device.
        device: DeviceName,
        /// The device's type.
        found: &'static str,
        /// The tree's.
        expected: &'static str,
    },

    /// The tree has a snapshot of that id that is no copy of the device: of a device of another Docker directory, or of no device.
    #[error(
        "device {device}: the tree has another snapshot {id:?}; adopt each directory into a tree of its own"
    )]
    OtherSnapshot {
        /// The device.
        device: DeviceName,
        /// The snapshot's id.
        id: String,
    },

    /// The pool has another base device than Docker has recorded.
    #[error(
        "{finding}; an empty directory, with the pool's metadata and data named, has its devices without names"
    )]
    OtherBase {
        /// What was found.
        finding: Finding,
    },

    /// The tree's pool does not zero new blocks: where the devices have nothing, others' old data would be.
    #[error("pool {pool} does not zero new blocks (skip_block_zeroing)")]
    NotZeroed {
        /// The pool.
        pool: String,
    },

    /// Docker or another program has the pool active, or one of its loop files attached.
    #[error("{}: its pool is in use by {by}; stop Docker, and remove what it has left active", path.display())]
    PoolInUse {
        /// The directory.
        path: PathBuf,
        /// The pool, or the loop device.
        by: String,
    },

    /// The tree's pool is not that of the directory.
    #[error("pool {pool} is not the one of this directory: {reason}")]
    OtherPool {
        /// The tree's pool.
        pool: String,
        /// What differs.
        reason: String,
    },

    /// The pool cannot be activated or removed.
    #[error("{source}")]
    Thin {
        /// Why.
        source: Box<dm_thin::thin::Error>,
    },

    /// The tree refuses a snapshot.
    #[error("{source}")]
    Tree {
        /// Why.
        source: Box<dm_thin::tree::Error>,
    },
}

impl From<dm_thin::tree::Error> for Error {
    fn from(source: dm_thin::tree::Error) -> Self {
        Self::Tree { source: Box::new(source) }
    }
}

impl From<dm_thin::thin::Error> for Error {
    fn from(source: dm_thin::thin::Error) -> Self {
        Self::Thin { source: Box::new(source) }
    }
}

impl From<dm_thin::dm::Error> for Error {
    fn from(source: dm_thin::dm::Error) -> Self {
        dm_thin::thin::Error::from(source).into()
    }
}

impl From<dm_thin::loopdev::Error> for Error {
    fn from(source: dm_thin::loopdev::Error) -> Self {
        Self::Loop { source: Box::new(source) }
    }
}
