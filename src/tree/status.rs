//! What a tree says of itself.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::active::lock;
use super::graph::Snapshot;
use super::{Filesystem, Labels, Lineage, SnapshotId, SnapshotTree};
use crate::Result;
use crate::thin::{METADATA_BLOCK_SIZE, PoolStatus, ThinId};
use crate::units::{Blocks, Bytes};

/// A snapshot as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// What it was made from.
    pub parent: Lineage,
    /// What callers noted about it.
    pub labels: Labels,
    /// Its size.
    pub size: Bytes,
    /// Its id in the pool.
    pub thin_id: ThinId,
    /// Its device, if it is active.
    pub device: Option<PathBuf>,
    /// Where it is mounted, if it is.
    pub mounted: Option<PathBuf>,
}

/// The state of a tree and its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TreeStatus {
    /// The pool's device name.
    pub pool_name: String,
    /// Size of its data blocks.
    pub block_size: Bytes,
    /// The size of the base.
    pub base_size: Bytes,
    /// The file system of the base.
    pub filesystem: Filesystem,
    /// How many snapshots there are.
    pub snapshots: usize,
    /// The pool's own numbers.
    pub pool: PoolStatus,
}

impl SnapshotTree {
    /// One snapshot.
    pub fn get(&self, id: &str) -> Result<SnapshotInfo> {
        let known = self.store.read(|graph| {
            graph
                .snapshots
                .get_key_value(id)
                .filter(|(_, s)| !s.deleting)
                .map(|(id, s)| (id.clone(), s.clone()))
        });
        let (id, snapshot) = known.ok_or_else(|| super::unknown(id))?;
        Ok(self.info(id, snapshot))
    }

    /// All snapshots, by their ids.
    pub fn list(&self) -> Vec<SnapshotInfo> {
        let snapshots: Vec<_> = self.store.read(|graph| {
            let visible = graph.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleting);
            visible.map(|(id, snapshot)| (id.clone(), snapshot.clone())).collect()
        });
        snapshots.into_iter().map(|(id, snapshot)| self.info(id, snapshot)).collect()
    }

    /// The base's id in the pool.
    pub fn base_id(&self) -> Option<ThinId> {
        self.store.read(|graph| graph.base.as_ref().map(|base| base.thin_id))
    }

    fn info(&self, id: SnapshotId, snapshot: Snapshot) -> SnapshotInfo {
        let slot = self.slots().get(&id).cloned();
        let (device, mounted) = slot.map_or((None, None), |slot| {
            let slot = lock(&slot);
            let device = slot.volume.as_ref().filter(|_| !slot.leaving).map(|volume| volume.path());
            (device, slot.mounted.as_ref().map(|mounted| mounted.target.clone()))
        });
        let parent = snapshot.lineage();
        let Snapshot { thin_id, labels, size, .. } = snapshot;
        SnapshotInfo { id, parent, labels, size, thin_id, device, mounted }
    }

    /// The tree and its pool, as the kernel sees it now.
    pub fn status(&self) -> Result<TreeStatus> {
        self.check_open()?;
        let pool = self.pool.status()?;
        let pool_name = self.pool.name().to_string();
        Ok(self.store.read_state(|state| TreeStatus {
            pool_name,
            block_size: state.pool.block_size,
            base_size: state.graph.base.as_ref().map_or(Bytes(0), |base| base.size),
            filesystem: state.filesystem,
            snapshots: state.graph.snapshots.values().filter(|snapshot| !snapshot.deleting).count(),
            pool,
        }))
    }
}

impl TreeStatus {
    /// Data space in use, and all of it.
    pub fn data_space(&self) -> Option<(Bytes, Bytes)> {
        let block_size = self.block_size.sectors();
        self.space(|usage| (usage.used_data.bytes(block_size), usage.total_data.bytes(block_size)))
    }

    /// Metadata space in use, and all of it.
    pub fn metadata_space(&self) -> Option<(Bytes, Bytes)> {
        let bytes = |blocks: Blocks| blocks.bytes(METADATA_BLOCK_SIZE.sectors());
        self.space(|usage| (bytes(usage.used_metadata), bytes(usage.total_metadata)))
    }

    fn space<T>(&self, of: impl FnOnce(&crate::thin::PoolUsage) -> T) -> Option<T> {
        match &self.pool {
            PoolStatus::Usage(usage) => Some(of(usage)),
            PoolStatus::Fail | PoolStatus::Error => None,
        }
    }
}

impl fmt::Display for TreeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Pool Name: {}", self.pool_name)?;
        writeln!(f, "Pool Blocksize: {}", self.block_size)?;
        writeln!(f, "Base Device Size: {}", self.base_size)?;
        writeln!(f, "Backing Filesystem: {}", self.filesystem.kernel_name().unwrap_or("none"))?;
        for (kind, space) in [("Data", self.data_space()), ("Metadata", self.metadata_space())] {
            if let Some((used, total)) = space {
                writeln!(f, "{kind} Space Used: {used}")?;
                writeln!(f, "{kind} Space Total: {total}")?;
                writeln!(f, "{kind} Space Available: {}", Bytes(total.0.saturating_sub(used.0)))?;
            }
        }
        writeln!(f, "Snapshots: {}", self.snapshots)?;
        write!(f, "Pool Status: {}", self.pool)
    }
}
