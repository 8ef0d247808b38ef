//! What can go wrong, typed.

use std::fmt;
use std::path::PathBuf;

use nix::errno::Errno;
use uuid::Uuid;

use crate::dm::{DmVersion, TargetType};
use crate::kernel::{Condition, DeviceNumber, IoctlError, MountError, Process, ProcessName, predicates};
use crate::tree::{Holder, Listed};
use crate::units::{Bytes, NOT_A_SIZE, ParseBytesError};

/// The result of almost everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ── kernel interface ──
    /// An ioctl failed.
    #[error(transparent)]
    Ioctl(#[from] Box<IoctlError>),

    /// A device node cannot be opened.
    #[error("open {path}: {errno}", path = path.display())]
    Open {
        /// The node.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },

    /// The caller lacks CAP_SYS_ADMIN.
    #[error("{what}: not permitted; root (CAP_SYS_ADMIN) is needed")]
    NotPermitted {
        /// What was tried.
        what: String,
    },

    /// The kernel has no device mapper, or its module is not loaded.
    #[error("no device mapper: {path}: {errno}; load the modules dm-mod and dm-thin-pool", path = path.display())]
    NoDeviceMapper {
        /// The control node that is missing.
        path: PathBuf,
        /// Why it cannot be opened.
        errno: Errno,
    },

    /// The kernel does not know a target type, and has no module for it.
    #[error("the kernel has no device-mapper target {target}; load the module {}", target.module())]
    NoTarget {
        /// The target type.
        target: TargetType,
    },

    /// The kernel has no loop devices.
    // The path is for people.
    #[error("no loop devices: neither /dev/loop-control nor /sys/block/loop*; load the module loop")]
    NoLoopDevices,

    /// Every loop device is taken.
    #[error("no free loop device: {tried} tried")]
    NoFreeLoopDevice {
        /// How many were tried.
        tried: u32,
    },

    /// The kernel's device-mapper interface is too old for the request.
    #[error("{ioctl} needs device-mapper interface 4.{needed}, the kernel has {kernel}")]
    TooOld {
        /// The ioctl.
        ioctl: &'static str,
        /// The minor version that it needs.
        needed: u32,
        /// The kernel's version.
        kernel: DmVersion,
    },

    /// The kernel, or a file, said something that cannot be understood.
    #[error("malformed {what}: {raw:?}")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// What it is; cut after some hundred bytes.
        raw: String,
    },

    /// The answer outgrew every buffer that this crate is ready to give.
    #[error("the answer to {ioctl} on {device} does not fit into {capacity} bytes")]
    AnswerTooLarge {
        /// The ioctl.
        ioctl: &'static str,
        /// What it was about.
        device: String,
        /// The largest buffer given.
        capacity: usize,
    },

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

    /// A value that makes no sense.
    #[error("{option}: {value}: {reason}")]
    InvalidOption {
        /// What it was given for.
        option: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
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

    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was done: `create`, `sync` …
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },

    /// Mount or unmount failed.
    #[error(transparent)]
    Mount(#[from] Box<MountError>),

    // ── thin pool ──
    /// A device is not what it should be.
    #[error("{device} is a {found:?} device, not {expected:?}")]
    WrongTarget {
        /// The device.
        device: String,
        /// Its target type; empty if it has no table.
        found: String,
        /// The type that was expected.
        expected: &'static str,
    },

    /// A device is not the one that was opened: that one is gone, and its name or number is another one's.
    #[error("{device} is another device now: {found} instead of {expected}")]
    Replaced {
        /// The device's name.
        device: String,
        /// The number of the one that was opened.
        expected: DeviceNumber,
        /// The number that was found.
        found: DeviceNumber,
    },

    /// The pool cannot do what was asked in the mode it is in.
    #[error("pool {pool} is {mode}: {consequence}")]
    PoolMode {
        /// The pool's name.
        pool: String,
        /// The mode it is in.
        mode: crate::thin::PoolMode,
        /// What that means for the operation.
        consequence: &'static str,
    },

    /// Less is free than must stay free.
    #[error(
        "pool {pool}: {free:#} of {space} free, at least {needed:#} required ({}); {}", space.option(), space.remedy()
    )]
    LowSpace {
        /// The pool's name.
        pool: String,
        /// Of what.
        space: crate::thin::Space,
        /// What is free.
        free: Bytes,
        /// What has to be.
        needed: Bytes,
    },

    /// The pool's one metadata snapshot is held: by a program that reads it, or left by one that was killed.
    #[error(
        "the metadata snapshot of pool {pool} is held; if nobody reads it any more, release_metadata_snap lets go of it"
    )]
    MetadataSnapHeld {
        /// The pool's name.
        pool: String,
    },

    /// The metadata snapshot that was just reserved is gone: another program released it.
    #[error("the metadata snapshot of pool {pool} was released by another program")]
    MetadataSnapGone {
        /// The pool's name.
        pool: String,
    },

    /// The pool's metadata cannot be read as what the kernel wrote.
    #[error(transparent)]
    Metadata(#[from] crate::thin::metadata::MetadataError),

    /// The metadata of a pool that is not active is damaged.
    #[error("{path}: {source}; thin_repair may save what is left", path = path.display())]
    DamagedMetadata {
        /// The metadata device or file.
        path: PathBuf,
        /// What is wrong.
        source: crate::thin::metadata::MetadataError,
    },

    /// A device that a pool is to be made on contains something already.
    #[error("{device} contains {found}; set force_device to overwrite it", device = device.display())]
    DeviceInUse {
        /// The device.
        device: PathBuf,
        /// What it contains, as `blkid` names it where that is installed.
        found: String,
    },

    /// A device has no label of this crate.
    #[error("{device} has no dm-thin label", device = device.display())]
    NoLabel {
        /// The device.
        device: PathBuf,
    },

    /// A program for the pool's metadata is not installed.
    #[error("{program} is not installed (package {package})")]
    ToolMissing {
        /// The program.
        program: &'static str,
        /// The usual package.
        package: &'static str,
    },

    /// A program for the pool's metadata failed, or found something wrong.
    #[error("{program} on {device}: {status}: {output}")]
    Tool {
        /// The program.
        program: &'static str,
        /// The device it worked on.
        device: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        output: String,
    },

    /// Something that stays as it is as long as the device is in use.
    #[error("{what} of {device} is {is}; it cannot become {asked}")]
    Unchangeable {
        /// The device.
        device: String,
        /// What of it.
        what: &'static str,
        /// What it is.
        is: String,
        /// What was asked for.
        asked: String,
    },

    /// Every one of the 2^24 device ids is in use.
    #[error("no free thin device id")]
    NoFreeDeviceId,

    // ── snapshot tree ──
    /// The root cannot hold a tree.
    #[error("root {path}: {problem}", path = path.display())]
    Root {
        /// The root.
        path: PathBuf,
        /// What is wrong with it.
        problem: RootProblem,
    },

    /// The tree is open already. A [`SnapshotTree`](crate::tree::SnapshotTree) keeps its root locked until it is dropped.
    #[error(
        "{path} is locked by {}", holder.as_ref().map_or("another process".to_owned(), ProcessName::to_string),
        path = path.display()
    )]
    Locked {
        /// The tree's root.
        path: PathBuf,
        /// Who has it, if `/proc` shows that.
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
    #[error("pool {pool} belongs to another tree alone, and cannot be adopted")]
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
        expected: crate::thin::TransactionId,
        /// The one that was found.
        found: crate::thin::TransactionId,
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

    /// A file that the tree needs is gone, or is there where it should not be.
    #[error("{path}: {reason}", path = path.display())]
    BackingFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
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
    Stream(#[from] crate::tree::stream::StreamError),

    /// No snapshot of that id.
    #[error("no snapshot {id:?}")]
    UnknownSnapshot {
        /// The id.
        id: String,
    },

    /// A snapshot of that id is there already.
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

    /// Another file system is mounted over a snapshot, or somebody moved its mount: unmounting `target` would take
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

    /// Snapshots that were made from it rely on its content.
    #[error("snapshot {id:?} has children ({child:?} is one); it stays sealed")]
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
        /// How far it came.
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
    #[error("no receive of {volume} waits for being continued")]
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

    /// A device is held open by somebody.
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
        /// By whom, as far as `/proc` shows that.
        holders: Vec<Holder>,
    },

    /// A snapshot is still mounted: its file system is in use.
    #[error("snapshot {id:?} is busy: {} (mounted on {target})", Listed(holders), target = target.display())]
    MountInUse {
        /// The snapshot.
        id: String,
        /// Where it is mounted.
        target: PathBuf,
        /// Who uses it, as far as `/proc` shows that.
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
        thin_id: crate::thin::ThinId,
        /// The pool's name.
        pool: String,
    },

    /// The directory that is to hold another one is not there.
    #[error("{above} does not exist; create it before {path}", above = above.display(), path = path.display())]
    NoDirectory {
        /// The one that is not there.
        above: PathBuf,
        /// The one that it is to hold.
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
        /// The first line of what it said.
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

/// What shows that a state is older than its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StateAge {
    /// The pool's generation has risen since.
    Generation {
        /// The state's generation.
        state: u64,
        /// The pool's.
        pool: u64,
    },
    /// A volume that the state does not know was in use.
    UnknownVolume {
        /// Its thin device id.
        thin_id: crate::thin::ThinId,
    },
}

impl fmt::Display for StateAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation { state, pool } => write!(f, "generation {state}, pool {pool}"),
            Self::UnknownVolume { thin_id } => {
                write!(f, "thin device {thin_id} was in use, and the state does not know it")
            }
        }
    }
}

