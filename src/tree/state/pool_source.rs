//! Where a pool comes from: what is asked for, and what is recorded of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the pool of a tree comes from. It is part of the tree: what was chosen when the tree was made stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PoolSource {
    /// Two sparse files below the root, on loop devices.
    #[default]
    LoopFiles,
    /// Two block devices, which the tree takes for itself. The first and last 4 MiB of both have to be zero, unless
    /// [`Options::force_device`](crate::tree::Options::force_device) is set.
    Devices {
        /// For the data. Found again by its device-mapper uuid, WWID, serial number or PARTUUID, whatever its path is
        /// then. One that has none of these needs a path that means it after a restart, too.
        data: PathBuf,
        /// For the metadata.
        metadata: PathBuf,
    },
    /// One block device, which the tree takes for itself and splits into metadata and data behind a label. Its
    /// first and last 4 MiB have to be zero, unless [`Options::force_device`](crate::tree::Options::force_device) is
    /// set.
    /// Found again by its label, whatever its path is then.
    Device {
        /// The device.
        path: PathBuf,
    },
    /// A thin pool that is active, by its device name. Naming it adopts it.
    ///
    /// The tree shares it with whoever else uses it: it is not deactivated by
    /// [`close`](crate::tree::SnapshotTree::close), and thin devices that the tree does not know are reported by
    /// [`check`](crate::tree::SnapshotTree::check), never deleted. Its transaction id stays its owner's. Nothing is
    /// written to it before the first snapshot: the base is made then. A pool that a tree made for itself is not
    /// adopted.
    Pool {
        /// Its name, without `/dev/mapper/`.
        name: String,
    },
}

impl PoolSource {
    pub(in crate::tree) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a tree extends its pool by itself: there may be more room below it.
    pub(in crate::tree) fn can_grow(&self) -> bool {
        matches!(self, Self::LoopFiles | Self::Device { .. })
    }

    /// Whether others may have thin devices in the pool.
    pub(in crate::tree) fn is_shared(&self) -> bool {
        matches!(self, Self::Pool { .. })
    }
}

/// What an adopted pool was when it was adopted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Adopted {
    /// Its device-mapper uuid, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) uuid: Option<String>,
    /// Always set by this version: a pool's transaction id is its owner's. Trees of format 1 took over an id of 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::tree) foreign_transaction: bool,
}
