//! What a thin device maps.

use super::Metadata;
use super::btree::{Leaves, lookup};
use super::details::device_id;
use super::error::{Damage, MetadataError};
use super::format::MAPPING_TIME_BITS;
use super::node::Node;
use crate::thin::ThinId;

/// A run of virtual blocks that are mapped to as many data blocks at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The first virtual block.
    pub virtual_block: u64,
    /// The first data block.
    pub data_block: u64,
    /// How many blocks.
    pub length: u64,
    /// The pool's time when they were allocated: 24 bits.
    pub time: u32,
}

/// The data block and the time in a mapping tree's value.
#[allow(clippy::cast_possible_truncation)] // masked to 24 bits
pub(super) const fn unpack(value: u64) -> (u64, u32) {
    (value >> MAPPING_TIME_BITS, (value & ((1 << MAPPING_TIME_BITS) - 1)) as u32)
}

impl Metadata {
    /// The root of a device's mapping tree.
    pub(super) fn mapping_root(&self, id: ThinId) -> Result<u64, MetadataError> {
        let top = self.superblock.mapping_root;
        let value = lookup(&self.reader, top, id.get().into(), 8)?.ok_or(MetadataError::NoDevice { id })?;
        let mut root = [0; 8];
        root.copy_from_slice(&value);
        let root = u64::from_le_bytes(root);
        self.reader.check_child(top, root)?;
        Ok(root)
    }

    /// All devices in a top-level tree, with the roots of their mapping trees.
    pub(super) fn mapping_roots(&self, top: u64) -> Result<Vec<(ThinId, u64)>, MetadataError> {
        let mut roots = Vec::new();
        let mut leaves = Leaves::new(&self.reader, top, 0, 8)?;
        while let Some(leaf) = leaves.next()? {
            for index in 0..leaf.len() {
                let id = device_id(leaf.key(index)).map_err(|damage| leaf.damaged(damage))?;
                roots.push((id, leaf.value_u64(index)));
            }
        }
        Ok(roots)
    }

    /// Returns what a device maps from the virtual block `from` on, in ascending runs.
    ///
    /// # Errors
    /// [`MetadataError::NoDevice`]; the iterator stops at an error.
    pub fn mappings(&self, id: ThinId, from: u64) -> Result<Mappings<'_>, MetadataError> {
        let leaves = Leaves::new(&self.reader, self.mapping_root(id)?, from, 8)?;
        Ok(Mappings { entries: Entries::new(self, leaves, from), run: None, ended: false })
    }
}

/// The mappings of a tree one by one.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    metadata: &'a Metadata,
    leaves: Leaves<'a>,
    from: u64,
    leaf: Option<(Node, usize)>,
}

/// One mapping: virtual block, data block, time.
pub(super) type Entry = (u64, u64, u32);

impl<'a> Entries<'a> {
    pub(super) fn new(metadata: &'a Metadata, leaves: Leaves<'a>, from: u64) -> Self {
        Self { metadata, leaves, from, leaf: None }
    }

    pub(super) fn next(&mut self) -> Result<Option<Entry>, MetadataError> {
        loop {
            if let Some((leaf, index)) = &mut self.leaf
                && *index < leaf.len()
            {
                let entry = self.metadata.entry(leaf, *index)?;
                *index += 1;
                if entry.0 >= self.from {
                    return Ok(Some(entry));
                }
                continue;
            }
            match self.leaves.next()? {
                Some(leaf) => self.leaf = Some((leaf, 0)),
                None => return Ok(None),
            }
        }
    }
}

impl Metadata {
    /// An entry of a leaf of a mapping tree.
    pub(super) fn entry(&self, leaf: &Node, index: usize) -> Result<Entry, MetadataError> {
        let (data, time) = unpack(leaf.value_u64(index));
        if data >= self.data_blocks {
            return Err(leaf.damaged(Damage::DataBlock { data, blocks: self.data_blocks }));
        }
        Ok((leaf.key(index), data, time))
    }
}

/// The iterator of [`Metadata::mappings`].
#[derive(Debug)]
pub struct Mappings<'a> {
    entries: Entries<'a>,
    run: Option<Mapping>,
    ended: bool,
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping, MetadataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.entries.next() {
                Ok(Some((virtual_block, data_block, time))) => {
                    if let Some(run) = &mut self.run
                        && run.virtual_block.checked_add(run.length) == Some(virtual_block)
                        && run.data_block + run.length == data_block
                        && run.time == time
                    {
                        run.length += 1;
                        continue;
                    }
                    let next = Mapping { virtual_block, data_block, length: 1, time };
                    if let Some(run) = self.run.replace(next) {
                        return Some(Ok(run));
                    }
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    self.run = None;
                    return Some(Err(error));
                }
            }
        }
        self.run.take().map(Ok)
    }
}
