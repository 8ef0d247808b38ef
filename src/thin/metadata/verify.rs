//! What each block has at its beginning.

use super::error::{Damage, MetadataError};
use super::format::{Block, BlockKind};

/// Checks a block's number and checksum.
pub(super) fn verify(kind: BlockKind, block: u64, bytes: &Block) -> Result<(), MetadataError> {
    let stored = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let computed = kind.checksum(bytes);
    let damaged = |damage| Err(MetadataError::Damaged { block, damage });
    if stored != computed {
        return damaged(Damage::Checksum { stored, computed });
    }
    // Each kind has its own number at byte 8.
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[8..16]);
    match u64::from_le_bytes(number) {
        found if found != block => damaged(Damage::Misplaced { found }),
        _ => Ok(()),
    }
}
