//! A pool from two sparse files on loop devices, from two given devices, or one that is there already.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::Options;
use super::journal::PoolRecord;
use super::pool_source::{Adopted, PoolSource};
use crate::abi::block::{BLKFLSBUF, BLKGETSIZE64};
use crate::dm::{DeviceMapper, DeviceStatus, DmName, DmUuid};
use crate::kernel::{Access, Arg, DeviceFile, DeviceNumber, Kernel};
use crate::loopdev::{AttachOptions, LoopControl, LoopDevice};
use crate::thin::tools::{begins_with_zeroes, is_blank, node};
use crate::thin::{
    METADATA_BLOCK_SIZE, Part, PoolMode, PoolStatus, PoolTable, SplitDevice, SplitOptions, ThinPool,
    TransactionId,
};
use crate::units::{Bytes, Sectors};
use crate::{Error, Result};

/// Make what a pool is to be on, as the state says that is not made yet. What an earlier attempt left is made again:
/// nothing was ever in it.
pub(super) fn make(options: &Options, dm: &Arc<DeviceMapper>, dir: &Path, pool: &PoolRecord) -> Result<()> {
    match (&pool.source, pool.label) {
        (PoolSource::LoopFiles, _) => make_files(dir, pool),
        (PoolSource::Device { path }, Some(label)) => match labelled(dm, pool, label) {
            Ok(device) => device.rewrite(),
            Err(Error::NoLabel { .. }) => {
                let (metadata, data) = (pool.metadata_size.sectors(), pool.data_size.sectors());
                let split = split_options(options, pool).uuid(label).metadata(metadata).data(data);
                SplitDevice::format(dm.clone(), path, &split).map(drop)
            }
            Err(error) => Err(error),
        },
        _ => Ok(()),
    }
}

fn split_options(options: &Options, pool: &PoolRecord) -> SplitOptions {
    SplitOptions::new().block_size(pool.block_size.sectors()).force(options.force_device)
}

