//! Thin-pool metadata in the kernel's on-disk format, made from plain maps.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//! use dm_thin::model::image::{PoolContents, PoolImage, ThinContents};
//! use dm_thin::units::Sectors;
//!
//! let mut pool = PoolContents::new(Sectors(128), 1024, 1024);
//! // Virtual block -> data block, and the pool's time when it was mapped.
//! let mappings = Arc::new(BTreeMap::from([(0, (7, 0)), (5, (8, 0))]));
//! let origin = ThinContents { mappings, ..ThinContents::default() };
//! pool.thins = BTreeMap::from([(1, origin.clone()), (2, origin)]);
//! let image = PoolImage::new(&pool, None)?;
//! assert!(image.block(0).is_some(), "the superblock");
//! # Ok::<(), dm_thin::model::image::ImageError>(())
//! ```

mod builder;
mod contents;

mod node;
mod space;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use self::builder::Builder;
pub use self::contents::{HeldRoot, ImageError, Mappings, PoolContents, ThinContents};
use self::node::{Tree, children};
use crate::kernel::AlignedBlock;
use crate::thin::metadata::BlockSource;
use crate::thin::metadata::format::{
    BLOCK_SIZE, Block, BlockKind, THIN_METADATA_NEEDS_CHECK_FLAG, THIN_SUPERBLOCK_LOCATION,
    THIN_SUPERBLOCK_MAGIC, THIN_VERSION, disk_sm_root, thin_disk_superblock,
};

/// The blocks of a metadata device. Nodes with the same content are stored once.
#[derive(Debug, Clone)]
pub struct PoolImage {
    metadata_blocks: u64,
    superblock: thin_disk_superblock,
    /// By block number; the blocks behind the last one are zero, as are those that are none.
    blocks: Vec<Option<Arc<Block>>>,
}

impl PoolImage {
    /// Encodes a pool, with the blocks of a metadata snapshot where they were.
    pub fn new(contents: &PoolContents, held: Option<&HeldRoot>) -> Result<Self, ImageError> {
        let mut builder = Builder::new(contents)?;
        builder.hold(held)?;
        let data_mapping_root = builder.mappings(&contents.thins)?;
        let device_details_root = builder.details(&contents.thins)?;
        let data_space_map_root = builder.data_space_map()?;
        let metadata_space_map_root = builder.metadata_space_map()?;
        let mut superblock = thin_disk_superblock {
            csum: 0.into(),
            flags: if contents.needs_check { THIN_METADATA_NEEDS_CHECK_FLAG } else { 0 }.into(),
            blocknr: THIN_SUPERBLOCK_LOCATION.into(),
            uuid: [0; 16],
            magic: THIN_SUPERBLOCK_MAGIC.into(),
            version: THIN_VERSION.into(),
            time: contents.time.into(),
            trans_id: contents.transaction_id.into(),
            held_root: held.map_or(0, |held| held.location).into(),
            data_space_map_root,
            metadata_space_map_root,
            data_mapping_root: data_mapping_root.into(),
            device_details_root: device_details_root.into(),
            // Checked by the builder.
            data_block_size: u32::try_from(contents.block_size.0).unwrap_or(u32::MAX).into(),
            metadata_block_size: 8.into(),
            metadata_nr_blocks: contents.metadata_blocks.into(),
            compat_flags: 0.into(),
            compat_ro_flags: 0.into(),
            incompat_flags: 0.into(),
        };
        let mut blocks = builder.into_blocks();
        blocks[0] = Some(Arc::new(seal(&mut superblock)));
        Ok(Self { metadata_blocks: contents.metadata_blocks, superblock, blocks })
    }

    /// Copies the superblock to a free block, as `reserve_metadata_snap` does.
    pub fn hold(&self) -> Result<HeldRoot, ImageError> {
        let free = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len()) as u64;
        if free >= self.metadata_blocks {
            return Err(ImageError::OutOfSpace { available: self.metadata_blocks });
        }
        let mut copy = self.superblock;
        copy.blocknr = free.into();
        copy.held_root = 0.into();
        (copy.data_space_map_root, copy.metadata_space_map_root) =
            (disk_sm_root::new_zeroed(), disk_sm_root::new_zeroed());
        let mut held = HeldRoot { location: free, superblock: Arc::new(seal(&mut copy)), nodes: Vec::new() };
        let mut seen = HashSet::new();
        self.collect(Tree::Devices, copy.data_mapping_root.get(), &mut seen, &mut held.nodes);
        self.collect(Tree::Details, copy.device_details_root.get(), &mut seen, &mut held.nodes);
        Ok(held)
    }

    fn collect(
        &self,
        tree: Tree,
        at: u64,
        seen: &mut HashSet<u64>,
        nodes: &mut Vec<(Tree, u64, Arc<Block>)>,
    ) {
        let block = self.slot(at).filter(|_| seen.insert(at));
        let Some(block) = block else { return };
        children(tree, block).into_iter().for_each(|(tree, child)| self.collect(tree, child, seen, nodes));
        nodes.push((tree, at, Arc::clone(block)));
    }

    fn slot(&self, number: u64) -> Option<&Arc<Block>> {
        self.blocks.get(usize::try_from(number).ok()?)?.as_ref()
    }

    /// A block that is in use.
    pub fn block(&self, number: u64) -> Option<&Block> {
        self.slot(number).map(Arc::as_ref)
    }

    /// The blocks that are in use, and their numbers.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        (0..).zip(&self.blocks).filter_map(|(number, block)| Some((number, block.as_deref()?)))
    }

    /// The superblock.
    pub fn superblock(&self) -> &thin_disk_superblock {
        &self.superblock
    }
}

impl BlockSource for PoolImage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata_blocks)
    }

    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()> {
        let end = first.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.metadata_blocks) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, AlignedBlock(bytes)) in (first..).zip(buffer) {
            *bytes = self.block(number).copied().unwrap_or([0; BLOCK_SIZE]);
        }
        Ok(())
    }
}

/// The superblock as a block, with its checksum.
fn seal(superblock: &mut thin_disk_superblock) -> Block {
    let mut block = [0; BLOCK_SIZE];
    block[..size_of::<thin_disk_superblock>()].copy_from_slice(superblock.as_bytes());
    superblock.csum = BlockKind::Superblock.checksum(&block).into();
    block[..4].copy_from_slice(superblock.csum.as_bytes());
    block
}
