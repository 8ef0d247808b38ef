//! The metadata of a thin pool, read without the kernel: which blocks each thin device maps, which of them are
//! shared, and what changed between two of them.
//!
//! The metadata of an active pool changes all the time: it is read through a metadata snapshot, as
//! [`ThinPool::read_metadata`](super::ThinPool::read_metadata) does. That of an inactive pool is read from block 0.
//!
//! Nothing in the metadata is trusted: each block's checksum and number are verified, and keys, sizes and block
//! numbers are bounded before use. Damage is a [`MetadataError`] that names the block and what is wrong with it.
//!
//! ```no_run
//! use std::fs::File;
//! use std::sync::Arc;
//!
//! use dm_thin::thin::metadata::Metadata;
//!
//! // The metadata device of a pool that is not active, or a copy of it.
//! let metadata = Metadata::open(Arc::new(File::open("metadata.img")?))?;
//! for device in metadata.usage()? {
//!     println!("{}: {} mapped, {} exclusive", device.id, device.mapped, device.exclusive);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Facts about the format are from the kernel's `drivers/md/dm-thin-metadata.c` and `drivers/md/persistent-data/`.

mod blocks;
mod btree;
mod check;
mod counts;
mod details;
mod diff;
mod error;
pub mod format;
mod mapping;
mod node;
mod sharers;
mod source;
mod space_map;
mod superblock;
mod usage;
mod verify;

use std::sync::Arc;

pub use check::{Finding, Report, Tree, check};
pub use details::ThinDevice;
pub use diff::{Change, ChangeKind, Changes};
pub use error::{Damage, MetadataError};
pub use mapping::{Mapping, Mappings};
pub use source::{BlockSource, DeviceBlocks};
pub use space_map::SpaceMapKind;
pub use superblock::{SpaceMaps, Superblock};

use blocks::BlockReader;
use format::{ENTRIES_PER_BITMAP, THIN_SUPERBLOCK_LOCATION};

/// The metadata of a pool as it was committed, or as a metadata snapshot keeps it.
#[derive(Debug)]
pub struct Metadata {
    reader: BlockReader,
    superblock: Superblock,
    /// No mapping leads further.
    data_blocks: u64,
}

impl Metadata {
    /// Opens the metadata of a pool that is not active, or takes no changes.
    ///
    /// # Errors
    /// [`MetadataError::NotFormatted`] if the superblock is zeroes; [`MetadataError::Damaged`].
    pub fn open(source: Arc<dyn BlockSource>) -> Result<Self, MetadataError> {
        let superblock = Superblock::read(&*source)?.ok_or(MetadataError::NotFormatted)?;
        let reader = BlockReader::new(source)?;
        let space = superblock.space.as_ref();
        let data_blocks = space.map_or(0, |space| space.data_blocks.0);
        let metadata_blocks = space.map_or(0, |space| space.metadata.blocks);
        // A bitmap block for each of so many data blocks is in the metadata.
        let data_max = reader.len().saturating_mul(ENTRIES_PER_BITMAP);
        for (blocks, available) in [(data_blocks, data_max), (metadata_blocks, reader.len())] {
            if blocks > available {
                let damage = Damage::SpaceMapSize { blocks, available };
                return Err(MetadataError::Damaged { block: THIN_SUPERBLOCK_LOCATION, damage });
            }
        }
        Ok(Self { reader, superblock, data_blocks })
    }

    /// Opens the metadata snapshot whose superblock is in the block `root`
    /// ([`PoolUsage::held_metadata_root`](super::PoolUsage::held_metadata_root)).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_snapshot(source: Arc<dyn BlockSource>, root: u64) -> Result<Self, MetadataError> {
        // A metadata snapshot does not know the size of the data device; the pool's superblock does.
        let live = Self::open(source.clone())?;
        live.reader.check_child(0, root)?;
        let superblock = Superblock::read_at(&*source, root)?.ok_or(MetadataError::NotFormatted)?;
        let superblock = Superblock { metadata_blocks: live.superblock.metadata_blocks, ..superblock };
        Ok(Self { superblock, ..live })
    }

    /// Returns the superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Returns how many metadata blocks were read so far.
    pub fn blocks_read(&self) -> u64 {
        self.reader.blocks_read()
    }
}
