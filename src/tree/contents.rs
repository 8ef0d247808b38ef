//! Which thin devices a pool has: told by `thin_ls`, or asked for one by one.

use std::collections::BTreeSet;
use std::process::Command;

use nix::errno::Errno;

use super::{SnapshotTree, fs};
use crate::Result;
use crate::thin::{Origin, ThinId};

impl SnapshotTree {
    /// The thin devices of the pool. With `thin_ls` (thin-provisioning-tools) these are all; without, those with
    /// ids that this tree can have used.
    pub(super) fn volumes_in_pool(&self) -> Result<BTreeSet<ThinId>> {
        if let Some(ids) = self.listed() {
            return Ok(ids);
        }
        let mut asked: BTreeSet<ThinId> = self.store.read(|graph| {
            let base = graph.base.as_ref().map(|base| base.thin_id);
            graph
                .snapshots
                .values()
                .map(|snapshot| snapshot.thin_id)
                .chain(base)
                .chain(graph.ids.ids())
                .collect()
        });
        // Ids are handed out from 0 up.
        asked.extend((0..self.store.read(|graph| graph.ids.from)).filter_map(|id| ThinId::new(id).ok()));
        let mut there = BTreeSet::new();
        for id in asked {
            if self.is_in_pool(id)? {
                there.insert(id);
            }
        }
        Ok(there)
    }

    /// Ask for a snapshot of a thin device under its own id. The kernel looks at the id first: EEXIST if it is
    /// there. If not, there is no such origin: ENODATA. Nothing changes.
    fn is_in_pool(&self, id: ThinId) -> Result<bool> {
        match self.pool.create_snap(id, &Origin::Inactive(id)) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENODATA) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Through a reserved snapshot of the metadata, which only one at a time can hold.
    fn listed(&self) -> Option<BTreeSet<ThinId>> {
        let program = fs::find("thin_ls", "thin-provisioning-tools").ok()?;
        let (table, _) = self.pool.table().ok()?;
        self.pool.reserve_metadata_snap().ok()?;
        let device = super::status::node(table.metadata);
        let arguments = ["--metadata-snap", "--no-headers", "--format", "DEV"];
        let output = Command::new(program).env("LC_ALL", "C").args(arguments).arg(device).output();
        let released = self.pool.release_metadata_snap();
        let output = output.ok().filter(|output| output.status.success() && released.is_ok())?;
        let lines = std::str::from_utf8(&output.stdout).ok()?.lines();
        lines.map(|line| ThinId::new(line.trim().parse().ok()?).ok()).collect()
    }
}
