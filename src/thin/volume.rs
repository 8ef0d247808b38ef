//! An active thin volume.

use std::path::PathBuf;
use std::sync::Arc;

use super::{ThinId, ThinStatus};
use crate::dm::{DeviceMapper, DeviceStatus, DmFlags, DmName, Removal};
use crate::kernel::DeviceNumber;
use crate::{Error, Result};

/// A thin device that is active: a block device. Dropping it changes nothing; see
/// [`deactivate`](Self::deactivate).
#[derive(Debug, Clone)]
pub struct ThinVolume {
    pub(super) dm: Arc<DeviceMapper>,
    pub(super) name: DmName,
    pub(super) number: DeviceNumber,
    pub(super) id: ThinId,
}

impl ThinVolume {
    /// Its name.
    pub fn name(&self) -> &DmName {
        &self.name
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Its id in the pool.
    pub fn id(&self) -> ThinId {
        self.id
    }

    /// Its node: `/dev/mapper/<name>`.
    pub fn path(&self) -> PathBuf {
        self.dm.node_path(&self.name)
    }

    /// The state of the device, open count included.
    pub fn device_status(&self) -> Result<DeviceStatus> {
        self.dm.status((&self.name).into())
    }

    /// How much is mapped.
    pub fn status(&self) -> Result<ThinStatus> {
        let (_, lines) = self.dm.table_status((&self.name).into(), DmFlags::NOFLUSH)?;
        match &lines[..] {
            [line] if line.target_type.as_str() == "thin" => line.text.parse(),
            lines => Err(Error::WrongTarget {
                device: self.name.to_string(),
                found: lines.first().map(|line| line.target_type.to_string()).unwrap_or_default(),
                expected: "thin",
            }),
        }
    }

    /// Suspend it for a snapshot: a file system on it is frozen, I/O on its way is finished.
    pub fn suspend(&self) -> Result<SuspendedVolume<'_>> {
        self.dm.suspend((&self.name).into(), DmFlags::empty())?;
        Ok(SuspendedVolume { volume: self, resumed: false })
    }

    /// Remove the device; the thin device stays in the pool.
    ///
    /// # Errors
    /// EBUSY while it is open ([`Error::is_busy`]).
    pub fn deactivate(&self) -> Result<()> {
        self.dm.remove(&self.name)
    }

    /// The same, later if it is open now.
    pub fn deactivate_deferred(&self) -> Result<Removal> {
        self.dm.remove_deferred(&self.name)
    }
}

/// A volume that is suspended as long as this lives: what a snapshot of an active volume asks for.
///
/// Dropping it resumes the volume; only [`resume`](Self::resume) tells if that failed.
#[derive(Debug)]
#[must_use]
pub struct SuspendedVolume<'a> {
    volume: &'a ThinVolume,
    resumed: bool,
}

impl SuspendedVolume<'_> {
    /// The volume's id in the pool.
    pub fn id(&self) -> ThinId {
        self.volume.id
    }

    /// Let I/O go on.
    pub fn resume(mut self) -> Result<()> {
        self.resumed = true;
        self.volume.dm.resume(&self.volume.name)
    }
}

impl Drop for SuspendedVolume<'_> {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.volume.dm.resume(&self.volume.name);
        }
    }
}
