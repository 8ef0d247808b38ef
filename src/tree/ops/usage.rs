//! What removing a snapshot would free.

use std::collections::HashMap;

use serde::Serialize;

use crate::tree::Result;
use crate::tree::{SnapshotId, SnapshotTree};
use crate::units::{Blocks, Bytes};

/// What a snapshot has of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotUsage {
    /// Its id.
    pub id: SnapshotId,
    /// What it has: the sum of the two below.
    pub mapped: Bytes,
    /// What no other snapshot has: to remove this one frees it.
    pub exclusive: Bytes,
    /// What it shares with others, or with the base. To remove all that share it frees that, too.
    pub shared: Bytes,
}

impl SnapshotTree {
    /// Returns what each snapshot has of the pool at this moment, alone and together with others, by their ids. Each
    /// block of the pool's mapping trees is read once, however many snapshots share it. What was written to a mounted
    /// snapshot and is still in the page cache is not there yet. What is exclusive is determined by comparing the
    /// mapping trees: see [`Metadata::usage`](crate::thin::metadata::Metadata::usage).
    ///
    /// # Errors
    /// [`Error::MetadataSnapHeld`](crate::thin::Error::MetadataSnapHeld) if another program holds the pool's metadata
    /// snapshot;
    /// [`Error::Metadata`](crate::thin::Error::Metadata) for damage.
    pub fn usage(&self) -> Result<Vec<SnapshotUsage>> {
        self.check_open()?;
        let devices = self.pool.read_metadata(|metadata| Ok(metadata.usage()?))?;
        let devices: HashMap<_, _> = devices.into_iter().map(|device| (device.id, device)).collect();
        let block_size = self.store.read_state(|state| state.pool.block_size.sectors());
        let bytes = |blocks: Blocks| blocks.bytes(block_size);
        Ok(self.store.read(|graph| {
            let snapshots = graph.snapshots.iter();
            let used =
                snapshots.filter_map(|(id, snapshot)| Some((id.clone(), devices.get(&snapshot.thin_id)?)));
            used.map(|(id, device)| SnapshotUsage {
                id,
                mapped: bytes(device.mapped),
                exclusive: bytes(device.exclusive),
                shared: bytes(device.shared),
            })
            .collect()
        }))
    }
}
