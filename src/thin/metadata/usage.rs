//! Who shares data blocks with whom.
//!
//! A data block is exclusive to a device if just one leaf names it, and no node on the path from the device's root to
//! that leaf has a second parent. Both are what the space maps count. A metadata snapshot has no space maps; then the
//! parents of all nodes are counted, which takes their internal nodes only, and the leaves that name a data block,
//! among those that have the same virtual blocks.

use super::Metadata;
use super::blocks::BATCH;
use super::btree::{Subtree, expand, height, read_leaves};
use super::counts::Once;
use super::error::MetadataError;
use super::format::ENTRIES_PER_BITMAP;
use super::space_map::SpaceMapKind;
use crate::thin::{ThinId, ThinUsage};
use crate::units::Blocks;

/// Data blocks that are counted at once, for a check a byte each: 127 MiB, of which only what is in use takes memory.
pub(super) const WINDOW: u64 = 8192 * ENTRIES_PER_BITMAP;

impl Metadata {
    /// Returns what each device maps, alone and together with others, in the order of their ids.
    ///
    /// On the superblock this is exact, by the reference counts of the space maps, and takes the nodes that are not
    /// shared. On a metadata snapshot, or while one is held, it is by comparison of the trees, and exact if data
    /// blocks are shared at equal virtual blocks only, as the kernel's snapshots share them.
    ///
    /// # Errors
    /// [`MetadataError::Io`], [`MetadataError::Damaged`].
    pub fn usage(&self) -> Result<Vec<ThinUsage>, MetadataError> {
        let devices = self.devices()?;
        let ids: Vec<ThinId> = devices.iter().map(|device| device.id).collect();
        let exclusive = self.exclusive_of(&ids)?;
        let usage = |(device, exclusive): (super::ThinDevice, u64)| {
            let shared = Blocks(device.mapped.0.saturating_sub(exclusive));
            ThinUsage { id: device.id, mapped: device.mapped, exclusive: Blocks(exclusive), shared }
        };
        Ok(devices.into_iter().zip(exclusive).map(usage).collect())
    }

    /// Returns the data blocks that a device maps and no other one does; to delete the device frees these. For what the
    /// figure is exact, see [`usage`](Self::usage).
    ///
    /// # Errors
    /// [`MetadataError::NoDevice`], [`MetadataError::Io`], [`MetadataError::Damaged`].
    pub fn exclusive(&self, id: ThinId) -> Result<Blocks, MetadataError> {
        let exclusive = self.exclusive_of(&[id])?;
        Ok(Blocks(exclusive.into_iter().sum()))
    }

    fn exclusive_of(&self, ids: &[ThinId]) -> Result<Vec<u64>, MetadataError> {
        let maps = (self.space_map(SpaceMapKind::Metadata), self.space_map(SpaceMapKind::Data));
        // The counts of the space maps have what a metadata snapshot keeps, too.
        if let ((Some(mut nodes), Some(mut data)), None) = (maps, self.superblock.held_root) {
            let mut exclusive = vec![0; ids.len()];
            for (id, exclusive) in ids.iter().zip(&mut exclusive) {
                let root = self.mapping_root(*id)?;
                let leaves = self.own_leaves(root, |block| Ok(nodes.bits(block)? > 1))?;
                self.each_data_block(leaves.into_iter(), |_, block| {
                    *exclusive += u64::from(data.bits(block)? == 1);
                    Ok(())
                })?;
            }
            return Ok(exclusive);
        }
        self.exclusive_by_comparison(ids)
    }

    fn exclusive_by_comparison(&self, ids: &[ThinId]) -> Result<Vec<u64>, MetadataError> {
        let (nodes, mut beside) = self.node_parents()?;
        let (mut own, mut ranges) = (Vec::new(), Vec::new());
        for (at, id) in ids.iter().enumerate() {
            let root = self.mapping_root(*id)?;
            let leaves = self.own_leaves(root, |block| Ok(nodes.get(block) > 1))?;
            own.extend(leaves.iter().map(|leaf| (leaf.block, at)));
            ranges.extend(leaves);
            ranges = merge(ranges);
        }
        own.sort_unstable();
        let owner = |leaf| own.binary_search_by_key(&leaf, |(block, _)| *block).ok().map(|at| own[at].1);
        beside.retain(|leaf| overlaps(&ranges, leaf));
        beside.shrink_to_fit();

        let mut exclusive = vec![0; ids.len()];
        let mut first = 0;
        while first < self.data_blocks {
            let mut named = Once::new(first, WINDOW.min(self.data_blocks - first));
            self.each_data_block(beside.iter().copied(), |_, data| {
                named.add(data);
                Ok(())
            })?;
            // They are among those whose keys were compared above.
            self.each_data_block(own.iter().map(|(block, _)| Subtree::root(*block)), |leaf, data| {
                if named.get(data) == 1
                    && let Some(owner) = owner(leaf)
                {
                    exclusive[owner] += 1;
                }
                Ok(())
            })?;
            first += WINDOW;
        }
        Ok(exclusive)
    }

