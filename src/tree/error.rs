//! The errors of a tree.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use uuid::Uuid;

use super::holders::holder::{Holder, Listed};
use super::state::reason::{RootProblem, StateAge};
use super::stream::StreamError;
use crate::dm::DmName;
use crate::kernel::{Condition, MountError, Process, ProcessName, floor_error};
use crate::thin::metadata::MetadataError;
use crate::thin::{InvalidThinId, ThinId, TransactionId};
use crate::units::{Bytes, NOT_A_SIZE, ParseBytesError};
use crate::{dm, loopdev, thin};

/// A [`Result`](std::result::Result) with this floor's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a snapshot tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pool failed.
    #[error(transparent)]
    Thin(thin::Error),

    /// A device node cannot be opened.
    #[error("open {path}: {errno}", path = path.display())]
    Open {
        /// The node.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },

    /// Mount or unmount failed.
    #[error(transparent)]
    Mount(#[from] Box<MountError>),

    /// A name that the kernel, or this crate, does not take.
    #[error("{what} {value:?}: {reason}")]
    InvalidName {
        /// The kind of name.
        what: &'static str,
        /// The name.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An invalid value.
    #[error("{option}: {value}: {reason}")]
    InvalidOption {
        /// The option or argument.
        option: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was done: `create`, `sync` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },

    /// A file that the tree needs is gone, or is there where it should not be.
    #[error("{path}: {reason}", path = path.display())]
    BackingFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },

    /// A storage option that is unknown, malformed, or has no meaning here.
    #[error("storage option {option}: {reason}")]
    StorageOption {
        /// The option as it was given.
        option: String,
        /// What is wrong with it, or what replaces it.
        reason: &'static str,
    },

    /// The metadata of a pool that is not active is damaged.
    #[error("{path}: {source}; thin_repair may save what is left", path = path.display())]
    DamagedMetadata {
        /// The metadata device or file.
        path: PathBuf,
        /// What is wrong.
        source: MetadataError,
    },

    /// Every one of the 2^24 device ids is in use.
    #[error("no free thin device id")]
    NoFreeDeviceId,

    /// The root cannot hold a tree.
    #[error("root {path}: {problem}", path = path.display())]
    Root {
        /// The root.
        path: PathBuf,
        /// What is wrong with it.
        problem: RootProblem,
    },

    /// The tree is open already. A [`SnapshotTree`](crate::tree::SnapshotTree) keeps its root locked until it is
    /// dropped.
    #[error(
        "{path} is locked by {}", holder.as_ref().map_or("another process".to_owned(), ProcessName::to_string),
        path = path.display()
    )]
    Locked {
        /// The tree's root.
        path: PathBuf,
        /// The process that holds the lock, if `/proc` shows it.
        holder: Option<ProcessName>,
    },

    /// A device of the tree is in use, and its name says that another root made it: the root is a copy of that one.
    #[error(
        "{path} is a copy of the root that {device} belongs to; nothing was changed; see Options::take_over_pool",
        path = path.display()
    )]
    OtherRoot {
        /// The root that was to be opened.
        path: PathBuf,
        /// The device's name.
        device: String,
    },

    /// The state cannot be read as what was written.
    #[error("{path}{line}: {reason}", path = path.display(), line = line.map(|line| format!(":{line}")).unwrap_or_default())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },

    /// A pool that is to be adopted is not active, and only its owner can activate it.
    #[error("device mapper has no pool {name}; its owner has to activate it first (LVM: lvchange -ay)")]
    NoPool {
        /// Its name.
        name: String,
    },

    /// A pool that is to be adopted was made by a tree, which deletes what it does not know.
    #[error("pool {pool} is the private pool of another tree and cannot be adopted")]
    PrivatePool {
        /// Its name.
        pool: String,
    },

    /// The pool carries another tree's nonce, or none.
    #[error(
        "{pool} is another tree's pool: its transaction id is {found}, this tree's is {expected}; nothing was changed. \
         If it is this tree's all the same, write that id with thin_repair --transaction-id"
    )]
    ForeignPool {
        /// The pool, or its metadata device.
        pool: String,
        /// The transaction id that this tree's pool has.
        expected: TransactionId,
        /// The one that was found.
        found: TransactionId,
    },

    /// The state is older than the pool.
    #[error(
        "the state is older than its pool ({evidence}): restored from a backup? Nothing was changed; \
         see Options::accept_older_state"
    )]
    StateOlderThanPool {
        /// What shows it.
        evidence: StateAge,
    },

    /// The pool is older than the state.
    #[error(
        "the pool is older than its state (generation {pool}, state {state}): restored from a backup? Nothing was \
         changed; see Options::accept_older_pool"
    )]
    PoolOlderThanState {
        /// The state's generation.
        state: u64,
        /// The pool's.
        pool: u64,
    },

    /// An option differs from what the tree was made with.
    #[error("{option}: the tree has {recorded}, {asked} was asked for; it cannot be changed to that")]
    OptionConflict {
        /// The option.
        option: &'static str,
        /// What the tree has.
        recorded: String,
        /// What was asked for.
        asked: String,
    },

    /// A send stream cannot be written or read.
    #[error(transparent)]
    Stream(#[from] StreamError),

    /// No snapshot has that id.
    #[error("no snapshot {id:?}")]
    UnknownSnapshot {
        /// The id.
        id: String,
    },

    /// A snapshot with that id exists.
    #[error("snapshot {id:?} exists")]
    SnapshotExists {
        /// The id.
        id: String,
    },

    /// What a snapshot was made from was removed.
    #[error("snapshot {id:?} was made from {parent:?}, which was removed")]
    ParentGone {
        /// The id.
        id: String,
        /// What it was made from.
        parent: String,
    },

    /// The snapshot is mounted.
    #[error("snapshot {id:?} is mounted on {target}", target = target.display())]
    Mounted {
        /// The id.
        id: String,
        /// Where.
        target: PathBuf,
    },

    /// Another file system is mounted over a snapshot, or its mount was moved: unmounting `target` would take
    /// down that one.
    #[error("another file system is mounted over {target}, or the snapshot's mount was moved", target = target.display())]
    Covered {
        /// Where the snapshot was mounted.
        target: PathBuf,
    },

    /// The snapshot is not mounted.
    #[error("snapshot {id:?} is not mounted")]
    NotMounted {
        /// The id.
        id: String,
    },

    /// The snapshot is not sealed: its content can change, so it has no identity.
    #[error("snapshot {id:?} is not sealed; SnapshotTree::seal makes it read-only")]
    NotSealed {
        /// The id.
        id: String,
    },

    /// The snapshot is sealed: its content is final.
    #[error("snapshot {id:?} is sealed; SnapshotTree::unseal makes it writable")]
    Sealed {
        /// The id.
        id: String,
    },

    /// The snapshot is active, and its device is read-only where it should be writable, or the other way round.
    #[error(
        "snapshot {id:?} is active with a {} device; SnapshotTree::deactivate it before",
        if *read_only { "read-only" } else { "writable" }
    )]
    ActiveOtherwise {
        /// The id.
        id: String,
        /// Whether the device is read-only.
        read_only: bool,
    },

    /// The log of a snapshot's file system is not clean, and cannot be replayed.
    #[error("snapshot {id:?} cannot be sealed, the log of its file system cannot be replayed: {source}")]
    DirtyLog {
        /// The id.
        id: String,
        /// What keeps it from being mounted.
        source: Box<Error>,
    },

    /// Snapshots that were made from it rely on its content.
    #[error("snapshot {id:?} has children ({child:?} is one)")]
    HasChildren {
        /// The id.
        id: String,
        /// One of the children.
        child: String,
    },

    /// No snapshot of this content is here, sealed.
    #[error("no sealed snapshot with content {uuid}: receive that one first, or send without a base")]
    NoBase {
        /// Identity of the content.
        uuid: Uuid,
    },

    /// The pool does not zero new blocks: what was not written in a block is what its last owner wrote.
    #[error(
        "pool {pool} does not zero new blocks: parts that were never written contain old data of others; see allow_unzeroed"
    )]
    NotZeroed {
        /// The pool's name.
        pool: String,
    },

    /// A receive failed.
    #[error("receive of {id:?} at {offset}: {source}; {}", match resume {
        Some(resume) => format!("send from {resume} on to continue"),
        None => "nothing is left of it".to_owned(),
    })]
    Receive {
        /// The snapshot that was received.
        id: String,
        /// How far it got.
        offset: Bytes,
        /// From where it can be continued; `None` if nothing is left of it.
        resume: Option<Bytes>,
        /// What failed.
        source: Box<Error>,
    },

    /// A stream goes on where no receive stopped.
    #[error("the stream of {volume} begins at {asked}; received so far: {received}")]
    NotResumable {
        /// Identity of the volume's content.
        volume: Uuid,
        /// Where the stream begins.
        asked: Bytes,
        /// What is here of the same volume with the same base.
        received: Bytes,
    },

    /// No receive of this volume waits for being continued.
    #[error("no interrupted receive of {volume}")]
    NoReceive {
        /// Identity of the volume's content.
        volume: Uuid,
    },

    /// Another call receives the volume.
    #[error("volume {volume} is being received by another call")]
    Receiving {
        /// Identity of the volume's content.
        volume: Uuid,
    },

    /// A device is open.
    #[error("{}", match snapshot {
        Some(id) => {
            format!("snapshot {id:?} is busy: {} (device {device}, open count {open_count})", Listed(holders))
        }
        None => format!("{device} is busy: {} (open count {open_count})", Listed(holders)),
    })]
    Busy {
        /// The snapshot whose device it is, if it is one's.
        snapshot: Option<String>,
        /// The device.
        device: String,
        /// How often it is open.
        open_count: u32,
        /// The processes that have it open, as far as `/proc` shows them.
        holders: Vec<Holder>,
    },

    /// A snapshot is still mounted: its file system is in use.
    #[error("snapshot {id:?} is busy: {} (mounted on {target})", Listed(holders), target = target.display())]
    MountInUse {
        /// The snapshot.
        id: String,
        /// Where it is mounted.
        target: PathBuf,
        /// The processes that use it, as far as `/proc` shows them.
        holders: Vec<Holder>,
    },

    /// A volume does not contain the file system that was made on it.
    #[error("{} contains {}", volume(id), match found {
        Some(uuid) => format!("another {filesystem} file system ({uuid}): it was overwritten"),
        None => {
            let tool = if *filesystem == "xfs" { "xfs_repair" } else { "e2fsck" };
            format!("no {filesystem} file system: it was overwritten; {tool} may restore it")
        }
    })]
    NoFilesystem {
        /// The snapshot; `None` is the base.
        id: Option<String>,
        /// The file system that was made on it.
        filesystem: &'static str,
        /// The UUID of the file system that is there, if there is one of that kind.
        found: Option<Uuid>,
    },

    /// A volume is not in the pool any more.
    #[error(
        "{} is lost: its volume (thin device {thin_id}) is not in pool {pool}, another program deleted it{}",
        volume(id), if id.is_some() { "; what is left is to remove the snapshot" } else { "" }
    )]
    VolumeGone {
        /// The snapshot; `None` is the base.
        id: Option<String>,
        /// The volume's id in the pool.
        thin_id: ThinId,
        /// The pool's name.
        pool: String,
    },

    /// The parent directory does not exist.
    #[error("{above} does not exist; create it before {path}", above = above.display(), path = path.display())]
    NoDirectory {
        /// The missing directory.
        above: PathBuf,
        /// The path that cannot be made without it.
        path: PathBuf,
    },

    /// The program that makes the file system is not installed.
    #[error("{program} is not installed (package {package}); it is needed to make the base's file system")]
    MkfsMissing {
        /// The program.
        program: String,
        /// The usual package.
        package: &'static str,
    },

    /// The program that makes or grows a file system failed.
    #[error("{program} on {device}: {status}: {output}")]
    Mkfs {
        /// The program.
        program: String,
        /// The device it worked on.
        device: String,
        /// How it ended.
        status: String,
        /// The first line of its output.
        output: String,
    },

    /// A child of the process that opened the tree used it.
    #[error("the tree was opened by process {pid}; a child of fork cannot use it")]
    Forked {
        /// The process that opened it.
        pid: u32,
    },

    /// The tree was closed.
    #[error("the tree is closed")]
    Closed,

    /// A write to the state failed in a way that leaves unknown what is on disk. Nothing more is written; opening the
    /// tree again settles it.
    #[error("the state of the tree may not have reached the disk; open the tree again")]
    StateUnknown,
}

