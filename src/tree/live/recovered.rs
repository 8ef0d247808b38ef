//! What an open found and put right.

use std::fmt;
use std::path::PathBuf;

use crate::dm::DmName;
use crate::thin::ThinId;
use crate::tree::SnapshotId;
use crate::units::Bytes;

/// Something that an open found of a manager before it, and took over or put right: see
/// [`SnapshotTree::recovered`](crate::tree::SnapshotTree::recovered).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovered {
    /// The end of a journal was cut off: a line that was being written, and that nobody was told of.
    JournalCut {
        /// How much.
        length: Bytes,
    },
    /// The pool could not commit, was unused, and was activated anew.
    PoolActivatedAnew,
    /// The pool's metadata was checked by `thin_check`, and its flag `needs_check` cleared.
    NeedsCheckCleared,
    /// The pool's metadata snapshot, which a manager of this tree had reserved, was released.
    MetadataSnapReleased,
    /// A snapshot that was being added has its volume: it is listed, though its caller may not have been told.
    AdditionCompleted {
        /// Its id.
        id: SnapshotId,
    },
    /// A snapshot that was being added has no volume: it is dropped. Its caller was told of no success.
    AdditionDropped {
        /// The id of its volume.
        thin_id: ThinId,
    },
    /// A volume was deleted that was being made, and that nobody was told of.
    VolumeDeleted {
        /// Its id.
        thin_id: ThinId,
    },
    /// A volume that no record knows was kept: see [`Finding::Orphan`](crate::tree::Finding::Orphan).
    OrphanKept {
        /// Its id.
        thin_id: ThinId,
    },
    /// The volume of a removed snapshot is gone from the pool, and no longer listed as to be deleted.
    RemovalCompleted {
        /// Its id.
        thin_id: ThinId,
    },
    /// A device of this tree was removed: of a volume that is no snapshot's, or writable though the snapshot is sealed.
    DeviceRemoved {
        /// Its name.
        device: DmName,
        /// The id of its volume.
        thin_id: ThinId,
    },
    /// The device of a snapshot was suspended, and was resumed.
    DeviceResumed {
        /// The snapshot.
        id: SnapshotId,
    },
    /// A snapshot is active, and mounted, as a manager before this one left it.
    TakenOver {
        /// Its id.
        id: SnapshotId,
        /// Where it is mounted.
        mounted: Option<PathBuf>,
    },
    /// The base was only half made, and was made anew.
    BaseMadeAnew,
}

impl Recovered {
    /// Whether something was put right; else it is only as it was left.
    pub fn is_repair(&self) -> bool {
        !matches!(self, Self::TakenOver { .. })
    }
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JournalCut { length } => {
                write!(f, "cut {length:#} off the journal's end, which were not written completely")
            }
            Self::PoolActivatedAnew => f.write_str("activated the pool anew, which could not commit"),
            Self::NeedsCheckCleared => {
                f.write_str("cleared needs_check of the pool, whose metadata is sound")
            }
            Self::MetadataSnapReleased => f.write_str("released the pool's metadata snapshot"),
            Self::AdditionCompleted { id } => write!(f, "completed the addition of snapshot {id}"),
            Self::AdditionDropped { thin_id } => {
                write!(f, "dropped an addition that was interrupted (thin device {thin_id})")
            }
            Self::VolumeDeleted { thin_id } => {
                write!(f, "deleted thin device {thin_id}, which was being made")
            }
            Self::OrphanKept { thin_id } => {
                write!(f, "kept thin device {thin_id}, which no record knows, as an orphan")
            }
            Self::RemovalCompleted { thin_id } => {
                write!(f, "recorded that the removed thin device {thin_id} is deleted")
            }
            Self::DeviceRemoved { device, thin_id } => {
                write!(f, "removed device {device} of thin device {thin_id}")
            }
            Self::DeviceResumed { id } => write!(f, "resumed the suspended device of snapshot {id}"),
            Self::TakenOver { id, mounted: None } => write!(f, "snapshot {id} is active"),
            Self::TakenOver { id, mounted: Some(target) } => {
                write!(f, "snapshot {id} is mounted on {}", target.display())
            }
            Self::BaseMadeAnew => f.write_str("made the base anew, which was only half made"),
        }
    }
}
