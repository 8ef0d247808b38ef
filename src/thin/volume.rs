//! An active thin volume.

use std::path::PathBuf;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::reload::reload;
use super::{ThinId, ThinStatus, ThinTable};
use crate::abi::Ioctl;
use crate::abi::block::{BLKDISCARD, BLKGETSIZE64};
use crate::dm::{
    DeviceMapper, DeviceStatus, DmFlags, DmName, Removal, TableKind, TargetLine, TargetSpec, TargetType,
};
use crate::error::IoctlError;
use crate::kernel::{Access, Arg, DeviceFile, DeviceNumber};
use crate::units::{Bytes, Sectors};
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

    /// The state of the device: open count, suspended, read-only, to be removed.
    pub fn device_status(&self) -> Result<DeviceStatus> {
        self.dm.status((&self.name).into())
    }

    /// How much is mapped.
    ///
    /// The kernel counts what is shared with a snapshot in each of them; what is exclusive can be told
    /// only from the metadata, through a reserved metadata snapshot.
    pub fn status(&self) -> Result<ThinStatus> {
        let (_, lines) = self.dm.table_status((&self.name).into(), DmFlags::NOFLUSH)?;
        self.only_line(&lines)?.text.parse()
    }

    /// The table it runs with, and its size.
    pub fn table(&self) -> Result<(ThinTable, Sectors)> {
        let lines = self.dm.table((&self.name).into(), TableKind::Live)?;
        let line = self.only_line(&lines)?;
        Ok((line.text.parse()?, line.length))
    }

    fn only_line<'a>(&self, lines: &'a [TargetLine]) -> Result<&'a TargetLine> {
        match lines {
            [line] if line.target_type == TargetType::THIN => Ok(line),
            lines => Err(Error::WrongTarget {
                device: self.name.to_string(),
                found: lines.first().map(|line| line.target_type.to_string()).unwrap_or_default(),
                expected: "thin",
            }),
        }
    }

    /// Make it `size` large, while it is in use. A file system on it has to be grown after; one on it is
    /// frozen for a moment. A suspended volume is resumed by this.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if it is larger than that: what is beyond would be lost.
    pub fn grow(&self, size: Sectors) -> Result<()> {
        let (table, now) = self.table()?;
        if size < now {
            let reason = "smaller than the volume is";
            return Err(Error::InvalidOption { option: "volume size", value: size.to_string(), reason });
        }
        // A table loaded without the flag would make a read-only device writable.
        let flags = self.device_status()?.flags & DmFlags::READONLY;
        let line =
            TargetSpec { start: Sectors(0), length: size, target_type: TargetType::THIN, parameters: &table };
        reload(&self.dm, &self.name, &[line], flags)
    }

    /// Suspend it for a snapshot: a file system on it is frozen, I/O on its way is finished.
    pub fn suspend(&self) -> Result<SuspendedVolume<'_>> {
        self.suspend_with(DmFlags::empty())
    }

    /// The same, leaving out what a flag says: [`DmFlags::SKIP_LOCKFS`] does not freeze the file system,
    /// so that a snapshot has it as after a power cut; [`DmFlags::NOFLUSH`] does not wait for I/O that
    /// the pool holds back, as in a pool out of space. Other flags are ignored.
    pub fn suspend_with(&self, flags: DmFlags) -> Result<SuspendedVolume<'_>> {
        self.dm.suspend((&self.name).into(), flags)?;
        Ok(SuspendedVolume { volume: self, resumed: false })
    }

    /// Give it another name; its node moves along. Who has it open notices nothing. Clones of this
    /// handle keep the old name, and find nothing under it.
    ///
    /// # Errors
    /// EBUSY if the name is taken ([`Error::is_busy`]).
    #[doc(alias = "DM_DEV_RENAME")]
    pub fn rename(&mut self, name: &DmName) -> Result<()> {
        self.dm.rename(&self.name, name)?;
        self.name = *name;
        Ok(())
    }

    /// Discard the whole volume: it reads as zeroes (or as its external origin), and blocks that no
    /// snapshot shares are free again, on the device below too if the pool passes discards down.
    ///
    /// # Errors
    /// EOPNOTSUPP if the pool ignores discards, EPERM if the volume is read-only.
    #[doc(alias = "BLKDISCARD")]
    pub fn discard_all(&self) -> Result<()> {
        let file = self.open(Access::READ_WRITE)?;
        let mut size = 0u64;
        self.block_ioctl(&file, BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes()))?;
        let mut range = [0, Bytes(size).sectors().bytes().0];
        self.block_ioctl(&file, BLKDISCARD, Arg::Bytes(range.as_mut_bytes()))
    }

    fn open(&self, access: Access) -> Result<DeviceFile> {
        // The node may be stale, or not made yet.
        let path = self.dm.ensure_node(&self.name, self.number)?;
        self.dm.kernel().open(&path, access).map_err(|errno| Error::Open { path, errno })
    }

    fn block_ioctl(&self, file: &DeviceFile, ioctl: Ioctl, argument: Arg<'_>) -> Result<()> {
        self.dm.kernel().ioctl(file, ioctl, argument).map(drop).map_err(|errno| {
            let device = self.name.to_string();
            Error::Ioctl(Box::new(IoctlError { ioctl: ioctl.name(), device, detail: None, errno }))
        })
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

    /// Take back [`deactivate_deferred`](Self::deactivate_deferred). That none is pending is no error.
    ///
    /// # Errors
    /// ENXIO if the device is gone: [`ThinPool::reactivate`](super::ThinPool::reactivate) makes it again.
    /// EBUSY if it is going right now.
    pub fn cancel_deactivate(&self) -> Result<()> {
        self.dm.cancel_deferred_remove((&self.name).into())
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
