//! The sizes that a volume can have.

use crate::tree::{Error, Result};
use crate::units::Bytes;

/// The kernel's largest device: 8 EiB.
pub(in crate::tree) const SIZE_MAX: Bytes = Bytes::gib(1 << 33);

/// The largest snapshot. Operations on its whole range, such as discards, then take minutes, not years.
const SNAPSHOT_MAX: Bytes = Bytes::gib(1 << 20);

/// A size is a multiple of 4 KiB, so that every file system and loop device can use all of it.
pub(in crate::tree) fn check_size(option: &'static str, size: Bytes) -> Result<()> {
    let invalid = |reason| Err(Error::InvalidOption { option, value: size.to_string(), reason });
    if size.0 == 0 || !size.0.is_multiple_of(Bytes::kib(4).0) {
        return invalid("not a multiple of 4096 bytes above 0");
    }
    if size > SNAPSHOT_MAX {
        return invalid("larger than 1 PiB");
    }
    Ok(())
}

/// A snapshot is not smaller than what it was made from: its file system would end beyond it.
pub(in crate::tree) fn check_child_size(size: Bytes, parent_size: Bytes) -> Result<()> {
    if size >= parent_size {
        return Ok(());
    }
    let reason = "less than its parent's";
    Err(Error::InvalidOption { option: "snapshot size", value: size.to_string(), reason })
}
