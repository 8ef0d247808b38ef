//! An active thin volume.

use std::path::PathBuf;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::identity::Identity;
use super::reload::{reload, while_pool_is_suspended};
use super::{PoolTable, ThinId, ThinStatus, ThinTable, check_block_size};
use crate::abi::Ioctl;
use crate::abi::block::{BLKDISCARD, BLKGETSIZE64, BLKZEROOUT};
use crate::dm;
use crate::dm::{
    DeviceMapper, DeviceStatus, DmFlags, DmId, DmName, DmUuid, Removal, TableKind, TargetLine, TargetSpec,
    TargetType,
};
use crate::kernel::IoctlError;
use crate::kernel::{Access, Arg, DeviceFile, DeviceNumber, Process};
use crate::thin::{Error, Result};
use crate::units::{Bytes, Sectors};

/// A thin device that is active: a block device. Dropping it changes nothing; see
/// [`deactivate`](Self::deactivate).
#[derive(Debug, Clone)]
pub struct ThinVolume {
    pub(super) dm: Arc<DeviceMapper>,
    pub(super) identity: Identity,
    pub(super) id: ThinId,
    pub(super) pool: Identity,
}

impl ThinVolume {
    /// Its name.
    pub fn name(&self) -> &DmName {
        &self.identity.name
    }

    /// Its uuid, by which requests address it.
    pub fn uuid(&self) -> Option<&DmUuid> {
        self.identity.uuid.as_ref()
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.identity.number
    }

    /// Its id in the pool.
    pub fn id(&self) -> ThinId {
        self.id
    }

    /// Its node: `/dev/mapper/<name>`.
    pub fn path(&self) -> PathBuf {
        self.dm.node_path(self.name())
    }

    /// The state of the device: open count, suspended, read-only, to be removed.
    pub fn device_status(&self) -> Result<DeviceStatus> {
        Ok(self.dm.status(self.address()?).map_err(|error| self.identity.named(error))?)
    }

    /// How much is mapped.
    ///
    /// The kernel counts what is shared with a snapshot in each of them; what is exclusive is known
    /// only from the metadata, through a reserved metadata snapshot.
    pub fn status(&self) -> Result<ThinStatus> {
        let status = self.dm.table_status(self.address()?, DmFlags::NOFLUSH);
        let (_, lines) = status.map_err(|error| self.identity.named(error))?;
        self.only_line(&lines)?.text.parse()
    }

    /// The table it runs with, and its size.
    pub fn table(&self) -> Result<(ThinTable, Sectors)> {
        let lines = self.dm.table(self.address()?, TableKind::Live);
        let lines = lines.map_err(|error| self.identity.named(error))?;
        let line = self.only_line(&lines)?;
        Ok((line.text.parse()?, line.length))
    }

