//! Who shares data blocks with whom.
//!
//! A data block is exclusive to a device if just one leaf names it, and the path to that leaf belongs to that device
//! alone. Whether a node belongs to one device or to several is told by the trees themselves, so this works on a
//! metadata snapshot, which has no reference counts. Each node is read once however many devices share it, and the
//! leaves in the order of the device.

use std::collections::HashMap;

use super::Metadata;
use super::blocks::BATCH;
use super::btree::{Subtree, expand, height, read_leaves};
use super::error::MetadataError;
use crate::thin::{ThinId, ThinUsage};
use crate::units::Blocks;

/// A node that several devices lead to.
const SHARED: u32 = u32::MAX;
/// Blocks that one chunk of counts covers.
const CHUNK: u64 = 256;

/// How many leaves name a data block: none, one, or more. Two bits each.
#[derive(Debug, Default)]
struct Counts(HashMap<u64, [u64; 8]>);

impl Counts {
    fn add(&mut self, block: u64) {
        let words = self.0.entry(block / CHUNK).or_default();
        let (word, bit) = Self::place(block);
        let one = words[word] >> bit & 1;
        words[word] |= 1 << bit | one << (bit + 1);
    }

    fn is_one(&self, block: u64) -> bool {
        let (word, bit) = Self::place(block);
        self.0.get(&(block / CHUNK)).is_some_and(|words| words[word] >> bit & 3 == 1)
    }

    #[allow(clippy::cast_possible_truncation)] // below 256
    fn place(block: u64) -> (usize, u32) {
        let index = (block % CHUNK) as usize;
        (index / 32, (index % 32 * 2) as u32)
    }
}

impl Metadata {
    /// Returns what each device maps, alone and together with others, in the order of their ids.
    ///
    /// # Errors
    /// [`MetadataError::Io`], [`MetadataError::Damaged`].
    pub fn usage(&self) -> Result<Vec<ThinUsage>, MetadataError> {
        let devices = self.devices()?;
        let mut owners = Owners { metadata: self, nodes: HashMap::new(), leaves: HashMap::new() };
        for device in &devices {
            owners.visit(device.id, self.mapping_root(device.id)?)?;
        }
        let Owners { nodes, leaves, .. } = owners;
        let mut leaves: Vec<Subtree> = leaves.into_values().collect();
        leaves.sort_unstable_by_key(|leaf| leaf.block);
        let mut counts = Counts::default();
        self.each_entry(&leaves, |_, data| counts.add(data))?;
        leaves.retain(|leaf| nodes[&leaf.block] != SHARED);
        let mut exclusive: HashMap<u32, u64> = HashMap::new();
        self.each_entry(&leaves, |leaf, data| {
            if counts.is_one(data) {
                *exclusive.entry(nodes[&leaf]).or_default() += 1;
            }
        })?;
        let usage = |device: super::ThinDevice| {
            let exclusive = Blocks(exclusive.get(&device.id.get()).copied().unwrap_or_default());
            let shared = Blocks(device.mapped.0.saturating_sub(exclusive.0));
            ThinUsage { id: device.id, mapped: device.mapped, exclusive, shared }
        };
        Ok(devices.into_iter().map(usage).collect())
    }

    fn each_entry(&self, leaves: &[Subtree], mut each: impl FnMut(u64, u64)) -> Result<(), MetadataError> {
        for batch in leaves.chunks(BATCH) {
            for leaf in read_leaves(&self.reader, batch, 8)? {
                for index in 0..leaf.len() {
                    each(leaf.block, self.entry(&leaf, index)?.1);
                }
            }
        }
        Ok(())
    }
}

/// Which device leads to a node of a mapping tree.
struct Owners<'a> {
    metadata: &'a Metadata,
    nodes: HashMap<u64, u32>,
    /// Each with the keys that all its parents allow.
    leaves: HashMap<u64, Subtree>,
}

impl Owners<'_> {
    /// Marks all nodes of a tree. Those that another device has marked are shared, and what is below them.
    fn visit(&mut self, id: ThinId, root: u64) -> Result<(), MetadataError> {
        let reader = &self.metadata.reader;
        let mut stack = vec![(Subtree::root(root), height(reader, root)?, id.get())];
        while let Some((subtree, level, owner)) = stack.pop() {
            let before = self.nodes.get(&subtree.block).copied();
            let owner = if before.is_some() { SHARED } else { owner };
            if level == 0 {
                self.leaves.entry(subtree.block).or_insert(subtree).narrow(&subtree);
            }
            if before == Some(SHARED) {
                continue;
            }
            self.nodes.insert(subtree.block, owner);
            if level > 0 {
                let node = reader.node(subtree.block)?;
                let children = expand(reader, &subtree, &node, 0)?;
                stack.extend(children.into_iter().map(|child| (child, level - 1, owner)));
            }
        }
        Ok(())
    }
}
