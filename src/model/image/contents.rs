//! What an image is made of.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use super::node::Tree;
use crate::thin::metadata::format::Block;
use crate::units::Sectors;

/// Virtual block → data block, and the pool's time when it was mapped.
pub type Mappings = BTreeMap<u64, (u64, u32)>;

/// What the metadata of a pool says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolContents {
    /// Size of a data block.
    pub block_size: Sectors,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Number of 4 KiB metadata blocks.
    pub metadata_blocks: u64,
    /// User space's number.
    pub transaction_id: u64,
    /// Number of snapshots ever taken.
    pub time: u32,
    /// Whether the metadata must be checked before the pool becomes writable.
    pub needs_check: bool,
    /// The thin devices by their ids.
    pub thins: BTreeMap<u32, ThinContents>,
}

impl PoolContents {
    /// A pool without thin devices.
    pub const fn new(block_size: Sectors, data_blocks: u64, metadata_blocks: u64) -> Self {
        let thins = BTreeMap::new();
        let (transaction_id, time, needs_check) = (0, 0, false);
        Self { block_size, data_blocks, metadata_blocks, transaction_id, time, needs_check, thins }
    }
}

/// What the metadata of a pool says of a thin device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThinContents {
    /// The mapped blocks. Devices that share the map share the root of their mapping tree; others share the nodes
    /// that are equal.
    pub mappings: Arc<Mappings>,
    /// The pool's transaction id when the device was created.
    pub transaction_id: u64,
    /// The pool's time when the device was created.
    pub creation_time: u32,
    /// The pool's time when a snapshot of the device was last taken, or it was taken as a snapshot.
    pub snapshotted_time: u32,
}

/// Why there is no image of such contents.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The metadata blocks do not suffice.
    #[error("the metadata needs more than {available} blocks")]
    OutOfSpace {
        /// Number of metadata blocks.
        available: u64,
    },
    /// A device maps a block that the data device does not have.
    #[error("data block {block} is out of range: the pool has {available}")]
    DataBlock {
        /// The block.
        block: u64,
        /// Number of data blocks.
        available: u64,
    },
    /// There are more metadata or data blocks than the format can hold.
    #[error("a pool of {data_blocks} data blocks and {metadata_blocks} metadata blocks is too large")]
    TooLarge {
        /// Number of data blocks.
        data_blocks: u64,
        /// Number of metadata blocks.
        metadata_blocks: u64,
    },
}

/// A metadata snapshot: a copy of the superblock, and the trees that it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRoot {
    pub(super) location: u64,
    pub(super) superblock: Arc<Block>,
    /// Children come before their parents.
    pub(super) nodes: Vec<(Tree, u64, Arc<Block>)>,
}

impl HeldRoot {
    /// Block number of the superblock's copy.
    pub const fn location(&self) -> u64 {
        self.location
    }
}
