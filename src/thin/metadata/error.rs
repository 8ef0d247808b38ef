//! What can be wrong with metadata.

use std::io;

use crate::thin::ThinId;

/// Why metadata cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The device or file cannot be read.
    #[error("read metadata block {block}: {source}")]
    Io {
        /// The block.
        block: u64,
        /// Why.
        source: io::Error,
    },

    /// A block is not what it should be.
    #[error("metadata block {block}: {damage}")]
    Damaged {
        /// The block.
        block: u64,
        /// What is wrong with it.
        damage: Damage,
    },

    /// The metadata was never formatted: its superblock is zeroes.
    #[error("no thin-pool metadata: the superblock is zeroes")]
    NotFormatted,

    /// The pool has no thin device of that id.
    #[error("no thin device {id} in the metadata")]
    NoDevice {
        /// The id.
        id: ThinId,
    },

    /// More snapshots were taken than the time of a mapping can count.
    #[error("the pool's time, {time}, has passed 2^24: what was written since a given time cannot be told")]
    TimeWrapped {
        /// The pool's time.
        time: u32,
    },
}

/// What is wrong with a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Torn, or rotten (the kernel's EILSEQ).
    #[error("checksum {stored:#010x}, should be {computed:#010x}")]
    Checksum {
        /// The one in the block.
        stored: u32,
        /// The one of its contents.
        computed: u32,
    },
    /// It was written for another place (the kernel's ENOTBLK).
    #[error("misplaced: its header says block {found}")]
    Misplaced {
        /// Its number in itself.
        found: u64,
    },
    /// Not a thin pool's superblock.
    #[error("magic number {found}, not a thin pool's")]
    Magic {
        /// The number.
        found: u64,
    },
    /// A format that this crate does not know.
    #[error("version {found}, not 1 or 2")]
    Version {
        /// The version.
        found: u32,
    },
    /// Features that this crate does not know.
    #[error("incompatible features {flags:#x}")]
    Features {
        /// Their bits.
        flags: u32,
    },
    /// A data block size that no pool has.
    #[error("data block size {sectors} sectors")]
    BlockSize {
        /// In sectors.
        sectors: u32,
    },
    /// A metadata block size that no pool has.
    #[error("metadata block size {sectors} sectors, not 8")]
    MetadataBlockSize {
        /// In sectors.
        sectors: u32,
    },
    /// Neither an internal node nor a leaf where one must be, or leaves at different depths.
    #[error("node flags {flags:#x}, expected {expected}")]
    Kind {
        /// Its flags.
        flags: u32,
        /// `internal node` or `leaf`.
        expected: &'static str,
    },
    /// Values of another size than the tree's.
    #[error("values of {found} bytes, should be {expected}")]
    ValueSize {
        /// The node's.
        found: u32,
        /// The tree's.
        expected: u32,
    },
    /// More entries than there is space for, or none where there must be some.
    #[error("{entries} entries of at most {capacity}")]
    Entries {
        /// Those in use.
        entries: u32,
        /// Those that the node claims space for.
        capacity: u32,
    },
    /// A node other than the root with fewer entries than the kernel leaves in one. It can be read.
    #[error("{entries} entries, at least a third of {capacity} are required")]
    Underfull {
        /// Those in use.
        entries: u32,
        /// Those that there is space for.
        capacity: u32,
    },
    /// Space for a number of entries that is not a multiple of 3. The node can be read.
    #[error("space for {capacity} entries, not a multiple of 3")]
    Capacity {
        /// The number.
        capacity: u32,
    },
    /// Keys that do not ascend, or that the parent leads elsewhere.
    #[error("key {key} is out of order")]
    Key {
        /// The key.
        key: u64,
    },
    /// A child beyond the end of the metadata, or the superblock.
    #[error("points to metadata block {child}, which is out of range")]
    Child {
        /// The block.
        child: u64,
    },
    /// Deeper than any tree.
    #[error("the tree is deeper than 16 levels")]
    Depth,
    /// A node that leads to itself, or to one above it.
    #[error("points back to one of its ancestors")]
    Cycle,
    /// A thin device id of more than 24 bits.
    #[error("thin device id {id} has more than 24 bits")]
    DeviceId {
        /// The id.
        id: u64,
    },
    /// A data block beyond the end of the data device.
    #[error("maps data block {data}, the pool has {blocks}")]
    DataBlock {
        /// The data block.
        data: u64,
        /// How many there are.
        blocks: u64,
    },
    /// A count of 3 or more that is not in the tree of such counts.
    #[error("no reference count of block {block}, which has one above 2")]
    NoCount {
        /// The data or metadata block.
        block: u64,
    },
    /// A bitmap block of a space map that its index does not have.
    #[error("the space map has no bitmap {number}")]
    NoBitmap {
        /// Its place in the index.
        number: u64,
    },
    /// A block beyond the end of a space map.
    #[error("the space map ends at block {blocks}, before block {block}")]
    SpaceMap {
        /// The data or metadata block.
        block: u64,
        /// How many blocks the space map has.
        blocks: u64,
    },
    /// A space map that does not fit into the metadata.
    #[error("a space map of {blocks} blocks, at most {available} are possible")]
    SpaceMapSize {
        /// How many blocks the space map has.
        blocks: u64,
        /// How many it can have.
        available: u64,
    },
}
