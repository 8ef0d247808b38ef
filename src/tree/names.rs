//! What the devices of a tree are called.

use uuid::Uuid;

use crate::dm::{DmName, DmUuid};
use crate::tree::Result;
use crate::tree::state::root::Root;

/// `<prefix>-<major>:<minor>-<inode of the root>-<what>`.
pub(in crate::tree) fn volume_name(prefix: &str, root: &Root, what: &str) -> Result<DmName> {
    Ok(DmName::format(format_args!("{prefix}{}", root.suffix(what)))?)
}

/// `<prefix>-<major>:<minor>-<inode of the root>+<what>`, of a volume that is not published: no snapshot has this name.
pub(in crate::tree) fn unpublished_name(prefix: &str, root: &Root, what: &str) -> Result<DmName> {
    Ok(DmName::format(format_args!("{prefix}-{}-{}+{what}", root.device, root.inode))?)
}

pub(in crate::tree) fn pool_uuid(tree: Uuid) -> Result<DmUuid> {
    Ok(DmUuid::format(format_args!("DMTHIN-{}-pool", tree.simple()))?)
}
