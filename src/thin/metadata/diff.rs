//! What differs between the mappings of two devices.
//!
//! A snapshot begins as the same tree as its origin, and a write replaces only the path from the root to one leaf.
//! So both trees are walked level by level, and at each level the blocks that both name are left out: equal blocks
//! are equal subtrees. The leaves that remain are merged in the order of their keys. This assumes nothing about
//! the history of the two, and reads some blocks for each leaf that changed.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Metadata;
use super::blocks::BATCH;
use super::btree::{Subtree, height, read_internal, read_leaves};
use super::error::MetadataError;
use super::mapping::{Entry, Mappings};
use super::node::Node;
use crate::thin::ThinId;

/// What a changed range has.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Mapped blocks that the base does not have, or has others for.
    Data,
    /// Nothing, where the base has mapped blocks.
    Hole,
}

/// A run of virtual blocks that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The first block.
    pub begin: u64,
    /// How many.
    pub length: u64,
    /// What the target has there.
    pub kind: ChangeKind,
}

impl Metadata {
    /// Returns where `target` differs from `base`, from the virtual block `from` on, in ascending runs. Without a base
    /// it is all that is mapped. Two blocks are equal if they are the same data block.
    ///
    /// # Errors
    /// [`MetadataError::NoDevice`]; the iterator stops at an error.
    pub fn changed(
        &self,
        base: Option<ThinId>,
        target: ThinId,
        from: u64,
    ) -> Result<Changes<'_>, MetadataError> {
        let Some(base) = base else {
            return Ok(Changes { source: Source::Mapped(self.mappings(target, from)?, 0), run: None });
        };
        let [left, right] =
            self.leaves_that_differ(self.mapping_root(base)?, self.mapping_root(target)?, from)?;
        let merge = Merge { left: Cursor::new(self, left, from), right: Cursor::new(self, right, from) };
        Ok(Changes { source: Source::Merged(Box::new(merge)), run: None })
    }

    /// Returns the blocks of a device that were allocated after the pool's time `time`, from the virtual block `from`
    /// on. For a device that descends from one that was not written to since `time` these are the blocks that differ
    /// from it, except those that were discarded, which leave no trace.
    ///
    /// # Errors
    /// [`MetadataError::NoDevice`], [`MetadataError::TimeWrapped`]; the iterator stops at an error.
    pub fn changed_since(&self, target: ThinId, time: u32, from: u64) -> Result<Changes<'_>, MetadataError> {
        if self.superblock.time >= 1 << 24 {
            return Err(MetadataError::TimeWrapped { time: self.superblock.time });
        }
        // Times are compared with `>=`.
        let earliest = time.saturating_add(1);
        Ok(Changes { source: Source::Mapped(self.mappings(target, from)?, earliest), run: None })
    }

    /// The leaves of each of two trees that are not in the other one.
    fn leaves_that_differ(
        &self,
        left: u64,
        right: u64,
        from: u64,
    ) -> Result<[Vec<Subtree>; 2], MetadataError> {
        let reader = &self.reader;
        let mut sides = [left, right].map(|root| vec![Subtree::root(root)]);
        let mut levels = [height(reader, left)?, height(reader, right)?];
        loop {
            if levels[0] == levels[1] {
                let [left, right] = &mut sides;
                // In the same place, too: a block that one side has elsewhere, or twice, is read, and found damaged.
                let place = |it: &Subtree| (it.block, it.first);
                let names = |side: &[Subtree]| side.iter().map(place).collect::<HashSet<_>>();
                let (in_left, in_right) = (names(left), names(right));
                left.retain(|it| !in_right.contains(&place(it)));
                right.retain(|it| !in_left.contains(&place(it)));
                if levels[0] == 0 {
                    return Ok(sides);
                }
            }
            let highest = levels[0].max(levels[1]);
            for (side, level) in sides.iter_mut().zip(&mut levels).filter(|(_, level)| **level == highest) {
                *side = read_internal(reader, side, from)?;
                *level -= 1;
            }
        }
    }
}