fn make_files(dir: &Path, pool: &PoolRecord) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", dir)(error));
        }
        _ => {}
    }
    for (name, size) in [("data", pool.data_size), ("metadata", pool.metadata_size)] {
        let path = dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(Error::io("create", &path))?;
        file.set_len(0).and_then(|()| file.set_len(size.0)).map_err(Error::io("extend", &path))?;
        file.sync_all().map_err(Error::io("sync", &path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// Whether files of a pool are there, whoever made them.
pub(super) fn has_files(dir: &Path) -> bool {
    ["data", "metadata"].iter().any(|name| fs::symlink_metadata(dir.join(name)).is_ok())
}

/// The pool of a new tree. Devices are blank, a pool that is there is one.
pub(super) fn new_record(options: &Options, dm: &Arc<DeviceMapper>) -> Result<PoolRecord> {
    let mut record = options.new_pool();
    match record.source.clone() {
        PoolSource::LoopFiles => options.check_maximum(record.data_size)?,
        PoolSource::Devices { data, metadata } => {
            let kernel = &*options.kernel;
            let (data, metadata) = (Device::open(kernel, data)?, Device::open(kernel, metadata)?);
            data.demand_blank(DATA_BLANK)?;
            metadata.demand_blank(METADATA_BLOCK_SIZE)?;
            (record.data_size, record.metadata_size) = (data.size, metadata.size);
            record.low_water_mark = options.new_low_water_mark(data.size, record.block_size);
            table(&record, metadata.number, data.number).check()?;
        }
        PoolSource::Device { path } => {
            // Written when the state knows it: a label that no state knows would keep everybody out.
            let label = SplitDevice::plan(dm, &path, &split_options(options, &record))?;
            record.data_size = label.size(Part::Data).bytes();
            record.metadata_size = label.size(Part::Metadata).bytes();
            record.low_water_mark = options.new_low_water_mark(record.data_size, record.block_size);
            record.label = Some(label.uuid);
        }
        PoolSource::Pool { name } => {
            let (pool, status) = find(dm, &name)?;
            let (table, size) = pool.table()?;
            options.check_adopted(&table)?;
            let usage = match pool.status()? {
                PoolStatus::Usage(usage) => usage,
                status => return Err(pool_mode(&pool, status.mode())),
            };
            record.block_size = table.block_size.bytes();
            record.low_water_mark = table.low_water_mark;
            record.features = table.features;
            record.data_size = size.bytes();
            record.metadata_size = usage.total_metadata.bytes(METADATA_BLOCK_SIZE.sectors());
            record.made = true;
            record.adopted = Some(Adopted {
                uuid: status.uuid.map(|uuid| uuid.to_string()),
                foreign_transaction: usage.transaction_id != TransactionId(0),
            });
        }
    }
    Ok(record)
}

/// Activate the pool of files or devices. Nothing stays behind if that fails.
pub(super) fn activate(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    dir: &Path,
    pool: &PoolRecord,
    (name, uuid): (&DmName, &DmUuid),
) -> Result<ThinPool> {
    if let PoolSource::Devices { data, metadata } = &pool.source {
        // Who else has one of them in use makes this fail with EBUSY: the pool claims them.
        let open = |path: &Path, size: Bytes| {
            let device = Device::open(&*options.kernel, path.into())?;
            if device.size < size {
                let reason = "is smaller than it was; a part of the pool is missing";
                return Err(Error::BackingFile { path: device.path, reason });
            }
            Ok(device)
        };
        let (metadata, data) = (open(metadata, pool.metadata_size)?, open(data, pool.data_size)?);
        metadata.demand_formatted(options, pool)?;
        options.check_metadata.check(&metadata.path)?;
        let table = table(pool, metadata.number, data.number);
        let size = whole_blocks(data.size, pool.block_size);
        return ThinPool::create(dm.clone(), name, uuid, &table, size).map_err(no_pool(&metadata.path));
    }
    if let Some(label) = pool.label {
        let device = labelled(dm, pool, label)?;
        let PoolTable { metadata, data, .. } = device.activate(name)?;
        let table = table(pool, metadata, data);
        let size = whole_blocks(device.label().size(Part::Data).bytes(), pool.block_size);
        let node = node(metadata);
        let checked = || {
            Device::open(&*options.kernel, node.clone())?.demand_formatted(options, pool)?;
            options.check_metadata.check(&node)
        };
        let created = checked()
            .and_then(|()| ThinPool::create(dm.clone(), name, uuid, &table, size).map_err(no_pool(&node)));
        return created.inspect_err(|_| {
            let _ = device.deactivate(name);
        });
    }
    let control = LoopControl::with_kernel(options.kernel.clone())?;
    let metadata = attach(&control, &dir.join("metadata"), pool.metadata_size, options.direct_io)?;
    let data = attach(&control, &dir.join("data"), pool.data_size, options.direct_io)?;
    let path = dir.join("metadata");
    if pool.made && is_blank(&path)? {
        return Err(superblock_gone(path));
    }
    options.check_metadata.check(&path)?;
    let table = table(pool, metadata.number(), data.number());
    // The devices are autoclear: from here on the pool keeps them open, and they end with it.
    let size = whole_blocks(data.size()?, pool.block_size);
    ThinPool::create(dm.clone(), name, uuid, &table, size).map_err(no_pool(&path))
}

/// What the kernel's check of a metadata block means: another block's number, or a checksum.
fn no_pool(metadata: &Path) -> impl FnOnce(Error) -> Error {
    move |error| match error.errno() {
        Some(Errno::ENOTBLK | Errno::EILSEQ) => {
            let reason =
                "is damaged, or no thin pool's metadata; thin_check tells more, thin_repair may save it";
            Error::BackingFile { path: metadata.into(), reason }
        }
        _ => error,
    }
}

/// The devices that are to be removed after a pool: those that do not end with it.
pub(super) fn parts(name: &DmName, pool: &PoolRecord) -> Result<Vec<DmName>> {
    pool.label.map_or(Ok(Vec::new()), |_| SplitDevice::part_names(name).map(Vec::from))
}

/// Remove a pool that was just activated, and those devices.
pub(super) fn deactivate(dm: &DeviceMapper, name: &DmName, pool: &PoolRecord) -> Result<()> {
    dm.remove(name)?;
    parts(name, pool)?.iter().try_for_each(|part| dm.remove(part))
}

/// Undo [`make`]: the device carries nothing again, if it carries the label.
pub(super) fn unmake(dm: &Arc<DeviceMapper>, pool: &PoolRecord) {
    if let (Some(label), PoolSource::Device { path }) = (pool.label, &pool.source)
        && SplitDevice::open(dm.clone(), path).is_ok_and(|device| device.label().uuid == label)
    {
        let file = OpenOptions::new().write(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(&[0; 1 << 20]).and_then(|()| file.sync_all()));
    }
}

/// The device with that label, at its path or elsewhere.
fn labelled(dm: &Arc<DeviceMapper>, pool: &PoolRecord, label: Uuid) -> Result<SplitDevice> {
    if let PoolSource::Device { path } = &pool.source
        && let Ok(device) = SplitDevice::open(dm.clone(), path)
        && device.label().uuid == label
    {
        return Ok(device);
    }
    SplitDevice::find(dm.clone(), label)
}

/// The adopted pool of a tree: there, and the one that was adopted.
pub(super) fn adopted(dm: &Arc<DeviceMapper>, name: &str, record: &PoolRecord) -> Result<ThinPool> {
    let (pool, status) = find(dm, name)?;
    let uuid = status.uuid.map(|uuid| uuid.to_string());
    let recorded = record.adopted.as_ref().and_then(|adopted| adopted.uuid.clone());
    if uuid != recorded {
        let text = |uuid: Option<String>| uuid.unwrap_or_else(|| "none".to_owned());
        return Err(Error::OptionConflict {
            option: "pool uuid",
            recorded: text(recorded),
            asked: text(uuid),
        });
    }
    check_block_size(&pool, record)?;
    Ok(pool)
}

/// See to it that the pool's blocks are what the state says.
pub(super) fn check_block_size(pool: &ThinPool, record: &PoolRecord) -> Result<()> {
    let (table, _) = pool.table()?;
    if table.block_size.bytes() == record.block_size {
        return Ok(());
    }
    Err(Error::OptionConflict {
        option: "block size",
        recorded: record.block_size.to_string(),
        asked: table.block_size.bytes().to_string(),
    })
}

fn find(dm: &Arc<DeviceMapper>, name: &str) -> Result<(ThinPool, DeviceStatus)> {
    let name = DmName::new(name)?;
    let status = dm.status((&name).into())?;
    let pool = ThinPool::open(dm.clone(), &name)?;
    dm.ensure_node(&name, status.number)?;
    Ok((pool, status))
}

fn table(pool: &PoolRecord, metadata: DeviceNumber, data: DeviceNumber) -> PoolTable {
    let block_size = pool.block_size.sectors();
    PoolTable { metadata, data, block_size, low_water_mark: pool.low_water_mark, features: pool.features }
}

/// All of the data device, which may have grown since it was recorded: a pool that has taken that over cannot
/// become smaller again. A device need not be a whole number of blocks; the pool does.
pub(super) fn whole_blocks(data: Bytes, block_size: Bytes) -> Sectors {
    Bytes(data.0 - data.0 % block_size.0).sectors()
}

pub(super) fn pool_mode(pool: &ThinPool, mode: PoolMode) -> Error {
    Error::PoolMode { pool: pool.name().to_string(), mode, consequence: "it cannot be used" }
}

/// Every label, partition table and superblock begins in here.
const DATA_BLANK: Bytes = Bytes::kib(128);

struct Device {
    path: PathBuf,
    file: DeviceFile,
    number: DeviceNumber,
    size: Bytes,
}

impl Device {
    fn open(kernel: &dyn Kernel, path: PathBuf) -> Result<Self> {
        let file = match kernel.open(&path, Access::READ) {
            Ok(file) => file,
            Err(Errno::ENOTBLK) => {
                return Err(Error::BackingFile { path, reason: "is not a block device" });
            }
            Err(errno) => return Err(Error::Open { path, errno }),
        };
        let mut size = 0u64;
        if let Err(errno) = kernel.ioctl(&file, BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes())) {
            return Err(Error::Io { action: "get the size of", path, source: errno.into() });
        }
        Ok(Self { path, number: file.number(), file, size: Bytes(size) })
    }

    fn is_blank(&self, len: Bytes) -> Result<bool> {
        let read = || {
            let file = File::from(self.file.as_fd().try_clone_to_owned()?);
            begins_with_zeroes(file, len)
        };
        read().map_err(Error::io("read", &self.path))
    }

    fn demand_blank(&self, len: Bytes) -> Result<()> {
        if self.is_blank(len)? {
            return Ok(());
        }
        let reason = "is not blank; if nothing on it is needed, wipe its first 128 KiB";
        Err(Error::BackingFile { path: self.path.clone(), reason })
    }

    /// See to it that a pool that was made has a superblock: the kernel would format the metadata without one.
    fn demand_formatted(&self, options: &Options, pool: &PoolRecord) -> Result<()> {
        if !pool.made {
            return Ok(());
        }
        // The pool writes past the page cache, where the zeroes of old may still be.
        options.kernel.ioctl(&self.file, BLKFLSBUF, Arg::Value(0)).map_err(|errno| Error::Io {
            action: "drop the cache of",
            path: self.path.clone(),
            source: errno.into(),
        })?;
        if self.is_blank(METADATA_BLOCK_SIZE)? { Err(superblock_gone(self.path.clone())) } else { Ok(()) }
    }
}

fn superblock_gone(path: PathBuf) -> Error {
    let reason =
        "begins with zeroes where the pool's superblock was; thin_repair can save what is behind them";
    Error::BackingFile { path, reason }
}

fn attach(control: &LoopControl, path: &Path, size: Bytes, direct_io: bool) -> Result<LoopDevice> {
    let wrong = |reason| Error::BackingFile { path: path.into(), reason };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => wrong("is gone; the tree cannot work without it"),
        _ => Error::io("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(Error::io("stat", path))?;
    if !metadata.is_file() {
        return Err(wrong("is not a regular file"));
    }
    if metadata.size() < size.0 {
        return Err(wrong("is shorter than it was made; a part of the pool is missing"));
    }
    // Left over by a process that died on a kernel without LOOP_CONFIGURE. A second device over the same
    // file would not see what the first one writes.
    if let Some(device) = control.find(&file)? {
        return Ok(device);
    }
    control.attach(&file, path, &AttachOptions::new().autoclear(true).direct_io(direct_io))
}
