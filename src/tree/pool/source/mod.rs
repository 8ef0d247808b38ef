//! Where a tree's pool comes from: loop files, two devices, one labelled device, or a pool that is there already.

mod adopted;
mod devices;
mod inactive;
mod labelled;
mod loop_files;
mod sub_devices;

use std::sync::Arc;

use crate::dm::{DeviceMapper, DmName, DmUuid};
use crate::thin::{LabelledDevice, ThinPool};
use crate::tree::Options;
use crate::tree::Result;
use crate::tree::state::journal::PoolRecord;
use crate::tree::state::pool_source::PoolSource;
use crate::tree::state::root::Root;

pub(in crate::tree) use adopted::{adopted, check_block_size};
pub(in crate::tree) use inactive::{InactivePool, whole_blocks};
pub(in crate::tree) use labelled::labelled;
pub(in crate::tree) use loop_files::has_files;

/// The pool of a new tree. Devices are blank, a pool that is there is one.
pub(in crate::tree) fn new_record(options: &Options, dm: &Arc<DeviceMapper>) -> Result<PoolRecord> {
    let record = options.new_pool();
    match record.source.clone() {
        PoolSource::LoopFiles => options.check_maximum(record.data_size).map(|()| record),
        PoolSource::Devices { data, metadata } => devices::new_record(options, record, &data, &metadata),
        PoolSource::Device { path } => labelled::new_record(options, dm, record, &path),
        PoolSource::Pool { name } => adopted::new_record(options, dm, record, &name),
    }
}

/// Makes what a pool is to be on, as the state says that it was not made yet. What an earlier attempt left is made
/// again: nothing was ever in it.
pub(in crate::tree) fn make(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    root: &Root,
    pool: &PoolRecord,
) -> Result<()> {
    match &pool.source {
        PoolSource::LoopFiles => loop_files::make(options, root, pool),
        PoolSource::Device { path } => labelled::make(options, dm, path, pool),
        PoolSource::Devices { data, metadata } => devices::make(options, pool, data, metadata),
        PoolSource::Pool { .. } => Ok(()),
    }
}

/// Undoes [`make`]: devices are blank again.
pub(in crate::tree) fn unmake(options: &Options, dm: &Arc<DeviceMapper>, pool: &PoolRecord) {
    match &pool.source {
        PoolSource::Devices { data, metadata } => devices::unmake(options, pool, data, metadata),
        _ => labelled::unmake(dm, pool),
    }
}

/// Sets up the two devices of a pool that is not active, and claims them.
///
/// # Errors
/// EBUSY ([`Error::is_busy`]) if another program uses one of them; [`Error::BackingFile`] if one is gone, or smaller
/// than it was.
pub(in crate::tree) fn set_up(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    root: &Root,
    pool: &PoolRecord,
    name: &DmName,
) -> Result<InactivePool> {
    match &pool.source {
        PoolSource::LoopFiles => loop_files::set_up(options, dm, root, pool),
        PoolSource::Device { .. } => labelled::set_up(options, dm, pool, name),
        PoolSource::Devices { data, metadata } => devices::set_up(options, dm, pool, data, metadata),
        PoolSource::Pool { name } => Err(adopted::gone(name)),
    }
}

/// Removes a pool that was just activated, and the devices that do not end with it.
pub(in crate::tree) fn deactivate(pool: &ThinPool, record: &PoolRecord) -> Result<()> {
    pool.deactivate()?;
    Ok(parts(record)?.iter().try_for_each(|part| pool.device_mapper().remove(part))?)
}

/// The devices that are to be removed after a pool: those that do not end with it.
pub(in crate::tree) fn parts(pool: &PoolRecord) -> Result<Vec<DmUuid>> {
    pool.label.map_or(Ok(Vec::new()), |label| Ok(LabelledDevice::sub_device_uuids(label).map(Vec::from)?))
}
