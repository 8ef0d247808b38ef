//! Space maps: how often each data block and each metadata block is referred to.
//!
//! Two bits in a bitmap block hold a count of up to 2; larger ones are in a tree. The index names the bitmap
//! blocks: a tree in the data space map, one block in the metadata space map.

use std::collections::HashMap;

use zerocopy::FromBytes;

use super::Metadata;
use super::blocks::BlockReader;
use super::btree::{Leaves, lookup};
use super::error::{Damage, MetadataError};
use super::format::{
    Block, BlockKind, ENTRIES_PER_BITMAP, MAX_METADATA_BITMAPS, disk_bitmap_header, disk_index_entry,
    disk_metadata_index,
};
use super::superblock::SpaceMapRoot;
use crate::kernel::AlignedBlock;

pub(super) const INDEX_ENTRY_SIZE: usize = size_of::<disk_index_entry>();
pub(super) const REF_COUNT_SIZE: usize = size_of::<u32>();
/// The two bits of a count that is in the tree.
pub(super) const IN_TREE: u8 = 3;
/// Bitmap blocks that are kept: 4 MiB.
const CACHED: usize = 1024;

/// One of the two space maps of a pool.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpaceMapKind {
    /// Counts the leaves that name a data block.
    Data,
    /// Counts the places that name a metadata block.
    Metadata,
}

/// A space map, with the bitmap blocks that were read last.
#[derive(Debug)]
pub(super) struct SpaceMap<'a> {
    reader: &'a BlockReader,
    kind: SpaceMapKind,
    pub(super) root: SpaceMapRoot,
    /// The index of the metadata space map, once it was read.
    index: Option<disk_metadata_index>,
    bitmaps: HashMap<u64, Box<AlignedBlock>>,
    /// The bitmap that was asked last.
    last: Option<(u64, Box<AlignedBlock>)>,
}

impl Metadata {
    /// The space map, unless this is a metadata snapshot.
    pub(super) fn space_map(&self, kind: SpaceMapKind) -> Option<SpaceMap<'_>> {
        let space = self.superblock.space.as_ref()?;
        let root = match kind {
            SpaceMapKind::Data => space.data,
            SpaceMapKind::Metadata => space.metadata,
        };
        Some(SpaceMap { reader: &self.reader, kind, root, index: None, bitmaps: HashMap::new(), last: None })
    }
}

impl SpaceMap<'_> {
    /// The number of bitmap blocks.
    pub(super) fn bitmap_count(&self) -> u64 {
        self.root.blocks.div_ceil(ENTRIES_PER_BITMAP)
    }

    /// How often a block is referred to, or [`IN_TREE`].
    pub(super) fn bits(&mut self, block: u64) -> Result<u8, MetadataError> {
        if block >= self.root.blocks {
            let damage = Damage::SpaceMap { block, blocks: self.root.blocks };
            return Err(MetadataError::Damaged { block: self.root.bitmap_root, damage });
        }
        let number = block / ENTRIES_PER_BITMAP;
        if !matches!(&self.last, Some((last, _)) if *last == number) {
            let bitmap = match self.bitmaps.remove(&number) {
                Some(bitmap) => bitmap,
                None => {
                    let entry = self.entry(number)?;
                    self.bitmap(&entry)?
                }
            };
            if self.bitmaps.len() >= CACHED {
                self.bitmaps.clear();
            }
            self.bitmaps.extend(self.last.replace((number, bitmap)));
        }
        Ok(self.last.as_ref().map_or(0, |(_, bitmap)| two_bits(&bitmap.0, block % ENTRIES_PER_BITMAP)))
    }

    /// The index entry of a bitmap.
    fn entry(&mut self, number: u64) -> Result<disk_index_entry, MetadataError> {
        let root = self.root.bitmap_root;
        let missing = || MetadataError::Damaged { block: root, damage: Damage::NoBitmap { number } };
        if self.kind == SpaceMapKind::Metadata {
            let index = match &self.index {
                Some(index) => index,
                None => self.index.insert(self.metadata_index()?),
            };
            return usize::try_from(number)
                .ok()
                .and_then(|at| index.index.get(at).copied())
                .ok_or_else(missing);
        }
        let value = lookup(self.reader, root, number, INDEX_ENTRY_SIZE)?.ok_or_else(missing)?;
        disk_index_entry::read_from_bytes(&value).map_err(|_| missing())
    }

    fn metadata_index(&self) -> Result<disk_metadata_index, MetadataError> {
        let block = self.root.bitmap_root;
        self.reader.check_child(0, block)?;
        let bytes = self.reader.block(BlockKind::Index, block)?;
        let index = disk_metadata_index::read_from_bytes(&bytes.0);
        index.map_err(|_| MetadataError::Damaged { block, damage: Damage::NoBitmap { number: 0 } })
    }

    /// All index entries, in order.
    pub(super) fn entries(&self) -> Result<Vec<disk_index_entry>, MetadataError> {
        let (root, wanted) = (self.root.bitmap_root, self.bitmap_count());
        let mut entries = Vec::new();
        if self.kind == SpaceMapKind::Metadata {
            entries.extend(self.metadata_index()?.index);
            entries.truncate(usize::try_from(wanted).unwrap_or(MAX_METADATA_BITMAPS));
        } else {
            let mut leaves = Leaves::new(self.reader, root, 0, INDEX_ENTRY_SIZE)?;
            while let Some(leaf) = leaves.next()? {
                for at in 0..leaf.len() {
                    let number = entries.len() as u64;
                    let entry = disk_index_entry::read_from_bytes(leaf.value(at)).ok();
                    let entry = entry.filter(|_| leaf.key(at) == number);
                    entries.push(entry.ok_or_else(|| leaf.damaged(Damage::NoBitmap { number }))?);
                }
            }
        }
        if (entries.len() as u64) < wanted {
            let damage = Damage::NoBitmap { number: entries.len() as u64 };
            return Err(MetadataError::Damaged { block: root, damage });
        }
        entries.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        Ok(entries)
    }

    /// The bitmap block of an index entry.
    pub(super) fn bitmap(&self, entry: &disk_index_entry) -> Result<Box<AlignedBlock>, MetadataError> {
        self.reader.check_child(self.root.bitmap_root, entry.blocknr.get())?;
        self.reader.block(BlockKind::Bitmap, entry.blocknr.get())
    }
}

/// The two bits of an entry of a bitmap block; the lower bit is the high one of the count.
pub(super) fn two_bits(bitmap: &Block, entry: u64) -> u8 {
    let at = usize::try_from(entry).unwrap_or(usize::MAX);
    let byte = bitmap.get((at / 4).saturating_add(size_of::<disk_bitmap_header>()));
    let bits = byte.map_or(0, |byte| byte >> (at % 4 * 2));
    (bits & 1) << 1 | bits >> 1 & 1
}
