//! Which file system a tree has.

use serde::{Deserialize, Serialize};

/// The file system that the base is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Filesystem {
    /// ext4, by `mkfs.ext4`.
    #[default]
    Ext4,
    /// XFS, by `mkfs.xfs`.
    Xfs,
    /// None: the base is an empty block device. Snapshots are activated, not mounted.
    None,
}
