//! A space map against the references that were counted.

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::super::blocks::BlockReader;
use super::super::btree::Leaves;
use super::super::counts::Counts;
use super::super::error::{Damage, MetadataError};
use super::super::format::{ENTRIES_PER_BITMAP, disk_bitmap_header, disk_index_entry};
use super::super::node::Node;
use super::super::space_map::{IN_TREE, REF_COUNT_SIZE, SpaceMap, SpaceMapKind, two_bits};
use super::report::{Finding, Report, Tree};
use crate::units::Blocks;

/// Reads a space map from its begin to its end.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    map: SpaceMap<'a>,
    kind: SpaceMapKind,
    index: Vec<disk_index_entry>,
    large: LargeCounts<'a>,
    allocated: u64,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        reader: &'a BlockReader,
        map: SpaceMap<'a>,
        kind: SpaceMapKind,
    ) -> Result<Self, MetadataError> {
        let large = LargeCounts::new(reader, map.root.ref_count_root)?;
        Ok(Self { index: map.entries()?, map, kind, large, allocated: 0 })
    }

    /// Compares the bitmaps of the blocks from `first` to before `end`.
    pub(super) fn run(
        &mut self,
        report: &mut Report,
        counted: &Counts,
        first: u64,
        end: u64,
    ) -> Result<(), MetadataError> {
        for number in first / ENTRIES_PER_BITMAP..end.min(self.map.root.blocks).div_ceil(ENTRIES_PER_BITMAP) {
            self.bitmap(report, counted, number)?;
        }
        Ok(())
    }

    fn bitmap(&mut self, report: &mut Report, counted: &Counts, number: u64) -> Result<(), MetadataError> {
        let (map, Ok(at)) = (self.kind, usize::try_from(number)) else { return Ok(()) };
        let entry = self.index[at];
        let bitmap = self.map.bitmap(&entry)?;
        let first = number * ENTRIES_PER_BITMAP;
        let count = ENTRIES_PER_BITMAP.min(self.map.root.blocks - first);
        // Most of a pool may be free.
        let is_empty = bitmap.0[size_of::<disk_bitmap_header>()..].iter().all(|&byte| byte == 0)
            && counted.is_zero(first, count)
            && self.large.peeked.is_none_or(|(block, _)| block >= first + count);
        let (mut free, rest) = if is_empty { (count, 0) } else { (0, count) };
        for at in 0..rest {
            let block = first + at;
            let large = self.large.take(block)?;
            let recorded = match two_bits(&bitmap.0, at) {
                IN_TREE => large.unwrap_or_else(|| {
                    let (tree, block, damage) =
                        (Tree::RefCounts(map), self.map.root.ref_count_root, Damage::NoCount { block });
                    report.add(Finding::Damaged { tree, block, damage });
                    0
                }),
                bits => {
                    if large.is_some() {
                        report.add(Finding::StaleCount { map, block });
                    }
                    bits.into()
                }
            };
            // The index goes by the bits.
            if two_bits(&bitmap.0, at) == 0 {
                free += 1;
            }
            let found = counted.get(block);
            if recorded != found {
                report.add(Finding::RefCount { map, block, recorded, found });
            }
        }
        self.allocated += count - free;
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        let recorded = entry.nr_free.get();
        // The kernel counts what is beyond the end of the device as free, thin_restore does not.
        let beyond = u32::try_from(ENTRIES_PER_BITMAP - count).unwrap_or(u32::MAX);
        if recorded > free.saturating_add(beyond) {
            report.add(Finding::FreeBlocks { map, bitmap: number, recorded, found: free });
        }
        Ok(())
    }

    /// Finds the first block in use that the space map does not reach; `end` is the end of the device. Of data blocks
    /// the walk over the mappings finds it.
    pub(super) fn beyond_the_end(&self, report: &mut Report, counted: &Counts, end: u64) {
        let (tree, blocks) = (Tree::Bitmaps(self.kind), self.map.root.blocks);
        if let Some(block) = (blocks..end).find(|block| counted.get(*block) > 0) {
            let damage = Damage::SpaceMap { block, blocks };
            report.add(Finding::Damaged { tree, block: self.map.root.bitmap_root, damage });
        }
    }

    /// What is left after the last bitmap.
    pub(super) fn finish(mut self, report: &mut Report) -> Result<(), MetadataError> {
        let (map, recorded, found) = (self.kind, Blocks(self.map.root.allocated), Blocks(self.allocated));
        if recorded < found {
            report.add(Finding::Allocated { map, recorded, found });
        }
        while let Some((block, _)) = self.large.next()? {
            report.add(Finding::StaleCount { map, block });
        }
        Ok(())
    }
}

/// The tree of counts above 2, in order.
#[derive(Debug)]
struct LargeCounts<'a> {
    leaves: Leaves<'a>,
    leaf: Option<(Node, usize)>,
    peeked: Option<(u64, u32)>,
}

impl<'a> LargeCounts<'a> {
    fn new(reader: &'a BlockReader, root: u64) -> Result<Self, MetadataError> {
        let leaves = Leaves::new(reader, root, 0, REF_COUNT_SIZE)?;
        let mut counts = Self { leaves, leaf: None, peeked: None };
        counts.next()?;
        Ok(counts)
    }

    /// The count of a block that is not before the last one that was asked for.
    fn take(&mut self, block: u64) -> Result<Option<u32>, MetadataError> {
        match self.peeked {
            Some((key, count)) if key == block => {
                self.next()?;
                Ok(Some(count))
            }
            _ => Ok(None),
        }
    }

    fn next(&mut self) -> Result<Option<(u64, u32)>, MetadataError> {
        let current = self.peeked.take();
        loop {
            if let Some((leaf, at)) = &mut self.leaf
                && *at < leaf.len()
            {
                let count = U32::read_from_bytes(leaf.value(*at)).map_or(0, U32::get);
                self.peeked = Some((leaf.key(*at), count));
                *at += 1;
                return Ok(current);
            }
            match self.leaves.next()? {
                Some(leaf) => self.leaf = Some((leaf, 0)),
                None => return Ok(current),
            }
        }
    }
}
