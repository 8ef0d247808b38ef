//! A pool on two block devices.

use std::path::Path;
use std::sync::Arc;

use super::inactive::{ClaimedDevice, InactivePool, table, whole_blocks};
use crate::dm::DeviceMapper;
use crate::kernel::{Access, Kernel};
use crate::thin::blank;
use crate::thin::metadata::{DeviceBlocks, Metadata};
use crate::tree::Options;
use crate::tree::state::device_ids::{DeviceIds, KnownDevices};
use crate::tree::state::journal::PoolRecord;
use crate::tree::{Error, Result};
use crate::units::Bytes;
use crate::{dm, thin};

pub(super) fn new_record(
    options: &Options,
    mut record: PoolRecord,
    data: &Path,
    metadata: &Path,
) -> Result<PoolRecord> {
    let kernel = &*options.kernel;
    // One device for both cannot be claimed twice, and has an error of its own.
    if let (Ok(data), Ok(metadata)) = (kernel.block_device(data), kernel.block_device(metadata)) {
        table(&record, metadata, data).check()?;
    }
    let claim = |path: &Path| ClaimedDevice::claim(kernel, path.into(), path.into());
    let metadata = claim(metadata)?;
    let data = claim(data)?;
    if !options.force_device {
        blank::check_blank(kernel, &data.file, &data.origin)?;
        blank::check_blank(kernel, &metadata.file, &metadata.origin)?;
    }
    let ids = |device: &ClaimedDevice| DeviceIds::read(kernel, device.number());
    record.devices = Some(KnownDevices { data: ids(&data), metadata: ids(&metadata) });
    (record.data_size, record.metadata_size) = (data.size(kernel)?, metadata.size(kernel)?);
    record.low_water_mark = options.new_low_water_mark(record.data_size, record.block_size);
    Ok(record)
}

/// Claims the metadata and the data device, wherever they are now.
fn claim(kernel: &dyn Kernel, pool: &PoolRecord, data: &Path, metadata: &Path) -> Result<[ClaimedDevice; 2]> {
    let known = pool.devices.clone().unwrap_or_default();
    let claim = |path: &Path, ids: &DeviceIds, size: Bytes| {
        let device = ClaimedDevice::claim(kernel, ids.locate(kernel, path)?, path.into())?;
        if device.size(kernel)? < size {
            let reason = "is smaller than it was; a part of the pool is missing";
            return Err(Error::BackingFile { path: path.into(), reason });
        }
        Ok(device)
    };
    let metadata = claim(metadata, &known.metadata, pool.metadata_size)?;
    Ok([metadata, claim(data, &known.data, pool.data_size)?])
}

pub(super) fn set_up(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    pool: &PoolRecord,
    data: &Path,
    metadata: &Path,
) -> Result<InactivePool> {
    let kernel = &*options.kernel;
    let [metadata, data] = claim(kernel, pool, data, metadata)?;
    let table = table(pool, metadata.number(), data.number());
    let size = whole_blocks(data.size(kernel)?, pool.block_size);
    let loops = Vec::new();
    Ok(InactivePool { dm: dm.clone(), table, size, metadata, data, loops, sub_devices: None })
}

/// Overwrites what was on the devices, if the tree was to take them whatever that is. Else there is nothing on them but
/// what an earlier attempt has left: another program may have used them since.
pub(super) fn make(options: &Options, pool: &PoolRecord, data: &Path, metadata: &Path) -> Result<()> {
    let kernel = &*options.kernel;
    if options.force_device {
        return wipe(kernel, pool, data, metadata);
    }
    let [metadata, data] = claim(kernel, pool, data, metadata)?;
    blank::check_blank(kernel, &data.file, &data.origin)?;
    blank::check_unused_metadata(kernel, &metadata.file, &metadata.origin)?;
    let blocks = DeviceBlocks::open(options.kernel.clone(), &metadata.node, false);
    let blocks = blocks.map_err(Error::io("open", &metadata.origin))?;
    match Metadata::open(Arc::new(blocks)).and_then(|metadata| metadata.device_ids()) {
        Ok(volumes) if !volumes.is_empty() => {
            let found = "a thin pool with volumes".to_owned();
            Err(thin::Error::DeviceInUse { device: metadata.origin, found }.into())
        }
        // Blank, or not formatted to the end.
        _ => Ok(()),
    }
}

/// Makes blank again what was found blank. What was there before a forced creation cannot be brought back.
pub(super) fn unmake(options: &Options, pool: &PoolRecord, data: &Path, metadata: &Path) {
    if !options.force_device {
        // Best effort: the error that undoes the tree is returned.
        let _ = wipe(&*options.kernel, pool, data, metadata);
    }
}

fn wipe(kernel: &dyn Kernel, pool: &PoolRecord, data: &Path, metadata: &Path) -> Result<()> {
    for ClaimedDevice { node, file, origin } in claim(kernel, pool, data, metadata)? {
        let claimed = file.number();
        drop(file);
        let file = kernel.open(&node, Access::READ_WRITE.exclusive());
        let file = file.map_err(|errno| Error::Open { path: origin.clone(), errno })?;
        if file.number() != claimed {
            let (device, found) = (origin.display().to_string(), file.number());
            return Err(dm::Error::Replaced { device, expected: claimed, found }.into());
        }
        blank::wipe(kernel, &file, &origin)?;
    }
    Ok(())
}
