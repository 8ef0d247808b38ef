//! Puts nodes into blocks and counts who refers to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use zerocopy::little_endian::U64;
use zerocopy::{Immutable, IntoBytes};

use super::contents::{HeldRoot, ImageError, Mappings, PoolContents, ThinContents};
use super::node::{Tree, children, data_blocks, encode, max_entries, split};
use crate::thin::metadata::format::{
    Block, BlockKind, DM_SM_METADATA_MAX_BLOCKS, ENTRIES_PER_BITMAP, MAPPING_TIME_BITS, disk_device_details,
};

/// Where a node's checksum and its block number are: what differs between nodes with the same content.
const CSUM: std::ops::Range<usize> = 0..4;
const BLOCKNR: std::ops::Range<usize> = 8..16;

#[derive(Debug)]
pub(super) struct Builder {
    pub(super) data_blocks: u64,
    pub(super) metadata_blocks: u64,
    blocks: Vec<Option<Arc<Block>>>,
    /// References to the blocks.
    pub(super) counts: Vec<u32>,
    /// No block below this one is free.
    free: usize,
    /// Nodes by a checksum of their content.
    known: HashMap<(Tree, u32), Vec<u64>>,
    /// The data blocks that leaves name, once for each leaf.
    pub(super) named: Vec<u64>,
}

impl Builder {
    pub(super) fn new(contents: &PoolContents) -> Result<Self, ImageError> {
        let &PoolContents { data_blocks, metadata_blocks, block_size, .. } = contents;
        let fits = metadata_blocks <= DM_SM_METADATA_MAX_BLOCKS
            && data_blocks <= 1 << (u64::BITS - MAPPING_TIME_BITS)
            && data_blocks.div_ceil(ENTRIES_PER_BITMAP) < metadata_blocks
            && u32::try_from(block_size.0).is_ok();
        if !fits {
            return Err(ImageError::TooLarge { data_blocks, metadata_blocks });
        }
        Ok(Self {
            data_blocks,
            metadata_blocks,
            // The superblock, which follows at the end.
            blocks: vec![None],
            counts: vec![1],
            free: 1,
            known: HashMap::new(),
            named: Vec::new(),
        })
    }

    pub(super) fn into_blocks(self) -> Vec<Option<Arc<Block>>> {
        self.blocks
    }

    /// The lowest free block is taken, and referred to once.
    pub(super) fn allocate(&mut self) -> Result<u64, ImageError> {
        while self.counts.get(self.free).is_some_and(|&count| count > 0 || self.blocks[self.free].is_some()) {
            self.free += 1;
        }
        let number = self.free as u64;
        self.claim(number)?;
        self.counts[self.free] = 1;
        Ok(number)
    }