    fn only_line<'a>(&self, lines: &'a [TargetLine]) -> Result<&'a TargetLine> {
        match lines {
            [line] if line.target_type == TargetType::THIN => Ok(line),
            lines => Err(Error::WrongTarget {
                device: self.name().to_string(),
                found: lines.first().map(|line| line.target_type.to_string()).unwrap_or_default(),
                expected: "thin",
            }),
        }
    }

    /// How requests address it.
    fn address(&self) -> dm::Result<DmId<'_>> {
        self.identity.id(&self.dm)
    }

    /// Makes it `size` large, while it is in use. A file system on it has to be grown after; one on it is
    /// frozen for a moment. A volume that another process left suspended is resumed by this.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if it is larger than that: what is beyond would be lost. EBUSY as long as this
    /// process has it [suspended](Self::suspend).
    pub fn grow(&self, size: Sectors) -> Result<()> {
        let held = self.identity.exclusive(&self.dm);
        self.identity.check_not_suspended(&held)?;
        let (table, now) = self.table()?;
        if size < now {
            let reason = "smaller than the volume is";
            return Err(Error::InvalidOption { option: "volume size", value: size.to_string(), reason });
        }
        // A table loaded without the flag would make a read-only device writable.
        let flags = self.device_status()?.flags & DmFlags::READONLY;
        let line =
            TargetSpec { start: Sectors(0), length: size, target_type: TargetType::THIN, parameters: &table };
        let id = self.address()?;
        let reloaded =
            while_pool_is_suspended(&self.dm, &self.pool, || reload(&self.dm, &held, id, &[line], flags));
        Ok(reloaded.map_err(|error| self.identity.named(error))?)
    }

    /// Suspends it for a snapshot: a file system on it is frozen, I/O on its way is finished.
    ///
    /// Suspensions are counted: with several at once in this process, whatever the handles, the volume is resumed
    /// when the last of them ends.
    pub fn suspend(&self) -> Result<SuspendedVolume<'_>> {
        self.suspend_with(DmFlags::empty())
    }

    /// The same, leaving out what a flag says: [`DmFlags::SKIP_LOCKFS`] does not freeze the file system,
    /// so that a snapshot has it as after a power cut; [`DmFlags::NOFLUSH`] does not wait for I/O that
    /// the pool holds back, as in a pool out of space. Other flags are ignored.
    pub fn suspend_with(&self, flags: DmFlags) -> Result<SuspendedVolume<'_>> {
        self.identity.suspend(&self.dm, flags)?;
        Ok(SuspendedVolume { volume: self, resumed: false, owner: Process::current() })
    }

    /// Renames the device and its node (`DM_DEV_RENAME`). Open file descriptors stay valid. Clones of this handle
    /// still have it, though their name and [path](Self::path) are the old ones.
    ///
    /// # Errors
    /// EBUSY if the name is taken ([`Error::is_busy`]).
    #[doc(alias = "DM_DEV_RENAME")]
    pub fn rename(&mut self, name: &DmName) -> Result<()> {
        Ok(self.identity.rename(&self.dm, name)?)
    }

    /// Discards the whole volume: it reads as zeroes (or as its external origin), and blocks that no
    /// snapshot shares are free again, on the device below too if the pool passes discards down.
    ///
    /// The kernel unmaps whole blocks of the pool. If the volume's size is not a multiple of them, its last block stays
    /// mapped; what the volume has of it is written with zeroes, over an external origin, too.
    ///
    /// # Errors
    /// EOPNOTSUPP if the pool ignores discards, EPERM if the volume is read-only; ENOENT if there is no node,
    /// [`dm::Error::Replaced`](crate::dm::Error::Replaced) if it leads to another device.
    #[doc(alias = "BLKDISCARD")]
    pub fn discard_all(&self) -> Result<()> {
        let file = self.open(Access::READ_WRITE)?;
        let mut size = 0u64;
        self.block_ioctl(&file, BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes()))?;
        let size = Bytes(size).sectors();
        let mut range = [0, size.bytes().0];
        self.block_ioctl(&file, BLKDISCARD, Arg::Bytes(range.as_mut_bytes()))?;
        let ThinStatus::Mapped { highest: Some(highest), .. } = self.status()? else { return Ok(()) };
        let tail = Sectors(size.0 % self.pool_block_size()?.0);
        let start = size - tail;
        if tail.0 == 0 || highest < start {
            return Ok(());
        }
        let mut range = [start.bytes().0, tail.bytes().0];
        self.block_ioctl(&file, BLKZEROOUT, Arg::Bytes(range.as_mut_bytes()))
    }

    fn pool_block_size(&self) -> Result<Sectors> {
        let lines = self.dm.table(self.pool.id(&self.dm)?, TableKind::Live);
        let lines = lines.map_err(|error| self.pool.named(error))?;
        let table: PoolTable = lines.first().map_or("", |line| &line.text).parse()?;
        check_block_size(table.block_size).map(|()| table.block_size)
    }

    /// Opens the volume's node, and checks that it leads to this volume. While it is open the device cannot be removed.
    ///
    /// # Errors
    /// [`Error::Open`] if the node cannot be opened; [`dm::Error::Replaced`] if it is another device's.
    pub fn open(&self, access: Access) -> Result<DeviceFile> {
        let path = self.path();
        let file = self.dm.kernel().open(&path, access);
        let file = file.map_err(|errno| Error::Open { path: path.clone(), errno })?;
        let expected = self.device_status()?.number;
        if file.number() != expected {
            let (device, found) = (path.display().to_string(), file.number());
            return Err(dm::Error::Replaced { device, expected, found }.into());
        }
        Ok(file)
    }

    pub(crate) fn block_ioctl(&self, file: &DeviceFile, ioctl: Ioctl, argument: Arg<'_>) -> Result<()> {
        self.dm.kernel().ioctl(file, ioctl, argument).map(drop).map_err(|errno| {
            let device = self.name().to_string();
            let refused = IoctlError { ioctl: ioctl.name(), device, detail: None, errno };
            dm::Error::from(Box::new(refused)).into()
        })
    }

    /// Removes the device; the thin device stays in the pool.
    ///
    /// # Errors
    /// EBUSY while it is open ([`Error::is_busy`]).
    pub fn deactivate(&self) -> Result<()> {
        Ok(self.identity.remove(&self.dm, DmFlags::empty()).map(drop)?)
    }

    /// The same, later if it is open now.
    pub fn deactivate_deferred(&self) -> Result<Removal> {
        Ok(self.identity.remove(&self.dm, DmFlags::DEFERRED_REMOVE)?)
    }

    /// Cancels [`deactivate_deferred`](Self::deactivate_deferred) (`@cancel_deferred_remove`). None pending is no
    /// error.
    ///
    /// # Errors
    /// ENXIO if the device is gone: [`ThinPool::reactivate`](super::ThinPool::reactivate) makes it again.
    /// EBUSY if it is going right now.
    pub fn cancel_deactivate(&self) -> Result<()> {
        Ok(self.dm.cancel_deferred_remove(self.address()?).map_err(|error| self.identity.named(error))?)
    }
}

/// A volume that is suspended as long as this lives: what a snapshot of an active volume asks for.
///
/// Dropping it resumes the volume, if it is the last one of that volume in this process; only
/// [`resume`](Self::resume) returns the error of that.
#[derive(Debug)]
#[must_use]
pub struct SuspendedVolume<'a> {
    volume: &'a ThinVolume,
    resumed: bool,
    owner: Process,
}

impl SuspendedVolume<'_> {
    /// The volume's id in the pool.
    pub fn id(&self) -> ThinId {
        self.volume.id
    }

    pub(super) fn name(&self) -> &DmName {
        self.volume.name()
    }

    pub(super) fn pool(&self) -> &Identity {
        &self.volume.pool
    }

    /// Resumes the volume, unless another [`SuspendedVolume`] of this process still suspends it.
    pub fn resume(mut self) -> Result<()> {
        self.resumed = true;
        Ok(self.volume.identity.resume(&self.volume.dm)?)
    }
}

impl Drop for SuspendedVolume<'_> {
    fn drop(&mut self) {
        // A child of fork leaves it to its parent, who relies on it.
        if !self.resumed && self.owner.is_current() {
            // Drop cannot report an error; `resume` does.
            let _ = self.volume.identity.resume(&self.volume.dm);
        }
    }
}