/// The iterator of [`Metadata::changed`].
#[derive(Debug)]
pub struct Changes<'a> {
    source: Source<'a>,
    run: Option<Change>,
}

#[derive(Debug)]
enum Source<'a> {
    /// All that was mapped at that time or later.
    Mapped(Mappings<'a>, u32),
    Merged(Box<Merge<'a>>),
    Ended,
}

impl Source<'_> {
    fn next(&mut self) -> Result<Option<Change>, MetadataError> {
        match self {
            Self::Mapped(mappings, earliest) => {
                for mapping in mappings {
                    let mapping = mapping?;
                    if mapping.time >= *earliest {
                        let (begin, length) = (mapping.virtual_block, mapping.length);
                        return Ok(Some(Change { begin, length, kind: ChangeKind::Data }));
                    }
                }
                Ok(None)
            }
            Self::Merged(merge) => merge.next(),
            Self::Ended => Ok(None),
        }
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change, MetadataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.source.next() {
                Ok(Some(next)) => {
                    if let Some(run) = &mut self.run
                        && run.begin.checked_add(run.length) == Some(next.begin)
                        && run.kind == next.kind
                    {
                        run.length += next.length;
                    } else if let Some(run) = self.run.replace(next) {
                        return Some(Ok(run));
                    }
                }
                Ok(None) => return self.run.take().map(Ok),
                Err(error) => {
                    (self.source, self.run) = (Source::Ended, None);
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The entries of some leaves, in order.
#[derive(Debug)]
struct Cursor<'a> {
    metadata: &'a Metadata,
    leaves: std::vec::IntoIter<Subtree>,
    ready: std::vec::IntoIter<Node>,
    leaf: Option<(Node, usize)>,
    from: u64,
    peeked: Option<Entry>,
}

impl<'a> Cursor<'a> {
    fn new(metadata: &'a Metadata, leaves: Vec<Subtree>, from: u64) -> Self {
        let (leaves, ready) = (leaves.into_iter(), Vec::new().into_iter());
        Self { metadata, leaves, ready, leaf: None, from, peeked: None }
    }

    fn peek(&mut self) -> Result<Option<Entry>, MetadataError> {
        while self.peeked.is_none() {
            if let Some((leaf, index)) = &mut self.leaf
                && *index < leaf.len()
            {
                let entry = self.metadata.entry(leaf, *index)?;
                *index += 1;
                self.peeked = Some(entry).filter(|entry| entry.0 >= self.from);
            } else if let Some(leaf) = self.ready.next() {
                self.leaf = Some((leaf, 0));
            } else {
                let batch: Vec<_> = self.leaves.by_ref().take(BATCH).collect();
                if batch.is_empty() {
                    return Ok(None);
                }
                self.ready = read_leaves(&self.metadata.reader, &batch, 8)?.into_iter();
            }
        }
        Ok(self.peeked)
    }
}

/// What only one side has, and what both have differently.
#[derive(Debug)]
struct Merge<'a> {
    left: Cursor<'a>,
    right: Cursor<'a>,
}

impl Merge<'_> {
    fn next(&mut self) -> Result<Option<Change>, MetadataError> {
        loop {
            let (left, right) = (self.left.peek()?, self.right.peek()?);
            let one = |begin, kind| Ok(Some(Change { begin, length: 1, kind }));
            match (left, right) {
                (None, None) => return Ok(None),
                (Some(left), Some(right)) if left.0 == right.0 => {
                    (self.left.peeked, self.right.peeked) = (None, None);
                    if left.1 != right.1 {
                        return one(right.0, ChangeKind::Data);
                    }
                }
                (Some(left), right) if right.is_none_or(|right| left.0 < right.0) => {
                    self.left.peeked = None;
                    return one(left.0, ChangeKind::Hole);
                }
                (_, Some(right)) => {
                    self.right.peeked = None;
                    return one(right.0, ChangeKind::Data);
                }
                (Some(_), None) => return Ok(None),
            }
        }
    }
}
