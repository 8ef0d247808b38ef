//! `<linux/fs.h>`: the block-device ioctls that this crate needs.

use core::mem::size_of;

use super::{Argument, DeviceKind, Ioctl, NONE, READ, ioc};

const BLOCK_GROUP: u32 = 0x12;

const fn plain(name: &'static str, number: u32, argument: Argument) -> Ioctl {
    Ioctl::new(name, ioc(NONE, BLOCK_GROUP, number, 0), DeviceKind::Block, argument)
}

/// Whether the device is read-only (int).
pub const BLKROGET: Ioctl = plain("BLKROGET", 94, Argument::Bytes(size_of::<i32>()));
/// Write out and drop the buffer cache.
pub const BLKFLSBUF: Ioctl = plain("BLKFLSBUF", 97, Argument::Value);
/// Logical sector size in bytes (int).
pub const BLKSSZGET: Ioctl = plain("BLKSSZGET", 104, Argument::Bytes(size_of::<i32>()));
/// Discard a range: first byte and length (two u64).
pub const BLKDISCARD: Ioctl = plain("BLKDISCARD", 119, Argument::Bytes(16));
/// Physical sector size in bytes (unsigned int).
pub const BLKPBSZGET: Ioctl = plain("BLKPBSZGET", 123, Argument::Bytes(size_of::<u32>()));
/// Write zeroes: first byte and length (two u64).
pub const BLKZEROOUT: Ioctl = plain("BLKZEROOUT", 127, Argument::Bytes(16));
/// Size in bytes. The header encodes `size_t`, the kernel always writes a u64.
pub const BLKGETSIZE64: Ioctl = Ioctl::new(
    "BLKGETSIZE64",
    ioc(READ, BLOCK_GROUP, 114, size_of::<usize>()),
    DeviceKind::Block,
    Argument::Bytes(size_of::<u64>()),
);
