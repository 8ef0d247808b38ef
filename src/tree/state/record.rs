//! What the state consists of, and how it changes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::thin::ThinId;
use crate::tree::{Filesystem, Labels, SnapshotId};
use crate::units::Bytes;

/// What is known of a volume's file system: facts, not the last thing tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::tree) enum FsState {
    /// Being made. Found at an open, the volume is worth nothing and is made again.
    Making,
    /// There, but smaller than the volume, whose device may be smaller, too: to be grown before use.
    Growing,
    /// As large as the volume.
    Ready,
}

/// The volume that all others begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Base {
    /// Its thin device.
    pub(in crate::tree) thin_id: ThinId,
    /// Its size.
    pub(in crate::tree) size: Bytes,
    /// Its kind of file system.
    pub(in crate::tree) filesystem: Filesystem,
    /// The UUID that the file system was made with.
    pub(in crate::tree) filesystem_uuid: Uuid,
    /// How far that is.
    pub(in crate::tree) fs: FsState,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Snapshot {
    /// Its thin device.
    pub(in crate::tree) thin_id: ThinId,
    /// What it was made from; `None` is the base. That snapshot may be gone since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) parent: Option<SnapshotId>,
    /// The parent was removed; a snapshot that has its id now is another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::tree) parent_gone: bool,
    /// What callers noted about it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(in crate::tree) labels: Labels,
    /// Its size.
    pub(in crate::tree) size: Bytes,
    /// Its file system.
    pub(in crate::tree) fs: FsState,
    /// The init layer that was applied to it, by its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) init: Option<u32>,
    /// The identity of its content; set as long as the snapshot is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) sealed: Option<Uuid>,
    /// The pool's time when it was sealed: every block written since has a mapping of a later time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) seal_time: Option<u32>,
    /// Data that it has and what it was made from has not; known once both are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) own: Option<Bytes>,
    /// When it was made, in seconds since 1970; older versions did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) created: Option<u64>,
    /// How an older version recorded [`Graph::removed`].
    #[serde(default, skip_serializing)]
    pub(in crate::tree) deleting: bool,
}

/// A snapshot that was removed, as long as the pool has its volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Removed {
    /// The id that it had.
    pub(in crate::tree) id: SnapshotId,
    /// Its size.
    pub(in crate::tree) size: Bytes,
}

impl Snapshot {
    /// Whether it was made from the snapshot that has this id now.
    pub(in crate::tree) fn is_child_of(&self, id: &SnapshotId) -> bool {
        !self.parent_gone && self.parent.as_ref() == Some(id)
    }

    /// A new one.
    pub(in crate::tree) fn new(
        thin_id: ThinId,
        parent: Option<SnapshotId>,
        size: Bytes,
        fs: FsState,
    ) -> Self {
        let labels = Labels::default();
        Self {
            thin_id,
            parent,
            parent_gone: false,
            labels,
            size,
            fs,
            init: None,
            sealed: None,
            seal_time: None,
            own: None,
            created: None,
            deleting: false,
        }
    }
}

/// A volume that is written and not published yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Making {
    /// Its thin device.
    pub(in crate::tree) thin_id: ThinId,
    /// Its size.
    pub(in crate::tree) size: Bytes,
    /// The receive that fills it, if that can be continued. Without, the next open deletes the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) receive: Option<Receiving>,
}

/// A receive that can be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Receiving {
    /// Identity of the content to be.
    pub(in crate::tree) volume: Uuid,
    /// Identity of the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) base: Option<Uuid>,
    /// The snapshot to be.
    pub(in crate::tree) id: SnapshotId,
    /// Everything before this offset is durable.
    pub(in crate::tree) offset: Bytes,
}

/// Thin ids that may have been handed to the kernel without a record of what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct IdWindow {
    /// New ids are taken from here …
    pub(in crate::tree) from: u32,
    /// … up to but not including this.
    pub(in crate::tree) to: u32,
    /// Ids from earlier windows that were still under way.
    #[serde(rename = "stragglers", default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::tree) in_flight: Vec<ThinId>,
}

impl IdWindow {
    /// Every id in it.
    pub(in crate::tree) fn ids(&self) -> impl Iterator<Item = ThinId> + '_ {
        (self.from..self.to).filter_map(|id| ThinId::new(id).ok()).chain(self.in_flight.iter().copied())
    }
}

