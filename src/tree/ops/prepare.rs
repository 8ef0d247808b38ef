//! What is done to a file system that was mounted, before a caller gets it.

use crate::kernel::{DeviceNumber, Directory, Kernel};
use crate::tree::state::record::{Record, Snapshot};
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// Prepares a mounted snapshot. `root` is its directory.
    pub(in crate::tree) fn prepare(
        &self,
        id: &str,
        snapshot: &Snapshot,
        device: DeviceNumber,
        root: &Directory,
    ) -> Result<()> {
        let init = self.prepare_filesystem(snapshot, device, root)?;
        match init.filter(|_| init != snapshot.init) {
            Some(layer) => self.store.commit(&Record::Init { id: SnapshotId::new(id)?, layer }),
            None => Ok(()),
        }
    }

    /// The same, without a record. Returns the init layer that the snapshot has.
    pub(in crate::tree) fn prepare_filesystem(
        &self,
        snapshot: &Snapshot,
        device: DeviceNumber,
        root: &Directory,
    ) -> Result<Option<u32>> {
        if let (Filesystem::Xfs, Some(retries)) =
            (self.store.filesystem(), self.options.xfs_nospace_max_retries)
        {
            set_xfs_retries(&*self.options.kernel, device, retries)?;
        }
        let layer = &self.options.init_layer;
        if !layer.is_empty() && snapshot.sealed.is_none() && snapshot.init != Some(layer.fingerprint()) {
            layer.apply(self.options.kernel.files(), root)?;
            return Ok(Some(layer.fingerprint()));
        }
        Ok(snapshot.init)
    }
}

/// XFS retries writes without space for ever by default, and unmounting waits for them.
fn set_xfs_retries(kernel: &dyn Kernel, device: DeviceNumber, retries: u32) -> Result<()> {
    const ATTRIBUTE: &str = "error/metadata/ENOSPC/max_retries";
    let written = kernel.set_filesystem_attribute("xfs", device, ATTRIBUTE, &retries.to_string());
    written.map_err(|errno| Error::io("write", format!("{ATTRIBUTE} of XFS on {device}"))(errno))
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::abi::mount::MountFlags;
    use crate::model::ModelKernel;
    use crate::units::Sectors;

    #[test]
    fn attributes_are_written_in_the_kernel_in_use() {
        let kernel = ModelKernel::new();
        let directory = tempfile::tempdir().unwrap();
        let device = DeviceNumber { major: 8, minor: 4242 };
        let node = Path::new("/dev/disk");
        kernel.set_disk(node, device, Sectors(2048)).unwrap();
        // Neither here nor on the host.
        assert!(set_xfs_retries(&kernel, device, 3).unwrap_err().is_not_found());
        kernel.run("mkfs.xfs", &[node.as_os_str()]).unwrap();
        kernel.mount(Some(node), directory.path(), Some("xfs"), MountFlags::empty(), "").unwrap();
        set_xfs_retries(&kernel, device, 3).unwrap();
        assert_eq!(kernel.log().last().unwrap().name, "attribute");
    }
}
