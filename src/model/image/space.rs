//! Space maps: who is in use, and how often.

use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use super::ImageError;
use super::builder::Builder;
use super::node::Tree;
use crate::thin::metadata::format::{
    BLOCK_SIZE, BlockKind, ENTRIES_PER_BITMAP, disk_bitmap_header, disk_index_entry, disk_metadata_index,
    disk_sm_root,
};

/// A count that the bitmap cannot hold is in the tree.
const IN_TREE: u32 = 3;

/// Counts that are not zero, by block, in order.
type Counts = [(u64, u32)];

impl Builder {
    /// A leaf's reference to a data block counts once, whatever the number of devices that share the leaf.
    pub(super) fn data_space_map(&mut self) -> Result<disk_sm_root, ImageError> {
        let mut named = std::mem::take(&mut self.named);
        named.sort_unstable();
        let runs = named.chunk_by(|one, other| one == other);
        let counts: Vec<_> = runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX))).collect();
        let ref_count_root = self.large_counts(&counts)?;
        let mut index = Vec::new();
        for (number, part) in bitmaps(self.data_blocks, &counts) {
            let location = self.allocate()?;
            index.push((number, self.bitmap(location, self.data_blocks, number, part)));
        }
        let bitmap_root = self.tree(Tree::SpaceMap, &index)?;
        Ok(root(self.data_blocks, counts.len(), bitmap_root, ref_count_root))
    }

    /// It counts its own blocks, so it comes last.
    pub(super) fn metadata_space_map(&mut self) -> Result<disk_sm_root, ImageError> {
        let nr_blocks = self.metadata_blocks;
        let bitmap_root = self.allocate()?;
        let locations: Vec<_> =
            (0..nr_blocks.div_ceil(ENTRIES_PER_BITMAP)).map(|_| self.allocate()).collect::<Result<_, _>>()?;
        // Its blocks have a count of 1, which is not in it.
        let ref_count_root = self.large_counts(&self.used())?;
        let counts = self.used();
        let mut index = disk_metadata_index::new_zeroed();
        for ((number, part), (location, entry)) in
            bitmaps(nr_blocks, &counts).zip(locations.into_iter().zip(&mut index.index))
        {
            *entry = self.bitmap(location, nr_blocks, number, part);
        }
        let mut block = [0; BLOCK_SIZE];
        block.copy_from_slice(index.as_bytes());
        self.put(BlockKind::Index, bitmap_root, block);
        Ok(root(nr_blocks, counts.len(), bitmap_root, ref_count_root))
    }

    fn used(&self) -> Vec<(u64, u32)> {
        (0..).zip(self.counts.iter().copied()).filter(|(_, count)| *count > 0).collect()
    }

    fn large_counts(&mut self, counts: &Counts) -> Result<u64, ImageError> {
        let large = counts.iter().filter(|(_, count)| *count >= IN_TREE);
        self.tree(Tree::SpaceMap, &large.map(|&(block, count)| (block, U32::new(count))).collect::<Vec<_>>())
    }

    /// Writes the bitmap block of that number.
    fn bitmap(&mut self, location: u64, nr_blocks: u64, number: u64, counts: &Counts) -> disk_index_entry {
        let first = number * ENTRIES_PER_BITMAP;
        let mut block = [0; BLOCK_SIZE];
        for &(at, count) in counts {
            let at = usize::try_from(at - first).unwrap_or(0);
            // The lower bit is the high one of the count.
            let bits = [0b00, 0b10, 0b01, 0b11][count.min(IN_TREE) as usize];
            block[size_of::<disk_bitmap_header>() + at / 4] |= bits << (at % 4 * 2);
        }
        self.put(BlockKind::Bitmap, location, block);
        let entries = ENTRIES_PER_BITMAP.min(nr_blocks - first);
        let first_free = (0..).zip(counts).find(|(at, (block, _))| first + at != *block);
        let first_free = first_free.map_or(counts.len() as u64, |(at, _)| at);
        let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).into();
        disk_index_entry {
            blocknr: location.into(),
            nr_free: word(entries - counts.len() as u64),
            none_free_before: word(first_free),
        }
    }
}

/// The bitmaps' numbers, and what is in each.
fn bitmaps(nr_blocks: u64, counts: &Counts) -> impl Iterator<Item = (u64, &Counts)> {
    let mut rest = counts;
    (0..nr_blocks.div_ceil(ENTRIES_PER_BITMAP)).map(move |number| {
        let end = rest.partition_point(|(block, _)| *block < (number + 1) * ENTRIES_PER_BITMAP);
        let (part, behind) = rest.split_at(end);
        rest = behind;
        (number, part)
    })
}

fn root(nr_blocks: u64, allocated: usize, bitmap_root: u64, ref_count_root: u64) -> disk_sm_root {
    disk_sm_root {
        nr_blocks: nr_blocks.into(),
        nr_allocated: (allocated as u64).into(),
        bitmap_root: bitmap_root.into(),
        ref_count_root: ref_count_root.into(),
        unused: [0; 96],
    }
}
