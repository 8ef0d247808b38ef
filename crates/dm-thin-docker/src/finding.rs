use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use dm_thin::thin::{ThinId, TransactionId};
use dm_thin::units::Bytes;
use serde::Serialize;
use uuid::Uuid;

use crate::DeviceName;

/// Something that is not as it should be, or that Docker would have repaired. Files are named relative to the
/// directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// A file or directory cannot be read.
    #[error("{}: {reason}", Shown(file))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },

    /// A symbolic link, device, socket or FIFO in place of a file or directory.
    #[error("{}: a symbolic link or special file, not read", Shown(file))]
    NotRegular {
        /// The file.
        file: PathBuf,
    },

    /// A file larger than any that Docker writes.
    #[error("{}: larger than {}, not read", Shown(file), Bytes(*limit))]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Size limit in bytes.
        limit: u64,
    },

    /// A directory with more entries than are read.
    #[error("{}: more than {limit} entries; the others were not read", Shown(directory))]
    TooManyEntries {
        /// The directory.
        directory: PathBuf,
        /// The limit.
        limit: usize,
    },

    /// A file whose name is none that Docker gives.
    #[error("{}: not a file of Docker's, not read", Shown(file))]
    UnknownFile {
        /// The file.
        file: PathBuf,
    },

    /// An empty file, which Docker does not write: its content was lost in a crash.
    #[error("{}: empty", Shown(file))]
    EmptyFile {
        /// The file.
        file: PathBuf,
    },

    /// JSON that cannot be parsed, or that is not what is expected.
    #[error("{}: {reason}", Shown(file))]
    BadJson {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },

    /// A value that is not what it should be.
    #[error("{}: {what} is {value:?}; ignored", Shown(file))]
    BadValue {
        /// The file.
        file: PathBuf,
        /// Which value.
        what: &'static str,
        /// The value, at most 80 characters of it.
        value: String,
    },

    /// A layer's parent has no directory in `layerdb`.
    #[error("layer {layer}: its parent {parent} is missing")]
    MissingParent {
        /// Chain id of the layer.
        layer: String,
        /// Chain id of the parent.
        parent: String,
    },

    /// A layer that descends from itself. It is listed without a parent.
    #[error("layer {layer} descends from itself; its parent is ignored")]
    LayerLoop {
        /// Chain id of the layer.
        layer: String,
    },

    /// A device of several layers or containers: at most one of them is right.
    #[error("device {device} belongs to {first} and to {second}")]
    SameDevice {
        /// The device.
        device: DeviceName,
        /// Kind and id of a layer or container.
        first: String,
        /// Those of another one.
        second: String,
    },

    /// A device that would descend from itself, because several layers or containers have it. It is listed without a parent.
    #[error("device {device} descends from itself; its parent is ignored")]
    DeviceLoop {
        /// The device.
        device: DeviceName,
    },

    /// An image, layer or container whose layer or device is missing.
    #[error("{owner} needs {missing}, which is missing")]
    MissingReference {
        /// Kind and id of the image, layer or container.
        owner: String,
        /// Kind and id of what is missing.
        missing: String,
    },

    /// Docker's files name no pool in the directory.
    #[error("no pool in the directory: metadata and data of a direct LVM pool have to be named")]
    NoPool,

    /// The pool's metadata cannot be read.
    #[error("pool metadata: {reason}")]
    PoolUnreadable {
        /// Why.
        reason: String,
    },

    /// The pool is active, or one of its files attached to a loop device. What is read of it while it changes is
    /// inconsistent.
    #[error("the pool is in use by {by}: what is read while it changes is inconsistent")]
    PoolInUse {
        /// A loop device, or the device above a pool's.
        by: String,
    },

    /// The kernel has noted that the metadata must be checked.
    #[error("the pool's metadata is marked as needing a check (thin_check)")]
    NeedsCheck,

    /// The data file is shorter than the pool.
    #[error("the data file has {found}, the pool {expected}: not copied completely?")]
    DataTooShort {
        /// Size of the pool.
        expected: Bytes,
        /// Size of the file.
        found: Bytes,
    },

    /// Docker's operation on a device was interrupted. The device may be incomplete.
    #[error(
        "the operation on device {} (thin id {thin_id}) was interrupted: Docker's transaction is {open}, the pool's {pool}",
        device.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string)
    )]
    Interrupted {
        /// The device, if the file names one.
        device: Option<DeviceName>,
        /// Its thin id.
        thin_id: i64,
        /// Transaction id that Docker has begun.
        open: TransactionId,
        /// Transaction id of the pool.
        pool: TransactionId,
    },

    /// The pool is newer than Docker's files, or another one.
    #[error(
        "the pool's transaction id {pool} is above Docker's {open}: not this directory's pool, or restored files"
    )]
    PoolNewer {
        /// Transaction id of Docker's files.
        open: TransactionId,
        /// Transaction id of the pool.
        pool: TransactionId,
    },

    /// The pool is older than Docker's files, or another one.
    #[error(
        "the pool's transaction id {pool} is {} below Docker's {open}: not this directory's pool, or a restored pool",
        open.0 - pool.0
    )]
    PoolOlder {
        /// Transaction id of Docker's files.
        open: TransactionId,
        /// Transaction id of the pool.
        pool: TransactionId,
    },

    /// The base device was not completed.
    #[error("the base device was not completed")]
    HalfMadeBase,

    /// The base device has another file system than Docker has recorded: not this directory's pool.
    #[error(
        "the base device's file system has UUID {found}, Docker has recorded {recorded}: not this directory's pool?"
    )]
    OtherBase {
        /// UUID in `deviceset-metadata`.
        recorded: Uuid,
        /// UUID on the device.
        found: Uuid,
    },

    /// Docker has deleted the device and not removed it yet.
    #[error("device {device} is deleted; its removal was not completed")]
    Deleted {
        /// The device.
        device: DeviceName,
    },

    /// The pool does not have the device.
    #[error("device {device}: the pool has no thin device {thin_id}")]
    Lost {
        /// The device.
        device: DeviceName,
        /// Its thin id.
        thin_id: ThinId,
    },

    /// Several devices have the same thin id: at most one of them is right.
    #[error("devices {first} and {second} have the same thin id {thin_id}")]
    SameThinId {
        /// A device.
        first: DeviceName,
        /// Another one.
        second: DeviceName,
        /// Their thin id.
        thin_id: ThinId,
    },

    /// Neither a layer nor a container has the device: what had it is lost, or its file was.
    #[error("device {device} is no layer's and no container's")]
    NoOwner {
        /// The device.
        device: DeviceName,
    },

    /// The pool has a device that no file of Docker's names.
    #[error("thin device {thin_id} ({mapped} mapped) is in no file of Docker's")]
    Stranded {
        /// Its thin id.
        thin_id: ThinId,
        /// Size of what it maps.
        mapped: Bytes,
    },
}

impl Finding {
    pub(crate) fn unreadable(file: PathBuf, error: &io::Error) -> Self {
        Self::Unreadable { file, reason: error.to_string() }
    }

    pub(crate) fn bad_json(file: PathBuf, len: usize, error: &serde_json::Error) -> Self {
        if len == 0 {
            Self::EmptyFile { file }
        } else {
            Self::BadJson { file, reason: printable(&error.to_string()) }
        }
    }

    pub(crate) fn bad_value(file: PathBuf, what: &'static str, value: &str) -> Self {
        Self::BadValue { file, what, value: value.chars().take(80).collect() }
    }
}

/// Error texts quote what they were made of.
fn printable(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// A path whose control characters are escaped.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_string_lossy().escape_debug().fmt(f)
    }
}
