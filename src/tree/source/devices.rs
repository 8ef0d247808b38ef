//! A pool on two block devices.

use std::path::Path;
use std::sync::Arc;

use super::{ClaimedDevice, InactivePool, table, whole_blocks};
use crate::dm::DeviceMapper;
use crate::kernel::Access;
use crate::thin::blank;
use crate::tree::Options;
use crate::tree::journal::PoolRecord;
use crate::units::Bytes;
use crate::{Error, Result};

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
    (record.data_size, record.metadata_size) = (data.size(kernel)?, metadata.size(kernel)?);
    record.low_water_mark = options.new_low_water_mark(record.data_size, record.block_size);
    Ok(record)
}

pub(super) fn set_up(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    pool: &PoolRecord,
    data: &Path,
    metadata: &Path,
) -> Result<InactivePool> {
    let kernel = &*options.kernel;
    let claim = |path: &Path, size: Bytes| {
        let device = ClaimedDevice::claim(kernel, path.into(), path.into())?;
        let found = device.size(kernel)?;
        if found < size {
            let reason = "is smaller than it was; a part of the pool is missing";
            return Err(Error::BackingFile { path: path.into(), reason });
        }
        Ok((device, found))
    };
    let (metadata, _) = claim(metadata, pool.metadata_size)?;
    let (data, size) = claim(data, pool.data_size)?;
    let table = table(pool, metadata.number(), data.number());
    let size = whole_blocks(size, pool.block_size);
    let loops = Vec::new();
    Ok(InactivePool { dm: dm.clone(), table, size, metadata, data, loops, sub_devices: None })
}

/// Overwrites what was on the devices, if the tree was to take them whatever that is.
pub(super) fn make(options: &Options, data: &Path, metadata: &Path) -> Result<()> {
    if options.force_device { wipe(options, data, metadata) } else { Ok(()) }
}

/// Makes blank again what was found blank. What was there before a forced creation cannot be brought back.
pub(super) fn unmake(options: &Options, data: &Path, metadata: &Path) {
    if !options.force_device {
        // Best effort: the error that undoes the tree is returned.
        let _ = wipe(options, data, metadata);
    }
}

fn wipe(options: &Options, data: &Path, metadata: &Path) -> Result<()> {
    let kernel = &*options.kernel;
    for path in [metadata, data] {
        let file = kernel.open(path, Access::READ_WRITE.exclusive());
        let file = file.map_err(|errno| Error::Open { path: path.into(), errno })?;
        blank::wipe(kernel, &file, path)?;
    }
    Ok(())
}
