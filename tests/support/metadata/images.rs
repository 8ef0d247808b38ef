//! Pools that real kernels made, and left with a metadata snapshot.
//!
//! `DM_THIN_METADATA_IMAGE=1 DM_THIN_METADATA_STEPS=45 tests/vm/run --only-kernel --kernel 6.1 test metadata::random |
//! sed -n 's/^image //p' | xxd -r -p` makes one. It has the blocks that a check reads: for each run of bytes that are
//! not zero the block, the place in it, how many, and the bytes, the numbers in two bytes.

use dm_thin::kernel::AlignedBlock;

use super::Patched;

/// The kernel's release, and its pool.
pub const IMAGES: [(&str, &[u8]); 2] =
    [("6.1", include_bytes!("pool-6.1")), ("6.12", include_bytes!("pool-6.12"))];

/// All blocks of a pool.
pub fn blocks(mut image: &[u8]) -> Patched {
    let mut blocks = AlignedBlock::zeroed(1);
    while let Some((header, rest)) = image.split_at_checked(6) {
        let number = |at| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (block, start, len) = (number(0), number(2), number(4));
        let (bytes, rest) = rest.split_at(len);
        blocks.resize(blocks.len().max(block + 1), AlignedBlock([0; 4096]));
        blocks[block].0[start..start + len].copy_from_slice(bytes);
        image = rest;
    }
    assert!(image.is_empty());
    // As many as the metadata space map has.
    let bytes = blocks[0].0[192..200].try_into().unwrap();
    blocks.resize(usize::try_from(u64::from_le_bytes(bytes)).unwrap(), AlignedBlock([0; 4096]));
    Patched(blocks)
}