/// What keeps a directory from being a tree's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RootProblem {
    /// It is not a directory.
    NotDirectory,
    /// It is a symbolic link.
    Symlink,
    /// Somebody else could write to it.
    WritableByOthers {
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    WrongOwner {
        /// Its owner.
        uid: u32,
    },
}

impl fmt::Display for RootProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDirectory => f.write_str("not a directory"),
            Self::Symlink => f.write_str("a symbolic link"),
            Self::WritableByOthers { mode } => write!(f, "writable by others (mode {mode:04o})"),
            Self::WrongOwner { uid } => write!(f, "owned by user {uid}"),
        }
    }
}

impl From<ParseBytesError> for Error {
    fn from(error: ParseBytesError) -> Self {
        Self::InvalidOption { option: "size", value: error.text, reason: NOT_A_SIZE }
    }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The same with an errno, as the seam gives it.
    pub(crate) fn os(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let error = Self::io(action, path);
        move |errno| error(errno.into())
    }

    /// The same where a directory cannot be opened that is to hold `path`.
    pub(crate) fn above(action: &'static str, path: &std::path::Path) -> impl FnOnce(Errno) -> Self {
        let (above, path) = (path.parent().map(PathBuf::from), path.to_owned());
        move |errno| match above {
            Some(above) if errno == Errno::ENOENT => Self::NoDirectory { above, path },
            _ => Self::os(action, path)(errno),
        }
    }

