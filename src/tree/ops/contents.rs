//! What the pool's metadata says of this tree's volumes.

use std::collections::BTreeSet;

use crate::thin::ThinId;
use crate::thin::metadata::Metadata;
use crate::tree::Result;
use crate::tree::SnapshotTree;

impl SnapshotTree {
    /// Reads the pool's metadata as it is at this moment. While `read` runs, the pool's metadata snapshot is held, and
    /// the root says that it is this tree's.
    ///
    /// # Errors
    /// As [`ThinPool::read_metadata`](crate::thin::ThinPool::read_metadata).
    pub(in crate::tree) fn read_metadata<T>(&self, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        self.hold.read(&self.pool, read)
    }

    /// The ids of all thin devices of the pool.
    pub(in crate::tree) fn volumes_in_pool(&self) -> Result<BTreeSet<ThinId>> {
        self.read_metadata(|metadata| Ok(metadata.device_ids()?.into_iter().collect()))
    }
}
