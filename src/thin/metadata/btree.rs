//! B-trees: their nodes, and walks over their leaves.

use std::sync::Arc;

use super::blocks::{BATCH, BlockReader};
use super::error::{Damage, MetadataError};
use super::node::Node;

/// No tree of the kernel's is deeper.
pub(super) const DEPTH_MAX: usize = 16;

/// A subtree by what its parent says of it: it has the keys from `first` up to but not including `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subtree {
    pub(super) block: u64,
    pub(super) first: u64,
    /// `None`: no bound.
    pub(super) end: Option<u64>,
}

impl Subtree {
    pub(super) fn root(block: u64) -> Self {
        Self { block, first: 0, end: None }
    }

    /// Keeps the keys that another parent of the same node allows, too.
    pub(super) fn narrow(&mut self, other: &Self) {
        self.first = self.first.max(other.first);
        self.end = match (self.end, other.end) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
    }

    /// Checks that a node's keys are where its parent says.
    pub(super) fn check_keys(&self, node: &Node) -> Result<(), MetadataError> {
        let Some(last) = node.len().checked_sub(1) else {
            // Only a whole tree can be empty.
            let is_root = self.first == 0 && self.end.is_none();
            #[allow(clippy::cast_possible_truncation)] // it was a u32
            let damage = Damage::Entries { entries: 0, capacity: node.capacity as u32 };
            return if is_root { Ok(()) } else { Err(node.damaged(damage)) };
        };
        if node.key(0) < self.first {
            return Err(node.damaged(Damage::Key { key: node.key(0) }));
        }
        if self.end.is_some_and(|end| node.key(last) >= end) {
            return Err(node.damaged(Damage::Key { key: node.key(last) }));
        }
        Ok(())
    }

    /// The subtrees of an internal node that have keys from `from` on.
    pub(super) fn children(
        &self,
        reader: &BlockReader,
        node: &Node,
        from: u64,
    ) -> Result<Vec<Self>, MetadataError> {
        let start = node.floor(from).unwrap_or(0);
        (start..node.len()).map(|index| self.child(reader, node, index)).collect()
    }

    fn child(&self, reader: &BlockReader, node: &Node, index: usize) -> Result<Self, MetadataError> {
        let block = node.value_u64(index);
        reader.check_child(node.block, block)?;
        let end = if index + 1 < node.len() { Some(node.key(index + 1)) } else { self.end };
        Ok(Self { block, first: node.key(index), end })
    }

    /// Reads the node that this is, on the way to a key. Returns it with the subtree below that can have the key; a
    /// leaf has none.
    pub(super) fn step(
        &self,
        reader: &BlockReader,
        key: u64,
        value_size: usize,
    ) -> Result<(Arc<Node>, Option<Self>), MetadataError> {
        let node = reader.node(self.block)?;
        node.check(!node.is_internal(), value_size)?;
        self.check_keys(&node)?;
        let index = node.floor(key).filter(|_| node.is_internal());
        let below = index.map(|index| self.child(reader, &node, index)).transpose()?;
        Ok((node, below))
    }
}

/// The number of levels above the leaves.
pub(super) fn height(reader: &BlockReader, root: u64) -> Result<usize, MetadataError> {
    let (mut block, mut path) = (root, Vec::new());
    while path.len() < DEPTH_MAX {
        let node = reader.node(block)?;
        if !node.is_internal() {
            return Ok(path.len());
        }
        path.push(block);
        block = node.value_u64(0);
        reader.check_child(node.block, block)?;
        if path.contains(&block) {
            return Err(node.damaged(Damage::Cycle));
        }
    }
    Err(MetadataError::Damaged { block: root, damage: Damage::Depth })
}