    /// The same, told of a device by its name, however the request addressed it.
    pub(crate) fn of_device(mut self, name: &dyn fmt::Display) -> Self {
        if let Self::Ioctl(refused) = &mut self {
            refused.device = name.to_string();
        }
        self
    }

    /// An error in a child of the process.
    pub(crate) fn check_process(owner: Process) -> Result<()> {
        if owner.is_current() { Ok(()) } else { Err(Self::Forked { pid: owner.id() }) }
    }

    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Ioctl(error) => Some(error.errno),
            Self::Mount(error) => Some(error.errno),
            Self::Open { errno, .. } | Self::NoDeviceMapper { errno, .. } => Some(*errno),
            Self::NotPermitted { .. } => Some(Errno::EPERM),
            Self::MetadataSnapHeld { .. } | Self::MountInUse { .. } => Some(Errno::EBUSY),
            Self::NoPool { .. } => Some(Errno::ENXIO),
            Self::VolumeGone { .. } => Some(Errno::ENODATA),
            Self::NoDirectory { .. } => Some(Errno::ENOENT),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Receive { source, .. } => source.errno(),
            _ => None,
        }
    }

    pub(crate) fn condition(&self) -> Option<Condition> {
        use crate::thin::PoolMode;
        match self {
            Self::Busy { .. } | Self::Mounted { .. } | Self::Covered { .. } => Some(Condition::Busy),
            Self::UnknownSnapshot { .. } | Self::Replaced { .. } => Some(Condition::NotFound),
            Self::SnapshotExists { .. } => Some(Condition::Exists),
            Self::PoolMode { mode: PoolMode::OutOfDataSpace, .. } | Self::LowSpace { .. } => {
                Some(Condition::OutOfSpace)
            }
            _ => self.errno().and_then(Condition::of),
        }
    }
}

predicates!(Error);

fn volume(id: &Option<String>) -> String {
    id.as_ref().map_or("the base".to_owned(), |id| format!("snapshot {id:?}"))
}
