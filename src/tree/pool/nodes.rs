//! Nodes of a tree's devices without the device: left by a process that died in between.

use std::os::unix::ffi::OsStrExt;

use crate::dm::DmName;
use crate::tree::pool::tree_pool::TreePool;
use crate::tree::{Error, Result};

impl TreePool {
    /// Removes stale nodes.
    pub(in crate::tree) fn sweep_nodes(&self) -> Result<()> {
        Ok(self.stale_nodes()?.iter().try_for_each(|name| self.dm().remove_node(name))?)
    }

    /// Finds stale nodes.
    pub(in crate::tree) fn stale_nodes(&self) -> Result<Vec<DmName>> {
        let prefixes = [self.names.name("")?, self.names.unpublished("")?];
        let names = || {
            self.kernel().mapper_node_names().map_err(|errno| Error::Io {
                action: "list",
                path: "/dev/mapper".into(),
                source: errno.into(),
            })
        };
        let mut stale = Vec::new();
        for name in names()? {
            // Not a valid DM name, so not ours: skip.
            let Ok(name) = DmName::from_bytes(name.as_bytes()) else { continue };
            if !prefixes.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
                continue;
            }
            if self.dm().find(&name)?.is_none() {
                stale.push(name);
            }
        }
        if !stale.is_empty() {
            // A device that was deactivated since the nodes were listed has taken its node with it.
            let left = names()?;
            stale.retain(|name| left.iter().any(|left| left.as_bytes() == name.as_bytes()));
        }
        Ok(stale)
    }
}
