//! What the devices of a tree are called.

use std::fmt::Display;

use uuid::Uuid;

use crate::dm::{DmName, DmUuid};
use crate::kernel::DeviceNumber;
use crate::thin::ThinId;
use crate::tree::Result;

/// The base's name among the volumes; no snapshot can have it.
pub(in crate::tree) const BASE: &str = "base";
/// The pool's.
pub(in crate::tree) const POOL: &str = "pool";
/// The name of the device that claims the tree.
pub(in crate::tree) const LOCK: &str = "pool-lock";

/// Names and uuids of a tree's devices.
#[derive(Debug, Clone)]
pub(in crate::tree) struct Names {
    prefix: String,
    /// Device and inode of the root directory.
    root: (DeviceNumber, u64),
    tree: Uuid,
}

impl Names {
    pub(in crate::tree) fn new(prefix: &str, root: (DeviceNumber, u64), tree: Uuid) -> Self {
        Self { prefix: prefix.to_owned(), root, tree }
    }

    /// `<prefix>-<major>:<minor>-<inode of the root>-<what>`.
    pub(in crate::tree) fn name(&self, what: &str) -> Result<DmName> {
        Ok(DmName::format(format_args!("{}{}", self.prefix, self.suffix(what)))?)
    }

    /// `<prefix>-<major>:<minor>-<inode of the root>+<what>`, of a volume that is not published: no snapshot has this
    /// name.
    pub(in crate::tree) fn unpublished(&self, what: impl Display) -> Result<DmName> {
        let (device, inode) = self.root;
        Ok(DmName::format(format_args!("{}-{device}-{inode}+{what}", self.prefix))?)
    }

    /// Whether a device is this root's, under whatever prefix.
    pub(in crate::tree) fn is_of_root(&self, name: &DmName, what: &str) -> bool {
        name.as_bytes().ends_with(self.suffix(what).as_bytes())
    }

    fn suffix(&self, what: &str) -> String {
        let (device, inode) = self.root;
        format!("-{device}-{inode}-{what}")
    }

    /// `DMTHIN-<tree>-<what>`.
    fn uuid(&self, what: impl Display) -> Result<DmUuid> {
        Ok(DmUuid::format(format_args!("DMTHIN-{}-{what}", self.tree.simple()))?)
    }

    pub(in crate::tree) fn pool_uuid(&self) -> Result<DmUuid> {
        self.uuid("pool")
    }

    pub(in crate::tree) fn lock_uuid(&self) -> Result<DmUuid> {
        self.uuid("lock")
    }

    /// Bound to the thin id, not to the name of the snapshot, which can change.
    pub(in crate::tree) fn volume_uuid(&self, id: ThinId) -> Result<DmUuid> {
        self.uuid(id)
    }

    /// What the uuids of all its devices begin with.
    pub(in crate::tree) fn uuid_prefix(&self) -> Result<DmUuid> {
        self.uuid("")
    }

    /// The volume whose device has this uuid.
    pub(in crate::tree) fn volume_of(&self, uuid: &DmUuid) -> Option<ThinId> {
        let prefix = format!("DMTHIN-{}-", self.tree.simple());
        uuid.to_str()?.strip_prefix(&prefix)?.parse().ok()
    }
}
