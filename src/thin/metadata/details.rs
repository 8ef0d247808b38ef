//! The thin devices of a pool.

use zerocopy::FromBytes;

use super::Metadata;
use super::btree::{Leaves, lookup};
use super::error::{Damage, MetadataError};
use super::format::disk_device_details;
use crate::thin::{ThinId, TransactionId};
use crate::units::Blocks;

pub(super) const DETAILS_SIZE: usize = size_of::<disk_device_details>();

/// A thin device (`struct disk_device_details`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThinDevice {
    /// Its id.
    pub id: ThinId,
    /// Data blocks that it maps, its own and shared ones.
    pub mapped: Blocks,
    /// The pool's transaction id when it was created.
    pub transaction_id: TransactionId,
    /// The pool's time when it was created.
    pub creation_time: u32,
    /// The pool's time when the last snapshot of it was taken, or it was taken as one.
    pub snapshotted_time: u32,
}

impl Metadata {
    /// Returns all thin devices, in the order of their ids.
    ///
    /// # Errors
    /// [`MetadataError::Io`], [`MetadataError::Damaged`]; so for all that follow.
    pub fn devices(&self) -> Result<Vec<ThinDevice>, MetadataError> {
        self.devices_in(self.superblock.details_root)
    }

    /// All devices in a tree of details.
    pub(super) fn devices_in(&self, root: u64) -> Result<Vec<ThinDevice>, MetadataError> {
        let mut devices = Vec::new();
        let mut leaves = Leaves::new(&self.reader, root, 0, DETAILS_SIZE)?;
        while let Some(leaf) = leaves.next()? {
            for index in 0..leaf.len() {
                let device = device(leaf.key(index), leaf.value(index));
                devices.push(device.map_err(|damage| leaf.damaged(damage))?);
            }
        }
        Ok(devices)
    }

    /// Returns the ids of all thin devices, in order.
    pub fn device_ids(&self) -> Result<Vec<ThinId>, MetadataError> {
        Ok(self.devices()?.into_iter().map(|device| device.id).collect())
    }

    /// Returns a thin device, if there is one of that id.
    pub fn device(&self, id: ThinId) -> Result<Option<ThinDevice>, MetadataError> {
        let root = self.superblock.details_root;
        let key = id.get().into();
        let value = lookup(&self.reader, root, key, DETAILS_SIZE)?;
        let damaged = |damage| MetadataError::Damaged { block: root, damage };
        value.map(|value| device(key, &value).map_err(damaged)).transpose()
    }
}

/// The device of a key.
pub(super) fn device_id(key: u64) -> Result<ThinId, Damage> {
    let id = u32::try_from(key).ok().and_then(|id| ThinId::new(id).ok());
    id.ok_or(Damage::DeviceId { id: key })
}

fn device(key: u64, value: &[u8]) -> Result<ThinDevice, Damage> {
    let id = device_id(key)?;
    let disk = disk_device_details::read_from_bytes(value);
    let disk = disk.map_err(|_| Damage::ValueSize { found: 0, expected: 24 })?;
    Ok(ThinDevice {
        id,
        mapped: Blocks(disk.mapped_blocks.get()),
        transaction_id: TransactionId(disk.transaction_id.get()),
        creation_time: disk.creation_time.get(),
        snapshotted_time: disk.snapshotted_time.get(),
    })
}
