//! What is done to a file system that was mounted, before a caller gets it.

use std::path::Path;

use super::graph::{Record, Snapshot};
use super::{Filesystem, SnapshotId, SnapshotTree};
use crate::kernel::DeviceNumber;
use crate::{Error, Result};

impl SnapshotTree {
    /// Make a mounted snapshot ready.
    pub(super) fn prepare(
        &self,
        id: &str,
        snapshot: &Snapshot,
        device: DeviceNumber,
        target: &Path,
    ) -> Result<()> {
        if let (Filesystem::Xfs, Some(retries)) = (self.filesystem, self.options.xfs_nospace_max_retries) {
            // XFS retries writes without space for ever by default, and unmounting waits for them.
            let path = format!("/sys/fs/xfs/dm-{}/error/metadata/ENOSPC/max_retries", device.minor);
            std::fs::write(&path, retries.to_string()).map_err(Error::io("write", path))?;
        }
        let layer = &self.options.init_layer;
        if !layer.is_empty() && snapshot.sealed.is_none() && snapshot.init != Some(layer.fingerprint()) {
            layer.apply(target)?;
            let id = SnapshotId::new(id)?;
            self.store.commit(&Record::Init { id, layer: layer.fingerprint() })?;
        }
        Ok(())
    }
}
