//! What the pool's metadata says of this tree's volumes.

use std::collections::BTreeSet;

use super::SnapshotTree;
use crate::thin::ThinId;
use crate::thin::metadata::Metadata;
use crate::{Error, Result};

impl SnapshotTree {
    /// Reads the pool's metadata as it is at this moment. While `read` runs, the pool's metadata snapshot is held, and
    /// the root says that it is this tree's.
    ///
    /// # Errors
    /// As [`ThinPool::read_metadata`](crate::thin::ThinPool::read_metadata).
    pub(super) fn read_metadata<T>(&self, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        if !self.pool.status()?.mode().is_sound() {
            // It takes no messages, and its metadata does not change.
            return self.pool.read_metadata(read);
        }
        let is_free = || match self.pool.is_held_elsewhere()? {
            true => Err(Error::MetadataSnapHeld { pool: self.pool.name().to_string() }),
            false => Ok(()),
        };
        self.hold.during(is_free, || self.pool.read_metadata(read))
    }

    /// The ids of all thin devices of the pool.
    pub(super) fn volumes_in_pool(&self) -> Result<BTreeSet<ThinId>> {
        self.read_metadata(|metadata| Ok(metadata.device_ids()?.into_iter().collect()))
    }
}
