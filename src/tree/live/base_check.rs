//! What the superblock of a volume says: the UUID that the file system was made with, and whether its log is clean.

use std::path::Path;

use uuid::Uuid;

use crate::kernel::{Access, Kernel};
use crate::thin::blank;
use crate::tree::Filesystem;
use crate::tree::{Error, Result};

/// The UUID in the superblock on `device`, if there is such a file system.
pub(in crate::tree) fn read(
    kernel: &dyn Kernel,
    filesystem: Filesystem,
    device: &Path,
) -> Result<Option<Uuid>> {
    Ok(parse(filesystem, &superblock(kernel, device)?))
}

/// Whether the file system on `device` may have to be mounted to replay its log. What XFS has in its log is not in its
/// superblock.
pub(in crate::tree) fn may_need_replay(
    kernel: &dyn Kernel,
    filesystem: Filesystem,
    device: &Path,
) -> Result<bool> {
    let bytes = superblock(kernel, device)?;
    // s_feature_incompat 96: EXT4_FEATURE_INCOMPAT_RECOVER.
    let is_clean = filesystem == Filesystem::Ext4 && bytes[1024 + 96] & 0x4 == 0;
    Ok(parse(filesystem, &bytes).is_some() && !is_clean)
}

fn superblock(kernel: &dyn Kernel, device: &Path) -> Result<[u8; 2048]> {
    let mut bytes = [0; 2048];
    let file = kernel.open(device, Access::READ);
    let file = file.map_err(|errno| Error::Open { path: device.into(), errno })?;
    blank::read_exact(kernel, &file, 0, &mut bytes).map_err(Error::io("read", device))?;
    Ok(bytes)
}

fn parse(filesystem: Filesystem, bytes: &[u8; 2048]) -> Option<Uuid> {
    let (magic_at, magic, uuid_at): (usize, &[u8], usize) = match filesystem {
        // struct ext4_super_block at 1024: s_magic 56, s_uuid 104; struct xfs_dsb at 0: sb_uuid 32.
        Filesystem::Ext4 => (1024 + 56, &[0x53, 0xef], 1024 + 104),
        Filesystem::Xfs => (0, b"XFSB", 32),
        Filesystem::None => return None,
    };
    let is_there = bytes[magic_at..].starts_with(magic);
    is_there.then(|| Uuid::from_slice(&bytes[uuid_at..uuid_at + 16]).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks() {
        let mut bytes = [0; 2048];
        bytes[..4].copy_from_slice(b"XFSB");
        bytes[32..48].copy_from_slice(&[7; 16]);
        assert_eq!(parse(Filesystem::Xfs, &bytes), Some(Uuid::from_bytes([7; 16])));
        assert_eq!(parse(Filesystem::Ext4, &bytes), None);
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        bytes[1128..1144].copy_from_slice(&[9; 16]);
        assert_eq!(parse(Filesystem::Ext4, &bytes), Some(Uuid::from_bytes([9; 16])));
    }
}
