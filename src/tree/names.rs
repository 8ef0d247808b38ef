//! What the devices of a tree are called.

use std::borrow::Cow;
use std::fmt::Display;

use sha2::{Digest, Sha256};
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

/// With the longest prefix and device numbers, so much still fits into a device's name.
const LONGEST: usize = 72;

/// An id as [`SnapshotId`](crate::tree::SnapshotId) says that it is in a device's name: neither device mapper nor udev has to
/// escape anything there, and no two are equal.
fn escape(id: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"#+-.:@_".contains(&byte);
    if id.len() <= LONGEST && !id.starts_with('=') && id.bytes().all(|byte| is_plain(byte) || byte == b'=') {
        return id.into();
    }
    let mut escaped = String::from("=");
    for byte in id.bytes() {
        match is_plain(byte) {
            true => escaped.push(char::from(byte)),
            false => escaped += &format!("={byte:02x}"),
        }
    }
    // An escaped text has a second `=`, unless it is too long; a plain one has none in front.
    if escaped.len() > LONGEST {
        escaped.truncate(1);
        escaped.extend(Sha256::digest(id)[..20].iter().map(|byte| format!("{byte:02x}")));
    }
    escaped.into()
}

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

    /// `<prefix>-<major>:<minor>-<inode of the root>-<what>`, where `what` is the id of a snapshot or one of the above.
    pub(in crate::tree) fn name(&self, what: &str) -> Result<DmName> {
        Ok(DmName::format(format_args!("{}{}", self.prefix, self.suffix(&escape(what))))?)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_in_names() {
        for plain in ["a", "sha256:1", "x=2f", &"f".repeat(72)] {
            assert_eq!(escape(plain), plain);
        }
        assert_eq!(escape("a/b c"), "=a=2fb=20c");
        assert_eq!(escape("=a=2fb"), "==3da=3d2fb");
        assert_eq!(escape("ü"), "==c3=bc");
        assert_eq!(escape(&"f".repeat(73)).len(), 41);
    }

    proptest! {
        #[test]
        fn names_fit_and_differ(ids in proptest::collection::btree_set("[a-f0-9=/ ü]{1,8}|[=a/]{60,100}", 2..20)) {
            let mut names = std::collections::BTreeSet::new();
            for id in &ids {
                let name = escape(id).into_owned();
                prop_assert!(name.len() <= LONGEST);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte)));
                prop_assert!(names.insert(name), "{id:?} has another one's name");
            }
        }
    }
}