    /// The leaves of a tree to which no shared node leads, and which are not shared.
    fn own_leaves(
        &self,
        root: u64,
        mut shared: impl FnMut(u64) -> Result<bool, MetadataError>,
    ) -> Result<Vec<Subtree>, MetadataError> {
        let mut leaves = Vec::new();
        if shared(root)? {
            return Ok(leaves);
        }
        let mut stack = vec![(Subtree::root(root), height(&self.reader, root)?)];
        while let Some((subtree, level)) = stack.pop() {
            if level == 0 {
                leaves.push(subtree);
                continue;
            }
            let node = self.reader.node(subtree.block)?;
            for child in expand(&self.reader, &subtree, &node, 0)?.into_iter().rev() {
                if !shared(child.block)? {
                    stack.push((child, level - 1));
                }
            }
        }
        Ok(leaves)
    }

    /// Counts the parents of all nodes of all mapping trees, and returns the leaves in the order of their blocks.
    fn node_parents(&self) -> Result<(Once, Vec<Subtree>), MetadataError> {
        let reader = &self.reader;
        let (mut nodes, mut leaves, mut limit) = (Once::new(0, reader.len()), Vec::new(), 1 << 16);
        for id in self.device_ids()? {
            let root = self.mapping_root(id)?;
            if !nodes.add(root) {
                continue;
            }
            let mut stack = vec![(Subtree::root(root), height(reader, root)?)];
            while let Some((subtree, level)) = stack.pop() {
                if leaves.len() > limit {
                    unite(&mut leaves);
                    limit = limit.max(2 * leaves.len());
                }
                if level == 0 {
                    leaves.push(subtree);
                    continue;
                }
                let node = reader.node(subtree.block)?;
                for child in expand(reader, &subtree, &node, 0)?.into_iter().rev() {
                    let new = nodes.add(child.block);
                    if level == 1 {
                        leaves.push(child);
                    } else if new {
                        stack.push((child, level - 1));
                    }
                }
            }
        }
        unite(&mut leaves);
        Ok((nodes, leaves))
    }

    /// Calls `each` with leaf and data block of all entries of these leaves.
    pub(super) fn each_data_block(
        &self,
        mut leaves: impl Iterator<Item = Subtree>,
        mut each: impl FnMut(u64, u64) -> Result<(), MetadataError>,
    ) -> Result<(), MetadataError> {
        loop {
            let batch: Vec<Subtree> = leaves.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            for leaf in read_leaves(&self.reader, &batch, 8)? {
                for index in 0..leaf.len() {
                    each(leaf.block, self.entry(&leaf, index)?.1)?;
                }
            }
        }
    }
}

/// Sorts leaves by block. One that several parents lead to must fit the keys of all of them.
fn unite(leaves: &mut Vec<Subtree>) {
    leaves.sort_unstable_by_key(|leaf| leaf.block);
    leaves.dedup_by(|other, leaf| {
        let same = other.block == leaf.block;
        if same {
            leaf.narrow(other);
        }
        same
    });
}

/// Ascending ranges, those that touch as one.
fn merge(mut ranges: Vec<Subtree>) -> Vec<Subtree> {
    ranges.sort_unstable_by_key(|range| range.first);
    ranges.dedup_by(|next, range| {
        let touches = range.end.is_none_or(|end| next.first <= end);
        if touches && range.end.is_some() {
            range.end = next.end.map(|end| range.end.map_or(end, |other| other.max(end)));
        }
        touches
    });
    ranges
}

/// Whether a subtree has keys in one of these ranges.
fn overlaps(ranges: &[Subtree], subtree: &Subtree) -> bool {
    let before = ranges.partition_point(|range| range.end.is_some_and(|end| end <= subtree.first));
    ranges.get(before).is_some_and(|range| subtree.end.is_none_or(|end| range.first < end))
}
