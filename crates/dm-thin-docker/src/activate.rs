//! The pool on Docker's loop files, active, as Docker itself would have it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use dm_thin::dm::{DeviceMapper, DmName, DmUuid};
use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice};
use dm_thin::thin::{PoolFeatures, PoolTable, ThinPool};
use dm_thin::units::Blocks;
use nix::sys::stat::{major, minor};

use crate::directory::Directory;
use crate::pool::Pool;
use crate::store::pool_files;
use crate::{Error, Finding, PoolInfo, Result};

/// The loop files of a Docker directory.
struct LoopFiles<'a> {
    directory: &'a Path,
    metadata: File,
    data: File,
    name: DmName,
    uuid: DmUuid,
}

/// Activates the pool on the loop files of `/var/lib/docker`, for [`Store::adopt_in_place`](crate::Store::adopt_in_place);
/// one that this function has activated already is returned as it is. It is needed again after each restart of the
/// machine, before the tree is opened. A direct LVM pool is LVM's to activate.
///
/// The pool has the name that Docker gives it, so that Docker and this cannot activate it both, and, other than Docker's,
/// zeroes new blocks. Nothing is written as long as no device is created or written to. The kernel reads the metadata: do
/// not activate what an enemy could have made.
///
/// # Errors
/// [`Error::Open`] for the directory; [`Error::NothingFound`] if it has no loop files; [`Error::Unreadable`] if their
/// metadata is damaged or the data file is too short; [`Error::PoolInUse`] if Docker or another program has the pool
/// active or one of the files attached to a loop device; [`Error::Loop`], [`Error::Thin`].
pub fn activate_pool(directory: impl AsRef<Path>, dm: &Arc<DeviceMapper>) -> Result<ThinPool> {
    let files = LoopFiles::open(directory.as_ref())?;
    let control = LoopControl::with_kernel(dm.kernel().clone())?;
    if let Some(pool) = files.active(dm, &control)? {
        return Ok(pool);
    }
    let info = files.info()?;
    let metadata = files.attach(&control, &files.metadata, "metadata")?;
    let data = files.attach(&control, &files.data, "data")?;
    let table = PoolTable {
        metadata: metadata.number(),
        data: data.number(),
        block_size: info.block_size.sectors(),
        low_water_mark: Blocks(0),
        features: PoolFeatures::default(),
    };
    // What the metadata says: a larger pool would be written to.
    Ok(ThinPool::create(dm.clone(), &files.name, &files.uuid, &table, info.data_size.sectors())?)
}

/// Removes the pool that [`activate_pool`] has activated, and detaches the loop files. `false` if it is not active.
///
/// # Errors
/// As [`activate_pool`]; EBUSY in [`Error::Thin`] if one of its devices is active.
pub fn deactivate_pool(directory: impl AsRef<Path>, dm: &Arc<DeviceMapper>) -> Result<bool> {
    let files = LoopFiles::open(directory.as_ref())?;
    match files.active(dm, &LoopControl::with_kernel(dm.kernel().clone())?)? {
        Some(pool) => Ok(pool.deactivate().map(|()| true)?),
        None => Ok(false),
    }
}

impl<'a> LoopFiles<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let open = |source| Error::Open { path: path.to_owned(), source };
        let mut findings = Vec::new();
        let root = Directory::open(path).map_err(open)?;
        let missing = || Error::NothingFound { path: path.to_owned() };
        let driver = root.below("devicemapper", &mut findings).ok_or_else(missing)?;
        let below = driver.below("devicemapper", &mut findings).ok_or_else(missing)?;
        let (metadata, data) = pool_files(&below, &mut findings).ok_or_else(|| match findings.pop() {
            Some(finding) => Error::Unreadable { path: path.to_owned(), reason: finding.to_string() },
            None => missing(),
        })?;
        // The file that was found, whatever its path leads to by now.
        let writable = |file: File| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            OpenOptions::new().read(true).write(true).open(path).map_err(open)
        };
        let (device, inode) = driver.device_and_inode().map_err(open)?;
        let name = format!("docker-{}:{}-{inode}-pool", major(device), minor(device));
        let uuid = DmUuid::new(&format!("DOCKER-{name}"))?;
        let (metadata, data, name) = (writable(metadata)?, writable(data)?, DmName::new(&name)?);
        Ok(Self { directory: path, metadata, data, name, uuid })
    }

    fn info(&self) -> Result<PoolInfo> {
        let clone = |file: &File| {
            file.try_clone().map_err(|source| Error::Open { path: self.directory.to_owned(), source })
        };
        let mut findings = Vec::new();
        let pool = Pool::open(clone(&self.metadata)?, clone(&self.data)?, &mut findings);
        let damage = findings.iter().find(|finding| !matches!(finding, Finding::NeedsCheck));
        match (pool, damage) {
            (Some(pool), None) => Ok(pool.info()),
            (_, damage) => {
                let reason = damage.map_or_else(String::new, ToString::to_string);
                Err(Error::Unreadable { path: self.directory.to_owned(), reason })
            }
        }
    }

    /// The pool, if it is active; refused if others have it.
    fn active(&self, dm: &Arc<DeviceMapper>, control: &LoopControl) -> Result<Option<ThinPool>> {
        let in_use = |by: String| Error::PoolInUse { path: self.directory.to_owned(), by };
        let attached = [control.find(&self.metadata)?, control.find(&self.data)?];
        let Some(status) = dm.find(&self.name)? else {
            return match attached.into_iter().flatten().next() {
                Some(other) => Err(in_use(other.path().display().to_string())),
                None => Ok(None),
            };
        };
        let pool = ThinPool::open(dm.clone(), &self.name)?;
        let (table, _) = pool.table()?;
        let ours = [table.metadata, table.data];
        let is_on_files = attached.iter().map(|it| it.as_ref().map(LoopDevice::number)).eq(ours.map(Some));
        if status.uuid != Some(self.uuid) || !is_on_files {
            return Err(in_use(self.name.to_string()));
        }
        Ok(Some(pool))
    }

    /// Detached by the kernel when the pool is removed.
    fn attach(&self, control: &LoopControl, file: &File, name: &str) -> Result<LoopDevice> {
        let path = self.directory.join("devicemapper/devicemapper").join(name);
        Ok(control.attach(file, &path, &AttachOptions::new().autoclear(true))?)
    }
}