/// The largest window that a state may hold: opening looks at each of its ids.
const WINDOW_MAX: u32 = 1 << 16;

impl IdWindow {
    pub(in crate::tree) fn check(&self) -> Result<(), &'static str> {
        let whole = self.from <= self.to && self.to <= ThinId::MAX.get() + 1;
        if whole && self.to - self.from <= WINDOW_MAX { Ok(()) } else { Err("no window of thin ids") }
    }
}

/// A change of the tree: one line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(in crate::tree) enum Record {
    /// New ids will be taken from this window.
    Reserve(IdWindow),
    /// The generation has risen.
    Generation {
        /// To this.
        generation: u64,
    },
    /// A volume that may hold what nobody else has, or that was being made in a state that was too old, is kept, and
    /// its id stays taken.
    Orphan {
        /// Its thin device.
        thin_id: ThinId,
    },
    /// There is a base volume; it replaces one that was never ready.
    Base(Base),
    /// The base is as large as this, its file system in this state.
    BaseFs {
        /// The size.
        size: Bytes,
        /// The state.
        fs: FsState,
    },
    /// A volume is there that is not published yet.
    Making(Making),
    /// A receive has written everything before this offset.
    Received {
        /// Its thin device.
        thin_id: ThinId,
        /// Everything before this offset is durable.
        offset: Bytes,
    },
    /// A volume that no caller sees is gone: one that was never published, or a removed snapshot's.
    Unmade {
        /// Its thin device.
        thin_id: ThinId,
    },
    /// There is a snapshot; if its volume was being made, it is published.
    Add {
        /// Its id.
        id: SnapshotId,
        /// The rest.
        snapshot: Snapshot,
    },
    /// A snapshot is being added: the pool may have its volume already. No caller sees it.
    Adding {
        /// Its id.
        id: SnapshotId,
        /// The rest.
        snapshot: Snapshot,
    },
    /// It has been added. Without this line the next open looks for the volume: [`Record::Unmade`] if there is none.
    Added {
        /// Its thin device.
        thin_id: ThinId,
    },
    /// A snapshot's file system is in this state.
    Fs {
        /// Which snapshot.
        id: SnapshotId,
        /// The state.
        fs: FsState,
    },
    /// A snapshot is larger.
    Resized {
        /// Which snapshot.
        id: SnapshotId,
        /// Its size.
        size: Bytes,
    },
    /// A snapshot is removed, and its id is free. Its volume is still to be deleted.
    Deleting {
        /// Which.
        id: SnapshotId,
    },
    /// How an older version recorded that the volume is deleted.
    Deleted {
        /// Which.
        id: SnapshotId,
    },
    /// This init layer was applied to a snapshot.
    Init {
        /// Which snapshot.
        id: SnapshotId,
        /// The layer's fingerprint.
        layer: u32,
    },
    /// A snapshot is sealed, or not any more.
    Sealed {
        /// Which.
        id: SnapshotId,
        /// The identity of its content; `None` if it is not sealed any more.
        sealed: Option<Uuid>,
        /// The pool's time, if it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<u32>,
    },
    /// This much data a sealed snapshot has that what it was made from has not.
    Own {
        /// Which snapshot.
        id: SnapshotId,
        /// How much.
        own: Bytes,
    },
    /// So many snapshots are kept ready of an origin.
    Ready {
        /// Its thin device.
        origin: ThinId,
        /// How many.
        count: u16,
    },
    /// These are a snapshot's labels.
    Labels {
        /// Which snapshot.
        id: SnapshotId,
        /// All of them.
        labels: Labels,
    },
    /// A snapshot has another id and these labels, and is sealed.
    Committed {
        /// The id it had.
        id: SnapshotId,
        /// The one it has.
        to: SnapshotId,
        /// All of its labels.
        labels: Labels,
        /// The identity of its content.
        sealed: Uuid,
        /// The pool's time when it was sealed.
        time: u32,
    },
    /// A snapshot has another id.
    Renamed {
        /// The one it had.
        id: SnapshotId,
        /// The one it has.
        to: SnapshotId,
    },
}
