//! The superblock, and the copy of it that is a metadata snapshot.

use zerocopy::FromBytes;

use super::BlockSource;
use super::error::{Damage, MetadataError};
use super::format::{
    BLOCK_SIZE, BlockKind, THIN_METADATA_NEEDS_CHECK_FLAG, THIN_SUPERBLOCK_LOCATION, THIN_SUPERBLOCK_MAGIC,
    disk_sm_root, thin_disk_superblock,
};
use super::verify::verify;
use crate::kernel::AlignedBlock;
use crate::thin::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, TransactionId};
use crate::units::{Blocks, Sectors};

/// A read is torn if the kernel writes block 0 at the same time.
const TRIES: u32 = 5;

/// A pool's superblock (`struct thin_disk_superblock`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Superblock {
    /// User space's number.
    pub transaction_id: TransactionId,
    /// Counts the snapshots that were taken.
    pub time: u32,
    /// The size of a data block.
    pub block_size: Sectors,
    /// The metadata must be checked before the pool becomes writable again.
    pub needs_check: bool,
    /// The block of the metadata snapshot's superblock, if one is held.
    pub held_root: Option<u64>,
    /// The metadata blocks that the pool uses; the device may have more.
    pub metadata_blocks: Blocks,
    /// The space maps; none in a metadata snapshot.
    pub space: Option<SpaceMaps>,
    pub(super) mapping_root: u64,
    pub(super) details_root: u64,
}

/// What the superblock says of the two space maps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceMaps {
    /// Data blocks.
    pub data_blocks: Blocks,
    /// Data blocks in use.
    pub data_used: Blocks,
    /// Metadata blocks in use.
    pub metadata_used: Blocks,
    pub(super) data: SpaceMapRoot,
    pub(super) metadata: SpaceMapRoot,
}

/// Where a space map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpaceMapRoot {
    pub(super) blocks: u64,
    pub(super) allocated: u64,
    pub(super) bitmap_root: u64,
    pub(super) ref_count_root: u64,
}

impl SpaceMapRoot {
    fn new(root: &disk_sm_root) -> Self {
        Self {
            blocks: root.nr_blocks.get(),
            allocated: root.nr_allocated.get(),
            bitmap_root: root.bitmap_root.get(),
            ref_count_root: root.ref_count_root.get(),
        }
    }
}

impl Superblock {
    /// Reads block 0, also of a pool that is active. `None` if it is zeroes: then the kernel formats the metadata when
    /// a pool is activated on it.
    ///
    /// # Errors
    /// [`MetadataError::Io`], [`MetadataError::Damaged`].
    pub fn read(source: &dyn BlockSource) -> Result<Option<Self>, MetadataError> {
        for _ in 1..TRIES {
            match Self::read_at(source, THIN_SUPERBLOCK_LOCATION) {
                Err(MetadataError::Damaged { damage: Damage::Checksum { .. }, .. }) => {}
                result => return result,
            }
        }
        Self::read_at(source, THIN_SUPERBLOCK_LOCATION)
    }

    /// Reads the superblock in that block: 0, or the root of a metadata snapshot.
    pub(super) fn read_at(source: &dyn BlockSource, block: u64) -> Result<Option<Self>, MetadataError> {
        let mut buffer = [AlignedBlock([0; BLOCK_SIZE])];
        source.read(block, &mut buffer).map_err(|source| MetadataError::Io { block, source })?;
        let bytes = &buffer[0].0;
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        verify(BlockKind::Superblock, block, bytes)?;
        let damaged = |damage| MetadataError::Damaged { block, damage };
        let Ok((disk, _)) = thin_disk_superblock::read_from_prefix(bytes) else {
            return Err(damaged(Damage::Magic { found: 0 }));
        };
        Self::new(&disk, block == THIN_SUPERBLOCK_LOCATION).map(Some).map_err(damaged)
    }

    fn new(disk: &thin_disk_superblock, is_live: bool) -> Result<Self, Damage> {
        if disk.magic.get() != THIN_SUPERBLOCK_MAGIC {
            return Err(Damage::Magic { found: disk.magic.get() });
        }
        if !(1..=2).contains(&disk.version.get()) {
            return Err(Damage::Version { found: disk.version.get() });
        }
        if disk.incompat_flags.get() != 0 {
            return Err(Damage::Features { flags: disk.incompat_flags.get() });
        }
        let sectors = disk.data_block_size.get();
        let block_size = Sectors(sectors.into());
        if !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) || !sectors.is_multiple_of(128) {
            return Err(Damage::BlockSize { sectors });
        }
        if disk.metadata_block_size.get() != 8 {
            return Err(Damage::MetadataBlockSize { sectors: disk.metadata_block_size.get() });
        }
        let data = SpaceMapRoot::new(&disk.data_space_map_root);
        let metadata = SpaceMapRoot::new(&disk.metadata_space_map_root);
        let space = SpaceMaps {
            data_blocks: Blocks(data.blocks),
            data_used: Blocks(data.allocated),
            metadata_used: Blocks(metadata.allocated),
            data,
            metadata,
        };
        Ok(Self {
            transaction_id: TransactionId(disk.trans_id.get()),
            time: disk.time.get(),
            block_size,
            needs_check: disk.flags.get() & THIN_METADATA_NEEDS_CHECK_FLAG != 0,
            held_root: Some(disk.held_root.get()).filter(|&root| root != 0),
            // The field of that name is written when the pool is formatted, and not when it grows.
            metadata_blocks: Blocks(if metadata.blocks == 0 {
                disk.metadata_nr_blocks.get()
            } else {
                metadata.blocks
            }),
            space: Some(space).filter(|_| is_live),
            mapping_root: disk.data_mapping_root.get(),
            details_root: disk.device_details_root.get(),
        })
    }
}
