//! The superblocks of the two file systems that Docker makes.

use dm_thin::units::Bytes;
use uuid::Uuid;

/// Bytes at the beginning of a device that have both superblocks.
pub(crate) const PROBE_LEN: usize = 2048;

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filesystem {
    /// The kernel's name of its type.
    pub(crate) kind: &'static str,
    pub(crate) uuid: Uuid,
    pub(crate) size: Bytes,
}

impl Filesystem {
    pub(crate) fn probe(bytes: &[u8; PROBE_LEN]) -> Option<Self> {
        let array = |at: usize| -> [u8; 4] { std::array::from_fn(|index| bytes[at + index]) };
        let uuid = |at: usize| Uuid::from_bytes(std::array::from_fn(|index| bytes[at + index]));
        if bytes.starts_with(b"XFSB") {
            let block = u64::from(u32::from_be_bytes(array(4)));
            let blocks =
                u64::from(u32::from_be_bytes(array(8))) << 32 | u64::from(u32::from_be_bytes(array(12)));
            return Some(Self { kind: "xfs", uuid: uuid(32), size: Bytes(blocks.checked_mul(block)?) });
        }
        // ext4: the superblock is at 1024; s_magic, s_blocks_count, s_log_block_size, INCOMPAT_64BIT.
        let number = |at: usize| u32::from_le_bytes(array(1024 + at));
        if number(0x38) & 0xffff != 0xef53 {
            return None;
        }
        let high = if number(0x60) & 0x80 != 0 { u64::from(number(0x150)) } else { 0 };
        let blocks = high << 32 | u64::from(number(4));
        let block = 1024u64.checked_shl(number(0x18)).filter(|block| *block <= 64 << 10)?;
        Some(Self { kind: "ext4", uuid: uuid(1024 + 0x68), size: Bytes(blocks.checked_mul(block)?) })
    }
}
