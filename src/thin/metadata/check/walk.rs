//! Walks over whole trees that note damage and go on, and count who refers to each metadata block.

use super::super::blocks::BlockReader;
use super::super::btree::{Subtree, height};
use super::super::counts::Counts;
use super::super::error::{Damage, MetadataError};
use super::super::format::BlockKind;
use super::super::node::Node;
use super::super::verify::verify;
use super::report::{Finding, Report, Tree};
use crate::kernel::AlignedBlock;

/// First key, last key and entries of a subtree; zeroes if it was not visited, or some of it is damaged.
type Extent = [u64; 3];

/// A tree without entries.
const EMPTY: Extent = [1, 0, 0];

#[derive(Debug)]
pub(super) struct Walker<'a> {
    pub(super) reader: &'a BlockReader,
    pub(super) report: Report,
    /// How many places lead to each metadata block.
    pub(super) counts: Counts,
    /// What each block is used for; 0 if for nothing yet.
    uses: Vec<u8>,
    extents: Vec<Extent>,
    /// Where this is set, nothing below is known.
    pub(super) damaged: bool,
}

/// Called with each leaf once, however many trees share it.
pub(super) type OnLeaf<'f> = &'f mut dyn FnMut(&Node) -> Result<(), Damage>;

/// What a block is used for: the tree and the level of a node.
fn usage(tree: Tree, level: usize) -> u8 {
    let tree = match tree {
        Tree::Mappings(_) => 0,
        Tree::Superblock => 1,
        Tree::MetadataSnapshot => 2,
        Tree::Devices => 3,
        Tree::Details => 4,
        Tree::Bitmaps(map) => 5 + map as u8,
        Tree::RefCounts(map) => 7 + map as u8,
    };
    // The level is below 16.
    1 + tree * 17 + u8::try_from(level).unwrap_or(16).min(16)
}

const MAPPING_LEAF: u8 = 1;

/// The level of a block that is not a node: the index block and the bitmaps of a space map.
pub(super) const NO_NODE: usize = 16;

impl<'a> Walker<'a> {
    pub(super) fn new(reader: &'a BlockReader) -> Self {
        let blocks = usize::try_from(reader.len()).unwrap_or(0);
        Self {
            reader,
            report: Report::new(),
            counts: Counts::new(0, reader.len()),
            uses: vec![0; blocks],
            extents: vec![[0; 3]; blocks],
            damaged: false,
        }
    }

