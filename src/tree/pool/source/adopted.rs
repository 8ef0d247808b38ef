//! A pool that was there before the tree.

use std::sync::Arc;

use super::inactive::pool_mode;
use crate::dm::{DeviceMapper, DeviceStatus, DmName};
use crate::thin::{METADATA_BLOCK_SIZE, PoolStatus, ThinPool};
use crate::tree::Options;
use crate::tree::state::journal::PoolRecord;
use crate::tree::state::pool_source::Adopted;
use crate::tree::{Error, Result};

pub(super) fn new_record(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    mut record: PoolRecord,
    name: &str,
) -> Result<PoolRecord> {
    let (pool, status) = find(dm, name)?;
    if status.uuid.is_some_and(|uuid| uuid.as_bytes().starts_with(b"DMTHIN-")) {
        return Err(Error::PrivatePool { pool: name.to_owned() });
    }
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
    record.adopted =
        Some(Adopted { uuid: status.uuid.map(|uuid| uuid.to_string()), foreign_transaction: true });
    Ok(record)
}

/// The adopted pool of a tree: there, and the one that was adopted.
pub(in crate::tree) fn adopted(dm: &Arc<DeviceMapper>, name: &str, record: &PoolRecord) -> Result<ThinPool> {
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

/// Checks that the pool's blocks are as large as the state says.
pub(in crate::tree) fn check_block_size(pool: &ThinPool, record: &PoolRecord) -> Result<()> {
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

/// Only its owner can activate an adopted pool.
pub(super) fn gone(name: &str) -> Error {
    Error::NoPool { name: name.to_owned() }
}

fn find(dm: &Arc<DeviceMapper>, name: &str) -> Result<(ThinPool, DeviceStatus)> {
    let name = DmName::new(name)?;
    let status = dm.find(&name)?.ok_or_else(|| gone(name.to_str().unwrap_or_default()))?;
    let pool = ThinPool::open(dm.clone(), &name)?;
    dm.ensure_node(&name, status.number)?;
    Ok((pool, status))
}