    fn claim(&mut self, number: u64) -> Result<usize, ImageError> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        if number >= self.metadata_blocks {
            return Err(ImageError::OutOfSpace { available: self.metadata_blocks });
        }
        if self.blocks.len() <= at {
            self.blocks.resize(at + 1, None);
            self.counts.resize(at + 1, 0);
        }
        Ok(at)
    }

    pub(super) fn refer(&mut self, number: u64) {
        if let Some(count) = usize::try_from(number).ok().and_then(|at| self.counts.get_mut(at)) {
            *count += 1;
        }
    }

    /// Writes the block, with its number and its checksum.
    pub(super) fn put(&mut self, kind: BlockKind, number: u64, mut block: Block) {
        block[BLOCKNR].copy_from_slice(&number.to_le_bytes());
        let csum = kind.checksum(&block).to_le_bytes();
        block[CSUM].copy_from_slice(&csum);
        if let Some(slot) = usize::try_from(number).ok().and_then(|at| self.blocks.get_mut(at)) {
            *slot = Some(Arc::new(block));
        }
    }

    /// Puts the blocks of a metadata snapshot where they are.
    pub(super) fn hold(&mut self, held: Option<&HeldRoot>) -> Result<(), ImageError> {
        let Some(HeldRoot { location, superblock, nodes }) = held else { return Ok(()) };
        for (tree, number, block) in nodes {
            let at = self.claim(*number)?;
            self.blocks[at] = Some(Arc::clone(block));
            let mut content = **block;
            content[CSUM].fill(0);
            content[BLOCKNR].fill(0);
            self.remember(*tree, *number, &content)?;
        }
        let at = self.claim(*location)?;
        (self.blocks[at], self.counts[at]) = (Some(Arc::clone(superblock)), 1);
        // The roots are the last of their trees.
        for tree in [Tree::Devices, Tree::Details] {
            let root = nodes.iter().rfind(|(of, ..)| *of == tree);
            root.into_iter().for_each(|(_, number, _)| self.refer(*number));
        }
        Ok(())
    }

    fn remember(&mut self, tree: Tree, number: u64, content: &Block) -> Result<(), ImageError> {
        self.known.entry((tree, crc32c::crc32c(content))).or_default().push(number);
        children(tree, content).into_iter().for_each(|(_, child)| self.refer(child));
        let from = self.named.len();
        self.named.extend(data_blocks(tree, content));
        match self.named[from..].iter().find(|&&block| block >= self.data_blocks) {
            Some(&block) => Err(ImageError::DataBlock { block, available: self.data_blocks }),
            None => Ok(()),
        }
    }

    /// The number of the node with that content, which nothing refers to yet if it is new.
    fn node(&mut self, tree: Tree, content: &Block) -> Result<u64, ImageError> {
        let known = self.known.get(&(tree, crc32c::crc32c(content)));
        let same = known.into_iter().flatten().find(|&&number| {
            let at = usize::try_from(number).unwrap_or(usize::MAX);
            let block = self.blocks.get(at).and_then(Option::as_ref);
            block.is_some_and(|block| {
                block[CSUM.end..BLOCKNR.start] == content[CSUM.end..BLOCKNR.start]
                    && block[BLOCKNR.end..] == content[BLOCKNR.end..]
            })
        });
        if let Some(&number) = same {
            return Ok(number);
        }
        let number = self.allocate()?;
        if tree == Tree::SpaceMap {
            // Never shared: their count of 1 is what the other maps count on.
            self.put(BlockKind::Node, number, *content);
            return Ok(number);
        }
        self.counts[usize::try_from(number).unwrap_or(0)] = 0;
        self.put(BlockKind::Node, number, *content);
        self.remember(tree, number, content)?;
        Ok(number)
    }

    /// Writes a tree and returns its root, which nothing refers to yet.
    pub(super) fn tree<V: IntoBytes + Immutable>(
        &mut self,
        tree: Tree,
        entries: &[(u64, V)],
    ) -> Result<u64, ImageError> {
        let mut level = self.level(tree, true, entries)?;
        while level.len() > 1 {
            level = self.level(tree, false, &level)?;
        }
        Ok(level[0].1.get())
    }

    /// Nodes over these entries, each with its first key.
    fn level<V: IntoBytes + Immutable>(
        &mut self,
        tree: Tree,
        leaf: bool,
        entries: &[(u64, V)],
    ) -> Result<Vec<(u64, U64)>, ImageError> {
        let parts = split(|at| entries[at].0, entries.len(), max_entries(size_of::<V>()));
        let node = |part: std::ops::Range<usize>| {
            let entries = &entries[part];
            let number = self.node(tree, &encode(leaf, entries))?;
            Ok((entries.first().map_or(0, |(key, _)| *key), number.into()))
        };
        parts.into_iter().map(node).collect()
    }

    /// The two-level mapping tree.
    pub(super) fn mappings(&mut self, thins: &BTreeMap<u32, ThinContents>) -> Result<u64, ImageError> {
        let mut roots = Vec::new();
        let mut known: HashMap<*const Mappings, U64> = HashMap::new();
        for (&id, thin) in thins {
            let root = match known.get(&Arc::as_ptr(&thin.mappings)) {
                Some(&root) => root,
                None => {
                    let value = |(data, time): (u64, u32)| {
                        U64::new(data << MAPPING_TIME_BITS | u64::from(time) & ((1 << MAPPING_TIME_BITS) - 1))
                    };
                    let entries = thin.mappings.iter().map(|(&block, &mapping)| (block, value(mapping)));
                    U64::new(self.tree(Tree::Mappings, &entries.collect::<Vec<_>>())?)
                }
            };
            known.insert(Arc::as_ptr(&thin.mappings), root);
            roots.push((u64::from(id), root));
        }
        let root = self.tree(Tree::Devices, &roots)?;
        self.refer(root);
        Ok(root)
    }

    pub(super) fn details(&mut self, thins: &BTreeMap<u32, ThinContents>) -> Result<u64, ImageError> {
        let details = thins.iter().map(|(&id, thin)| {
            let details = disk_device_details {
                mapped_blocks: (thin.mappings.len() as u64).into(),
                transaction_id: thin.transaction_id.into(),
                creation_time: thin.creation_time.into(),
                snapshotted_time: thin.snapshotted_time.into(),
            };
            (u64::from(id), details)
        });
        let root = self.tree(Tree::Details, &details.collect::<Vec<_>>())?;
        self.refer(root);
        Ok(root)
    }
}
