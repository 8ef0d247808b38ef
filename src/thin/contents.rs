//! What an active pool holds, read from a snapshot of its metadata.

use std::sync::{Arc, PoisonError};

use serde::Serialize;

use super::metadata::{DeviceBlocks, Metadata, MetadataError, Superblock};
use super::{PoolStatus, ThinId, ThinPool, tools};
use crate::thin::{Error, Result};
use crate::units::Blocks;

/// What a thin device has of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ThinUsage {
    /// Its id.
    pub id: ThinId,
    /// Data blocks that it has: those of its own, and those that it shares.
    pub mapped: Blocks,
    /// Data blocks that no other thin device has: to delete it frees these.
    pub exclusive: Blocks,
    /// Data blocks that others have, too: they are freed with the last of them.
    pub shared: Blocks,
}

/// A metadata snapshot. Dropping it releases it.
struct Held<'a>(&'a ThinPool);

impl Held<'_> {
    fn release(self) -> Result<()> {
        let pool = self.0;
        std::mem::forget(self);
        pool.release_metadata_snap()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Only a panic comes here, which must go on.
        let _ = self.0.release_metadata_snap();
    }
}

impl ThinPool {
    /// Runs `work` while a snapshot of the metadata is reserved, which other programs can read too. It is released
    /// however `work` ends, panics included; only a process that is killed leaves it reserved. Callers of this pool
    /// wait for each other, so `work` must not begin this again.
    ///
    /// # Errors
    /// As [`reserve_metadata_snap`](Self::reserve_metadata_snap); then what `work` says.
    pub fn with_metadata_snap<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _alone = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve_metadata_snap()?;
        let held = Held(self);
        let result = work();
        let released = held.release();
        let result = result?;
        released.map(|()| result)
    }

    /// Reads the pool's metadata as it is at this moment: through a metadata snapshot, held while `read` runs. A pool
    /// that is read-only takes no messages, and changes no metadata: it is read as it is.
    ///
    /// Hold it shortly: space of what is deleted meanwhile is not free before the release.
    ///
    /// # Errors
    /// [`Error::MetadataSnapHeld`] if another program holds the pool's one metadata snapshot;
    /// [`Error::Metadata`] for damage; then what `read` says.
    pub fn read_metadata<T>(&self, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        let blocks = Arc::new(self.metadata_blocks()?);
        let PoolStatus::Usage(usage) = self.status()? else {
            return read(&Metadata::open(blocks)?);
        };
        if !usage.mode.is_sound() {
            return read(&Metadata::open(blocks)?);
        }
        self.with_metadata_snap(|| {
            let root = match self.status()? {
                PoolStatus::Usage(usage) => usage.held_metadata_root,
                PoolStatus::Fail | PoolStatus::Error => None,
            };
            let root = root.ok_or_else(|| Error::MetadataSnapGone { pool: self.name().to_string() })?;
            read(&Metadata::open_snapshot(blocks, root.0)?)
        })
    }

    /// The pool's time, which rises with each snapshot: blocks that are written from now on, in snapshots that are made
    /// from now on, are mapped with a later one.
    pub(crate) fn time(&self) -> Result<u32> {
        let superblock = Superblock::read(&self.metadata_blocks()?)?;
        Ok(superblock.ok_or(MetadataError::NotFormatted)?.time)
    }

    /// The metadata device's blocks, past the page cache.
    pub(crate) fn metadata_blocks(&self) -> Result<DeviceBlocks> {
        let number = self.table()?.0.metadata;
        let kernel = self.device_mapper().kernel();
        let node = tools::node(&**kernel, number);
        let blocks = DeviceBlocks::open(kernel.clone(), &node, false).map_err(Error::io("open", &node))?;
        if blocks.number() == number {
            Ok(blocks)
        } else {
            Err(Error::Open { path: node, errno: nix::errno::Errno::ENXIO })
        }
    }

    /// Whether the metadata snapshot is held by another program, not by a caller of
    /// [`with_metadata_snap`](Self::with_metadata_snap).
    pub(crate) fn is_held_elsewhere(&self) -> Result<bool> {
        let _alone = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(matches!(self.status()?, PoolStatus::Usage(usage) if usage.held_metadata_root.is_some()))
    }

    /// The ids of all thin devices of the pool, in order.
    ///
    /// # Errors
    /// As [`read_metadata`](Self::read_metadata).
    pub fn thin_ids(&self) -> Result<Vec<ThinId>> {
        self.read_metadata(|metadata| Ok(metadata.device_ids()?))
    }

    /// All thin devices of the pool, in the order of their ids, and what each has of it at this moment. Each block of
    /// the mapping trees is read once, however many devices share it. What is exclusive is determined by comparing
    /// these trees: see [`Metadata::usage`].
    ///
    /// # Errors
    /// As [`read_metadata`](Self::read_metadata).
    pub fn thin_devices(&self) -> Result<Vec<ThinUsage>> {
        self.read_metadata(|metadata| Ok(metadata.usage()?))
    }
}