    /// Takes damage for a finding; an error is one of I/O.
    pub(super) fn note<T>(
        &mut self,
        tree: Tree,
        result: Result<T, MetadataError>,
    ) -> Result<Option<T>, MetadataError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(MetadataError::Damaged { block, damage }) => {
                self.damaged = true;
                self.report.add(Finding::Damaged { tree, block, damage });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Counts a place that leads to a block. Returns whether it is the first one.
    pub(super) fn refer(&mut self, tree: Tree, level: usize, block: u64) -> bool {
        let usage = usage(tree, level);
        let Some(known) = usize::try_from(block).ok().and_then(|at| self.uses.get_mut(at)) else {
            return false;
        };
        if self.counts.add(block) == 1 {
            *known = usage;
            return true;
        }
        if *known != usage || level == NO_NODE {
            self.damaged = true;
            self.report.add(Finding::DoublyUsed { tree, block });
        }
        false
    }

    /// The leaves of mapping trees, in the order of their blocks.
    pub(super) fn mapping_leaves(&self) -> impl Iterator<Item = u64> {
        (0..).zip(&self.uses).filter(|(_, usage)| **usage == MAPPING_LEAF).map(|(block, _)| block)
    }

    /// Walks a tree that `parent` leads to. Returns how many entries it has; `None` if some of it is damaged.
    pub(super) fn tree(
        &mut self,
        tree: Tree,
        parent: u64,
        root: u64,
        value_size: usize,
        on_leaf: OnLeaf<'_>,
    ) -> Result<Option<u64>, MetadataError> {
        let checked = self.reader.check_child(parent, root).and_then(|()| height(self.reader, root));
        let Some(level) = self.note(tree, checked)? else { return Ok(None) };
        if !self.refer(tree, level, root) {
            return Ok(self.entries(root));
        }
        let bytes = self.reader.unverified(&[root])?;
        let walk = Walk { tree, root, value_size };
        self.node(&walk, Subtree::root(root), level, bytes.into_iter().next().unwrap_or_else(zeroes), on_leaf)
    }

    /// The entries below a node that was visited; `None` if some of it is damaged.
    pub(super) fn entries(&self, block: u64) -> Option<u64> {
        Some(self.extent(block)).filter(|extent| *extent != [0; 3]).map(|[_, _, entries]| entries)
    }

    fn extent(&self, block: u64) -> Extent {
        usize::try_from(block).ok().and_then(|at| self.extents.get(at).copied()).unwrap_or_default()
    }

    fn node(
        &mut self,
        walk: &Walk,
        subtree: Subtree,
        level: usize,
        bytes: AlignedBlock,
        on_leaf: OnLeaf<'_>,
    ) -> Result<Option<u64>, MetadataError> {
        let node = walk.parse(&subtree, level, bytes);
        let Some(node) = self.note(walk.tree, node)? else { return Ok(None) };
        let entries = if level == 0 {
            let sound = on_leaf(&node).map_err(|damage| node.damaged(damage));
            self.note(walk.tree, sound)?.map(|()| node.len() as u64)
        } else {
            let children = subtree.children(self.reader, &node, 0);
            let Some(children) = self.note(walk.tree, children)? else { return Ok(None) };
            self.children(walk, &children, level - 1, on_leaf)?
        };
        let Some(entries) = entries else { return Ok(None) };
        let extent = match node.len().checked_sub(1) {
            None => EMPTY,
            Some(last) if level == 0 => [node.key(0), node.key(last), entries],
            Some(last) => [node.key(0), self.extent(node.value_u64(last))[1], entries],
        };
        if let Some(known) = usize::try_from(subtree.block).ok().and_then(|at| self.extents.get_mut(at)) {
            *known = extent;
        }
        Ok(Some(entries))
    }

    fn children(
        &mut self,
        walk: &Walk,
        children: &[Subtree],
        level: usize,
        on_leaf: OnLeaf<'_>,
    ) -> Result<Option<u64>, MetadataError> {
        let (mut new, mut known) = (Vec::new(), Vec::new());
        for child in children {
            if self.refer(walk.tree, level, child.block) { new.push(*child) } else { known.push(*child) }
        }
        let blocks: Vec<u64> = new.iter().map(|child| child.block).collect();
        let read = self.reader.unverified(&blocks)?;
        let mut entries = Some(0);
        for (child, bytes) in new.into_iter().zip(read) {
            let below = self.node(walk, child, level, bytes, on_leaf)?;
            entries = entries.zip(below).map(|(entries, below)| entries + below);
        }
        // Nodes of another tree, too, at a place that this one gives them.
        for child in known {
            let [first, last, _] = self.extent(child.block);
            let below = self.entries(child.block);
            let outside = match child.end {
                _ if below.is_none() => None,
                _ if first < child.first => Some(first),
                end => Some(last).filter(|last| end.is_some_and(|end| *last >= end)),
            };
            if let Some(key) = outside {
                let damaged = MetadataError::Damaged { block: child.block, damage: Damage::Key { key } };
                self.note(walk.tree, Err::<(), _>(damaged))?;
            }
            let below = below.filter(|_| outside.is_none());
            entries = entries.zip(below).map(|(entries, below)| entries + below);
        }
        Ok(entries)
    }
}

/// What is the same for all nodes of a tree.
struct Walk {
    tree: Tree,
    root: u64,
    value_size: usize,
}

impl Walk {
    fn parse(&self, subtree: &Subtree, level: usize, bytes: AlignedBlock) -> Result<Node, MetadataError> {
        verify(BlockKind::Node, subtree.block, &bytes.0)?;
        let node = Node::parse(subtree.block, Box::new(bytes))?;
        node.check(level == 0, self.value_size)?;
        subtree.check_keys(&node)?;
        node.check_fill(subtree.block == self.root)?;
        Ok(node)
    }
}

fn zeroes() -> AlignedBlock {
    AlignedBlock([0; 4096])
}
