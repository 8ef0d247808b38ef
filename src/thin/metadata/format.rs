//! The on-disk format of thin-pool metadata: structures, magic numbers and checksums.
//!
//! Everything is little endian. The metadata device is an array of 4 KiB blocks; block 0 is the superblock. Names
//! are those of the kernel's `drivers/md/dm-thin-metadata.c` and `drivers/md/persistent-data/`.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a metadata block.
pub const BLOCK_SIZE: usize = 4096;
/// A metadata block.
pub type Block = [u8; BLOCK_SIZE];

/// The superblock's block number.
pub const THIN_SUPERBLOCK_LOCATION: u64 = 0;
/// `thin_disk_superblock.magic`.
pub const THIN_SUPERBLOCK_MAGIC: u64 = 27_022_010;
/// `thin_disk_superblock.version` that the kernel writes.
pub const THIN_VERSION: u32 = 2;
/// `thin_disk_superblock.flags`: the metadata must be checked before the pool becomes writable.
pub const THIN_METADATA_NEEDS_CHECK_FLAG: u32 = 1;
/// `node_header.flags` of an internal node.
pub const INTERNAL_NODE: u32 = 1;
/// `node_header.flags` of a leaf.
pub const LEAF_NODE: u32 = 2;
/// Two-bit entries in a bitmap block of a space map.
pub const ENTRIES_PER_BITMAP: u64 = ((BLOCK_SIZE - size_of::<disk_bitmap_header>()) * 4) as u64;
/// Index entries of the metadata space map.
pub const MAX_METADATA_BITMAPS: usize = 255;
/// The largest number of metadata blocks (`DM_SM_METADATA_MAX_BLOCKS`).
pub const DM_SM_METADATA_MAX_BLOCKS: u64 = MAX_METADATA_BITMAPS as u64 * ENTRIES_PER_BITMAP;
/// Bits of a mapping that hold the time; the data block number is above.
pub const MAPPING_TIME_BITS: u32 = 24;

/// `struct thin_disk_superblock`: block 0, and the copy of it that a metadata snapshot is.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct thin_disk_superblock {
    /// Checksum of the rest of the block.
    pub csum: U32,
    /// [`THIN_METADATA_NEEDS_CHECK_FLAG`].
    pub flags: U32,
    /// The number of the block that this is in.
    pub blocknr: U64,
    /// Not used: zero.
    pub uuid: [u8; 16],
    /// [`THIN_SUPERBLOCK_MAGIC`].
    pub magic: U64,
    /// [`THIN_VERSION`].
    pub version: U32,
    /// Rises with every snapshot.
    pub time: U32,
    /// User space's number.
    pub trans_id: U64,
    /// Block of the metadata snapshot's superblock; 0 if none is held.
    pub held_root: U64,
    /// Data space map; zero in a metadata snapshot.
    pub data_space_map_root: disk_sm_root,
    /// Metadata space map; zero in a metadata snapshot.
    pub metadata_space_map_root: disk_sm_root,
    /// Root of the tree device id → root of the device's mapping tree.
    pub data_mapping_root: U64,
    /// Root of the tree device id → [`disk_device_details`].
    pub device_details_root: U64,
    /// Sectors of a data block.
    pub data_block_size: U32,
    /// Sectors of a metadata block: 8.
    pub metadata_block_size: U32,
    /// Number of metadata blocks.
    pub metadata_nr_blocks: U64,
    /// Unknown bits can be ignored.
    pub compat_flags: U32,
    /// With unknown bits the metadata can only be read.
    pub compat_ro_flags: U32,
    /// With unknown bits the metadata cannot be used.
    pub incompat_flags: U32,
}

/// `struct disk_sm_root`, in the 128 bytes that the superblock has for it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct disk_sm_root {
    /// Blocks that the space map covers.
    pub nr_blocks: U64,
    /// Those that are in use.
    pub nr_allocated: U64,
    /// Index of the bitmap blocks: a btree for data, one [`disk_metadata_index`] for metadata.
    pub bitmap_root: U64,
    /// Btree block → count, for counts of 3 and more.
    pub ref_count_root: U64,
    /// Not used: zero.
    pub unused: [u8; 96],
}