impl From<ParseBytesError> for Error {
    fn from(error: ParseBytesError) -> Self {
        Self::InvalidOption { option: "size", value: error.text, reason: NOT_A_SIZE }
    }
}

impl From<thin::Error> for Error {
    /// An option that the pool does not take is one of the tree.
    fn from(error: thin::Error) -> Self {
        match error {
            thin::Error::InvalidOption { option, value, reason }
            | thin::Error::Dm(dm::Error::InvalidOption { option, value, reason })
            | thin::Error::Loop(loopdev::Error::InvalidOption { option, value, reason }) => {
                Self::InvalidOption { option, value, reason }
            }
            error => Self::Thin(error),
        }
    }
}

impl From<dm::Error> for Error {
    fn from(error: dm::Error) -> Self {
        thin::Error::from(error).into()
    }
}

impl From<loopdev::Error> for Error {
    fn from(error: loopdev::Error) -> Self {
        thin::Error::from(error).into()
    }
}

impl From<InvalidThinId> for Error {
    fn from(error: InvalidThinId) -> Self {
        thin::Error::from(error).into()
    }
}

impl From<MetadataError> for Error {
    fn from(error: MetadataError) -> Self {
        thin::Error::from(error).into()
    }
}

impl From<Error> for std::io::Error {
    /// With the kind of the errno, or the nearest one to the condition.
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match (error.errno(), error.condition()) {
            (Some(errno), _) => Self::from(errno).kind(),
            (None, Some(Condition::Busy)) => ErrorKind::ResourceBusy,
            (None, Some(Condition::NotFound)) => ErrorKind::NotFound,
            (None, Some(Condition::Exists)) => ErrorKind::AlreadyExists,
            (None, Some(Condition::OutOfSpace)) => ErrorKind::StorageFull,
            (None, None) => match error {
                Error::InvalidName { .. } | Error::InvalidOption { .. } | Error::StorageOption { .. } => {
                    ErrorKind::InvalidInput
                }
                Error::Corrupt { .. } | Error::Stream(_) => ErrorKind::InvalidData,
                _ => ErrorKind::Other,
            },
        };
        Self::new(kind, error)
    }
}

