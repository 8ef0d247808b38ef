//! The findings of a check.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::dm::DmName;
use crate::thin::{PoolMode, ThinId, TransactionId};
use crate::tree::SnapshotId;
use crate::units::Bytes;

/// A difference between the state of a tree and the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// The pool is not in the mode in which everything works.
    Pool {
        /// Its mode.
        mode: PoolMode,
        /// Its metadata has to be checked before it will be writable again.
        needs_check: bool,
    },
    /// The pool's metadata snapshot is held, or was leaked by a process that died. It pins more and more space:
    /// [`ThinPool::release_metadata_snap`](crate::thin::ThinPool::release_metadata_snap).
    MetadataSnapHeld,
    /// Transaction id mismatch: the pool's is not the one of the state's generation.
    Generation {
        /// The state's generation, which the pool's transaction id follows.
        state: TransactionId,
        /// The pool's transaction id.
        pool: TransactionId,
    },
    /// A volume that the state lists is not in the pool. What was on it is lost.
    MissingVolume {
        /// The snapshot; `None` is the base.
        id: Option<SnapshotId>,
        /// Its id in the pool.
        thin_id: ThinId,
    },
    /// The pool has a volume that the state does not list.
    UnknownVolume {
        /// Its id in the pool.
        thin_id: ThinId,
        /// It can only be a remainder of this tree's: [`repair`](crate::tree::SnapshotTree::repair) deletes it.
        own: bool,
    },
    /// A volume that was found without a record, and may hold what no snapshot has:
    /// [`repair`](crate::tree::SnapshotTree::repair) deletes it.
    Orphan {
        /// Its id in the pool.
        thin_id: ThinId,
    },
    /// A removed snapshot is open, so that its volume cannot be deleted. In a tree
    /// [without threads](crate::tree::Options::background_threads) also each one that waits for
    /// [`reap`](crate::tree::SnapshotTree::reap).
    Deferred {
        /// The id that it had.
        id: SnapshotId,
        /// Its id in the pool.
        thin_id: ThinId,
    },
    /// A volume was made and neither published nor deleted: [`repair`](crate::tree::SnapshotTree::repair), the next
    /// [`reap`](crate::tree::SnapshotTree::reap) and the next open delete it.
    Unfinished {
        /// Its id in the pool.
        thin_id: ThinId,
    },
    /// A device with this tree's uuid is active, of a volume that the state does not list.
    UnknownDevice {
        /// The device's name.
        device: DmName,
        /// The volume that its uuid names.
        thin_id: ThinId,
    },
    /// The device of a snapshot is not what it should be.
    WrongDevice {
        /// The snapshot.
        id: SnapshotId,
        /// The device's name.
        device: DmName,
        /// What is wrong with it.
        problem: DeviceProblem,
    },
    /// A snapshot was active, and its device is gone: another program removed it.
    DeviceGone {
        /// The snapshot.
        id: SnapshotId,
    },
    /// A snapshot was mounted, and is not any more: another program unmounted it.
    NotMounted {
        /// The snapshot.
        id: SnapshotId,
        /// Where it was mounted.
        target: PathBuf,
    },
    /// A snapshot is mounted where this tree did not mount it.
    AlsoMounted {
        /// The snapshot.
        id: SnapshotId,
        /// Where.
        target: PathBuf,
    },
    /// A node under `/dev/mapper` without its device.
    StaleNode {
        /// The node's name.
        name: DmName,
    },
    /// A file of the pool is not what the pool's device is bound to.
    NotBound {
        /// The file.
        path: PathBuf,
    },
    /// A file of the pool is shorter than the pool's device: another program truncated it. The data behind its end is
    /// lost.
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: Bytes,
        /// The length that it should have.
        expected: Bytes,
    },
}

/// What can be wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceProblem {
    /// It is suspended: reads and writes hang.
    Suspended,
    /// It has another name than it should have.
    Name,
    /// It is writable though the snapshot is sealed or was activated read-only, or read-only though it is neither.
    Mode {
        /// Whether it is read-only.
        read_only: bool,
    },
    /// Its table is not that of the volume.
    Table {
        /// What it is.
        found: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { mode, needs_check: false } => write!(f, "the pool is {mode}"),
            Self::Pool { mode, needs_check: true } => {
                write!(f, "the pool is {mode}; its metadata needs thin_check")
            }
            Self::MetadataSnapHeld => {
                f.write_str("the pool's metadata snapshot is held, or was leaked by a process that died")
            }
            Self::Generation { state, pool } => {
                write!(f, "transaction id mismatch: state.json says {state}, the pool {pool}")
            }
            Self::MissingVolume { id: Some(id), thin_id } => {
                write!(f, "snapshot {id}: thin device {thin_id} is not in the pool")
            }
            Self::MissingVolume { id: None, thin_id } => {
                write!(f, "the base: thin device {thin_id} is not in the pool")
            }
            Self::UnknownVolume { thin_id, own: true } => {
                write!(f, "thin device {thin_id} is left over from a snapshot that was never completed")
            }
            Self::UnknownVolume { thin_id, own: false } => {
                write!(f, "thin device {thin_id} of the pool does not belong to this tree")
            }
            Self::Orphan { thin_id } => {
                write!(
                    f,
                    "thin device {thin_id} is an orphan: no snapshot refers to it, and it may be the only copy of its data"
                )
            }
            Self::Deferred { id, thin_id } => {
                write!(
                    f,
                    "snapshot {id} was removed; its volume, thin device {thin_id}, is still to be deleted"
                )
            }
            Self::Unfinished { thin_id } => {
                write!(f, "thin device {thin_id} was created but never published")
            }
            Self::UnknownDevice { device, thin_id } => {
                write!(f, "device {device} is active for thin device {thin_id}, which is not in the tree")
            }
            Self::WrongDevice { id, device, problem } => match problem {
                DeviceProblem::Suspended => write!(f, "snapshot {id}: device {device} is suspended"),
                DeviceProblem::Name => write!(f, "snapshot {id}: device {device} has the wrong name"),
                DeviceProblem::Mode { read_only: true } => {
                    write!(f, "snapshot {id}: device {device} is read-only, but the snapshot is writable")
                }
                DeviceProblem::Mode { read_only: false } => {
                    write!(f, "snapshot {id}: device {device} is writable, but the snapshot is read-only")
                }
                DeviceProblem::Table { found } => write!(f, "snapshot {id}: device {device} is {found:?}"),
            },
            Self::DeviceGone { id } => write!(f, "snapshot {id}: another program removed its device"),
            Self::NotMounted { id, target } => {
                write!(f, "snapshot {id}: another program unmounted it from {}", target.display())
            }
            Self::AlsoMounted { id, target } => {
                write!(f, "snapshot {id}: another program mounted it on {}", target.display())
            }
            Self::StaleNode { name } => write!(f, "node /dev/mapper/{name} has no device"),
            Self::Truncated { path, size, expected } => {
                write!(f, "{} was truncated to {size}; the pool's device has {expected}", path.display())
            }
            Self::NotBound { path } => {
                write!(f, "{} is not the file that the pool's device uses", path.display())
            }
        }
    }
}
