//! B-tree nodes.

use std::ops::Range;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::thin::metadata::format::{
    BLOCK_SIZE, Block, INTERNAL_NODE, LEAF_NODE, MAPPING_TIME_BITS, node_header,
};

const HEADER: usize = size_of::<node_header>();

/// The trees of a pool; the root of a device's mapping tree is a value of the top-level tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tree {
    /// Device id → root of its mapping tree.
    Devices,
    /// Virtual block → data block and time.
    Mappings,
    /// Device id → details.
    Details,
    /// Index → bitmap block, or block → reference count.
    SpaceMap,
}

/// Entries of a node, as the kernel counts them: a multiple of three.
pub(super) const fn max_entries(value_size: usize) -> usize {
    (BLOCK_SIZE - HEADER) / (size_of::<u64>() + value_size) / 3 * 3
}

/// Cuts sorted entries into nodes that are at least a third full, which is the kernel's rule for all but the root.
/// Where depends on the keys, so that an entry more or less changes the nodes beside it only.
pub(super) fn split(keys: impl Fn(usize) -> u64, len: usize, max: usize) -> Vec<Range<usize>> {
    let min = max / 3;
    let (mut parts, mut from) = (Vec::new(), 0);
    while len - from > max {
        let last = (from + max).min(len - min);
        let first = from + min;
        let ends = |at: &usize| keys(*at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58 == 0;
        let end = (first..last).find(ends).unwrap_or(last);
        parts.push(from..end);
        from = end;
    }
    parts.push(from..len);
    parts
}

/// A node without its number and checksum.
pub(super) fn encode<V: IntoBytes + Immutable>(leaf: bool, entries: &[(u64, V)]) -> Block {
    let (mut block, max) = ([0; BLOCK_SIZE], max_entries(size_of::<V>()));
    let mut header = node_header::new_zeroed();
    header.flags = if leaf { LEAF_NODE } else { INTERNAL_NODE }.into();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).into();
    header.nr_entries = count(entries.len());
    header.max_entries = count(max);
    header.value_size = count(size_of::<V>());
    block[..HEADER].copy_from_slice(header.as_bytes());
    let (keys, values) = block[HEADER..].split_at_mut(max * size_of::<u64>());
    for ((key, _), bytes) in entries.iter().zip(keys.chunks_exact_mut(size_of::<u64>())) {
        bytes.copy_from_slice(&key.to_le_bytes());
    }
    for ((_, value), bytes) in entries.iter().zip(values.chunks_exact_mut(size_of::<V>())) {
        bytes.copy_from_slice(value.as_bytes());
    }
    block
}

/// The 64-bit values of a node, and whether it is a leaf.
fn values(block: &Block) -> (bool, &[U64]) {
    let Ok((header, _)) = node_header::ref_from_prefix(block) else { return (true, &[]) };
    let (count, max) = (header.nr_entries.get() as usize, header.max_entries.get() as usize);
    let values = block.get(HEADER + max * size_of::<u64>()..).unwrap_or_default();
    let values = <[U64]>::ref_from_prefix_with_elems(values, count).map_or(&[][..], |(values, _)| values);
    (header.flags == LEAF_NODE, values)
}

/// The nodes that a node leads to, those of the devices' trees included.
pub(super) fn children(tree: Tree, block: &Block) -> Vec<(Tree, u64)> {
    let (leaf, values) = values(block);
    let below = match (leaf, tree) {
        (false, tree) => tree,
        (true, Tree::Devices) => Tree::Mappings,
        (true, _) => return Vec::new(),
    };
    values.iter().map(|value| (below, value.get())).collect()
}

/// The data blocks that a node maps.
pub(super) fn data_blocks(tree: Tree, block: &Block) -> impl Iterator<Item = u64> {
    let (leaf, values) = values(block);
    let values = if leaf && tree == Tree::Mappings { values } else { &[] };
    values.iter().map(|value| value.get() >> MAPPING_TIME_BITS)
}