impl Error {
    /// Where a directory cannot be opened that is to hold `path`.
    pub(crate) fn above(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let (above, path) = (path.parent().map(PathBuf::from), path.to_owned());
        move |errno| match above {
            Some(above) if errno == Errno::ENOENT => Self::NoDirectory { above, path },
            _ => Self::io(action, path)(errno),
        }
    }

    /// An error in a child of the process.
    pub(crate) fn check_process(owner: Process) -> Result<()> {
        if owner.is_current() { Ok(()) } else { Err(Self::Forked { pid: owner.id() }) }
    }

    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Thin(error) => error.errno(),
            Self::Mount(error) => Some(error.errno),
            Self::Open { errno, .. } => Some(*errno),
            Self::MountInUse { .. } => Some(Errno::EBUSY),
            Self::NoPool { .. } => Some(Errno::ENXIO),
            Self::VolumeGone { .. } => Some(Errno::ENODATA),
            Self::NoDirectory { .. } => Some(Errno::ENOENT),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Receive { source, .. } => source.errno(),
            _ => None,
        }
    }

    pub(crate) fn condition(&self) -> Option<Condition> {
        match self {
            Self::Thin(error) => error.condition(),
            Self::Busy { .. } | Self::Mounted { .. } | Self::Covered { .. } => Some(Condition::Busy),
            Self::UnknownSnapshot { .. } => Some(Condition::NotFound),
            Self::SnapshotExists { .. } => Some(Condition::Exists),
            _ => self.errno().and_then(Condition::of),
        }
    }
}

floor_error!(Error);

fn volume(id: &Option<String>) -> String {
    id.as_ref().map_or("the base".to_owned(), |id| format!("snapshot {id:?}"))
}

/// [`SnapshotTree::with_holders`](crate::tree::SnapshotTree) adds the snapshot and the holders.
pub(in crate::tree) fn busy(device: &DmName, open_count: u32) -> Error {
    Error::Busy { snapshot: None, device: device.to_string(), open_count, holders: Vec::new() }
}

pub(in crate::tree) fn unknown(id: &str) -> Error {
    Error::UnknownSnapshot { id: id.to_owned() }
}

#[cfg(test)]
mod tests;