/// `struct node_header`: the begin of a btree node. `max_entries` keys follow, then as many values.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct node_header {
    /// Checksum of the rest of the block.
    pub csum: U32,
    /// [`INTERNAL_NODE`] or [`LEAF_NODE`].
    pub flags: U32,
    /// The number of the block that this is in.
    pub blocknr: U64,
    /// Entries in use.
    pub nr_entries: U32,
    /// Entries that there is space for.
    pub max_entries: U32,
    /// Bytes of a value.
    pub value_size: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct disk_device_details`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct disk_device_details {
    /// Blocks that the device maps.
    pub mapped_blocks: U64,
    /// The pool's transaction id when the device was created.
    pub transaction_id: U64,
    /// The pool's time when the device was created.
    pub creation_time: U32,
    /// The pool's time when a snapshot of the device was last taken, or it was taken as a snapshot.
    pub snapshotted_time: U32,
}

/// `struct disk_index_entry`: one bitmap block of a space map.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct disk_index_entry {
    /// The bitmap block.
    pub blocknr: U64,
    /// Free entries in it.
    pub nr_free: U32,
    /// No entry below this one is free.
    pub none_free_before: U32,
}

/// `struct disk_metadata_index`: the index of the metadata space map.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct disk_metadata_index {
    /// Checksum of the rest of the block.
    pub csum: U32,
    /// Zero.
    pub padding: U32,
    /// The number of the block that this is in.
    pub blocknr: U64,
    /// The bitmap blocks.
    pub index: [disk_index_entry; MAX_METADATA_BITMAPS],
}

/// `struct disk_bitmap_header`. Two bits for each block follow: the lower one is the high bit of the count, and 3
/// means that the count is in the tree.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct disk_bitmap_header {
    /// Checksum of the rest of the block.
    pub csum: U32,
    /// Zero.
    pub not_used: U32,
    /// The number of the block that this is in.
    pub blocknr: U64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<thin_disk_superblock>() == 364);
    assert!(offset_of!(thin_disk_superblock, magic) == 32);
    assert!(offset_of!(thin_disk_superblock, trans_id) == 48);
    assert!(offset_of!(thin_disk_superblock, data_space_map_root) == 64);
    assert!(offset_of!(thin_disk_superblock, metadata_space_map_root) == 192);
    assert!(offset_of!(thin_disk_superblock, data_mapping_root) == 320);
    assert!(offset_of!(thin_disk_superblock, data_block_size) == 336);
    assert!(offset_of!(thin_disk_superblock, incompat_flags) == 360);
    assert!(size_of::<disk_sm_root>() == 128);
    assert!(size_of::<node_header>() == 32);
    assert!(size_of::<disk_device_details>() == 24);
    assert!(size_of::<disk_index_entry>() == 16);
    assert!(size_of::<disk_metadata_index>() == BLOCK_SIZE);
    assert!(size_of::<disk_bitmap_header>() == 16);
    assert!(ENTRIES_PER_BITMAP == 16_320);
    assert!(DM_SM_METADATA_MAX_BLOCKS == 4_161_600);
};

/// The kinds of metadata block; each checksums differently, so that none passes for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockKind {
    /// [`thin_disk_superblock`].
    Superblock,
    /// [`node_header`] and what follows it.
    Node,
    /// [`disk_metadata_index`].
    Index,
    /// [`disk_bitmap_header`] and what follows it.
    Bitmap,
}

impl BlockKind {
    const fn csum_xor(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Index => 160_478,
            Self::Bitmap => 240_779,
        }
    }

    /// The checksum of such a block (`dm_bm_checksum`), which its first four bytes hold.
    pub fn checksum(self, block: &Block) -> u32 {
        !crc32c::crc32c(&block[4..]) ^ self.csum_xor()
    }
}
