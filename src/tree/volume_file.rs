//! An open thin volume, behind the kernel seam.

use std::path::PathBuf;
use std::sync::Arc;

use super::SnapshotTree;
use crate::kernel::{Access, DeviceFile, Kernel};
use crate::thin::ThinVolume;
use crate::{Error, Result};

/// An open thin volume.
#[derive(Debug)]
pub(super) struct VolumeFile {
    kernel: Arc<dyn Kernel>,
    file: DeviceFile,
    path: PathBuf,
}

impl SnapshotTree {
    /// Opens an active volume.
    pub(super) fn open_volume(&self, volume: &ThinVolume, access: Access) -> Result<VolumeFile> {
        let file = volume.open(access)?;
        Ok(VolumeFile { kernel: self.options.kernel.clone(), file, path: volume.path() })
    }
}

impl VolumeFile {
    /// Makes what was written durable: data, and the pool's mappings of it.
    pub(super) fn sync(&self) -> Result<()> {
        self.kernel.sync(&self.file).map_err(|errno| self.error("sync", errno.into()))
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Io { action, path: self.path.clone(), source }
    }
}
