//! A pool on two block devices.

use std::path::Path;
use std::sync::Arc;

use super::{ClaimedDevice, InactivePool, table, whole_blocks};
use crate::dm::DeviceMapper;
use crate::kernel::Kernel;
use crate::thin::METADATA_BLOCK_SIZE;
use crate::tree::Options;
use crate::tree::journal::PoolRecord;
use crate::units::Bytes;
use crate::{Error, Result};

/// Every label, partition table and superblock begins in here.
const DATA_BLANK: Bytes = Bytes::kib(128);

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
    demand_blank(kernel, &data, DATA_BLANK)?;
    demand_blank(kernel, &metadata, METADATA_BLOCK_SIZE)?;
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

fn demand_blank(kernel: &dyn Kernel, device: &ClaimedDevice, len: Bytes) -> Result<()> {
    let mut bytes = vec![0u8; usize::try_from(len.0).unwrap_or(usize::MAX)];
    let read = kernel.read_at(&device.file, 0, &mut bytes);
    let read = read.map_err(|errno| Error::io("read", &device.origin)(errno.into()))?;
    if bytes[..read].iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let reason = "is not blank; if nothing on it is needed, wipe its first 128 KiB";
    Err(Error::BackingFile { path: device.origin.clone(), reason })
}