/// The value of a key, as the bytes of it.
pub(super) fn lookup(
    reader: &BlockReader,
    root: u64,
    key: u64,
    value_size: usize,
) -> Result<Option<Vec<u8>>, MetadataError> {
    let mut subtree = Subtree::root(root);
    for _ in 0..DEPTH_MAX {
        let (node, below) = subtree.step(reader, key, value_size)?;
        match below {
            Some(below) => subtree = below,
            None => return Ok(node.find(key).map(<[u8]>::to_vec)),
        }
    }
    Err(MetadataError::Damaged { block: root, damage: Damage::Depth })
}

/// The leaves of a tree in the order of their keys, from the one on that can have `from`.
#[derive(Debug)]
pub(super) struct Leaves<'a> {
    reader: &'a BlockReader,
    value_size: usize,
    from: u64,
    /// What is still to be visited, the next one last, each with its level.
    stack: Vec<(Subtree, usize)>,
    /// Leaves that were read already, the next one last.
    ready: Vec<Node>,
}

impl<'a> Leaves<'a> {
    pub(super) fn new(
        reader: &'a BlockReader,
        root: u64,
        from: u64,
        value_size: usize,
    ) -> Result<Self, MetadataError> {
        let stack = vec![(Subtree::root(root), height(reader, root)?)];
        Ok(Self { reader, value_size, from, stack, ready: Vec::new() })
    }

    pub(super) fn next(&mut self) -> Result<Option<Node>, MetadataError> {
        loop {
            if let Some(node) = self.ready.pop() {
                return Ok(Some(node));
            }
            match self.stack.last() {
                None => return Ok(None),
                Some((_, 0)) => self.read_leaves()?,
                Some(_) => self.expand()?,
            }
        }
    }

    /// Reads as many adjacent leaves of the stack as fit into a batch.
    fn read_leaves(&mut self) -> Result<(), MetadataError> {
        let leaves = self.stack.iter().rev().take(BATCH).take_while(|(_, level)| *level == 0).count();
        let leaves: Vec<Subtree> =
            self.stack.drain(self.stack.len() - leaves..).rev().map(|(leaf, _)| leaf).collect();
        self.ready = read_leaves(self.reader, &leaves, self.value_size)?;
        self.ready.reverse();
        Ok(())
    }

    fn expand(&mut self) -> Result<(), MetadataError> {
        let Some((subtree, level)) = self.stack.pop() else { return Ok(()) };
        let node = self.reader.node(subtree.block)?;
        let children = expand(self.reader, &subtree, &node, self.from)?;
        self.stack.extend(children.into_iter().rev().map(|child| (child, level - 1)));
        Ok(())
    }
}

/// The children of a subtree that is not a leaf.
pub(super) fn expand(
    reader: &BlockReader,
    subtree: &Subtree,
    node: &Node,
    from: u64,
) -> Result<Vec<Subtree>, MetadataError> {
    node.check(false, 8)?;
    subtree.check_keys(node)?;
    subtree.children(reader, node, from)
}

/// Reads leaves, at most [`BATCH`].
pub(super) fn read_leaves(
    reader: &BlockReader,
    leaves: &[Subtree],
    value_size: usize,
) -> Result<Vec<Node>, MetadataError> {
    let blocks: Vec<u64> = leaves.iter().map(|leaf| leaf.block).collect();
    let nodes = reader.nodes(&blocks)?;
    for (leaf, node) in leaves.iter().zip(&nodes) {
        node.check(true, value_size)?;
        leaf.check_keys(node)?;
    }
    Ok(nodes)
}

/// Reads internal nodes in the order asked for, in batches.
pub(super) fn read_internal(
    reader: &BlockReader,
    subtrees: &[Subtree],
    from: u64,
) -> Result<Vec<Subtree>, MetadataError> {
    let mut children = Vec::new();
    for batch in subtrees.chunks(BATCH) {
        let blocks: Vec<u64> = batch.iter().map(|subtree| subtree.block).collect();
        for (subtree, node) in batch.iter().zip(reader.nodes(&blocks)?) {
            children.extend(expand(reader, subtree, &node, from)?);
        }
    }
    Ok(children)
}
