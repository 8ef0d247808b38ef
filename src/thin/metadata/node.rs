//! A node of a b-tree.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::error::{Damage, MetadataError};
use super::format::{BLOCK_SIZE, INTERNAL_NODE, LEAF_NODE, node_header};
use crate::kernel::AlignedBlock;

const HEADER: usize = size_of::<node_header>();

/// A node whose header and keys are sound.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) block: u64,
    bytes: Box<AlignedBlock>,
    internal: bool,
    entries: usize,
    pub(super) capacity: usize,
    value_size: usize,
}

impl Node {
    pub(super) fn parse(block: u64, bytes: Box<AlignedBlock>) -> Result<Self, MetadataError> {
        let damaged = |damage| Err(MetadataError::Damaged { block, damage });
        // The block is longer than the header.
        let Ok((header, _)) = node_header::read_from_prefix(&bytes.0) else { return damaged(Damage::Depth) };
        let (entries, capacity) = (header.nr_entries.get(), header.max_entries.get());
        let internal = match header.flags.get() {
            INTERNAL_NODE => true,
            LEAF_NODE => false,
            flags => return damaged(Damage::Kind { flags, expected: "internal node or leaf" }),
        };
        let value_size = header.value_size.get();
        let needed =
            u64::from(capacity).saturating_mul(8 + u64::from(value_size)).saturating_add(HEADER as u64);
        if entries > capacity || needed > BLOCK_SIZE as u64 || (internal && entries == 0) {
            return damaged(Damage::Entries { entries, capacity });
        }
        if internal && value_size != 8 {
            return damaged(Damage::ValueSize { found: value_size, expected: 8 });
        }
        let (entries, capacity, value_size) = (entries as usize, capacity as usize, value_size as usize);
        let node = Self { block, bytes, internal, entries, capacity, value_size };
        match node.keys().windows(2).find(|pair| pair[0].get() >= pair[1].get()) {
            Some(pair) => damaged(Damage::Key { key: pair[1].get() }),
            None => Ok(node),
        }
    }

    pub(super) fn is_internal(&self) -> bool {
        self.internal
    }

    pub(super) fn len(&self) -> usize {
        self.entries
    }

    pub(super) fn keys(&self) -> &[U64] {
        let bytes = &self.bytes.0[HEADER..HEADER + 8 * self.entries];
        <[U64]>::ref_from_bytes(bytes).unwrap_or_default()
    }

    pub(super) fn key(&self, index: usize) -> u64 {
        self.keys()[index].get()
    }

    /// The bytes of a value.
    pub(super) fn value(&self, index: usize) -> &[u8] {
        let start = HEADER + 8 * self.capacity + index * self.value_size;
        &self.bytes.0[start..start + self.value_size]
    }

    pub(super) fn value_u64(&self, index: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.value(index)[..8]);
        u64::from_le_bytes(bytes)
    }

    /// The index of the last entry whose key is at most `key`.
    pub(super) fn floor(&self, key: u64) -> Option<usize> {
        self.keys().partition_point(|it| it.get() <= key).checked_sub(1)
    }

    /// The value of a key of a leaf.
    pub(super) fn find(&self, key: u64) -> Option<&[u8]> {
        let index = self.floor(key).filter(|&index| !self.internal && self.key(index) == key)?;
        Some(self.value(index))
    }

    pub(super) fn damaged(&self, damage: Damage) -> MetadataError {
        MetadataError::Damaged { block: self.block, damage }
    }

    /// Checks what the kernel keeps to, and a reader does not need.
    #[allow(clippy::cast_possible_truncation)] // both were u32
    pub(super) fn check_fill(&self, is_root: bool) -> Result<(), MetadataError> {
        let (entries, capacity) = (self.entries as u32, self.capacity as u32);
        if !capacity.is_multiple_of(3) {
            return Err(self.damaged(Damage::Capacity { capacity }));
        }
        if !is_root && entries < capacity / 3 {
            return Err(self.damaged(Damage::Underfull { entries, capacity }));
        }
        Ok(())
    }

    /// Checks that it is a leaf of a tree with values of that size, or an internal node of any.
    pub(super) fn check(&self, leaf: bool, value_size: usize) -> Result<(), MetadataError> {
        if leaf == self.internal {
            let (flags, expected) =
                if self.internal { (INTERNAL_NODE, "leaf") } else { (LEAF_NODE, "internal node") };
            return Err(self.damaged(Damage::Kind { flags, expected }));
        }
        if leaf && self.value_size != value_size {
            #[allow(clippy::cast_possible_truncation)] // both are below 4096
            let (found, expected) = (self.value_size as u32, value_size as u32);
            return Err(self.damaged(Damage::ValueSize { found, expected }));
        }
        Ok(())
    }
}
