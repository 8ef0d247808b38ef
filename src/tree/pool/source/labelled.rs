//! A pool on one block device that is split behind a label.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::inactive::{ClaimedDevice, InactivePool, table, whole_blocks};
use super::sub_devices::SubDevices;
use crate::dm::{DeviceMapper, DmName};
use crate::thin;
use crate::thin::{LabelledDevice, LabelledOptions, PoolTable, SubDevice, tools};
use crate::tree::Options;
use crate::tree::state::journal::PoolRecord;
use crate::tree::state::pool_source::PoolSource;
use crate::tree::{Error, Result};

pub(super) fn new_record(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    mut record: PoolRecord,
    path: &Path,
) -> Result<PoolRecord> {
    // Written when the state knows it: a label that no state knows would keep everybody out.
    let label = LabelledDevice::plan(dm, path, &split_options(options, &record))?;
    record.data_size = label.size(SubDevice::Data).bytes();
    record.metadata_size = label.size(SubDevice::Metadata).bytes();
    record.low_water_mark = options.new_low_water_mark(record.data_size, record.block_size);
    record.label = Some(label.uuid);
    Ok(record)
}

pub(super) fn make(options: &Options, dm: &Arc<DeviceMapper>, path: &Path, pool: &PoolRecord) -> Result<()> {
    let Some(label) = pool.label else { return Ok(()) };
    match labelled(dm, pool, label) {
        Ok(device) => Ok(device.rewrite()?),
        Err(Error::Thin(thin::Error::NoLabel { .. })) => {
            let (metadata, data) = (pool.metadata_size.sectors(), pool.data_size.sectors());
            let split = split_options(options, pool).uuid(label).metadata(metadata).data(data);
            Ok(LabelledDevice::format(dm.clone(), path, &split).map(drop)?)
        }
        Err(error) => Err(error),
    }
}

fn split_options(options: &Options, pool: &PoolRecord) -> LabelledOptions {
    let split = LabelledOptions::new().block_size(pool.block_size.sectors()).force(options.force_device);
    match options.device_shares {
        Some(shares) => split.shares(shares),
        None => split,
    }
}

pub(super) fn unmake(dm: &Arc<DeviceMapper>, pool: &PoolRecord) {
    if let (Some(label), PoolSource::Device { path }) = (pool.label, &pool.source)
        && let Ok(device) = LabelledDevice::open(dm.clone(), path)
        && device.label().uuid == label
    {
        // Best effort: the error that undoes the tree is returned.
        let _ = device.wipe();
    }
}

pub(super) fn set_up(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    pool: &PoolRecord,
    name: &DmName,
) -> Result<InactivePool> {
    let device = labelled(dm, pool, pool.label.unwrap_or_default())?;
    let PoolTable { metadata, data, .. } = device.activate(name)?;
    let size = whole_blocks(device.label().size(SubDevice::Data).bytes(), pool.block_size);
    let table = table(pool, metadata, data);
    let sub_devices = Some(SubDevices::new(device));
    let claim = |number| {
        let node = tools::node(&**dm.kernel(), number);
        ClaimedDevice::claim(&*options.kernel, node.clone(), node)
    };
    let (metadata, data) = (claim(metadata)?, claim(data)?);
    Ok(InactivePool { dm: dm.clone(), table, size, metadata, data, loops: Vec::new(), sub_devices })
}

/// The device with that label, at its path or elsewhere.
pub(in crate::tree) fn labelled(
    dm: &Arc<DeviceMapper>,
    pool: &PoolRecord,
    label: Uuid,
) -> Result<LabelledDevice> {
    if let PoolSource::Device { path } = &pool.source
        && let Ok(device) = LabelledDevice::open(dm.clone(), path)
        && device.label().uuid == label
    {
        return Ok(device);
    }
    Ok(LabelledDevice::find(dm.clone(), label)?)
}
