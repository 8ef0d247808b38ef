//! Which thin devices a pool has: told by `thin_ls`, or asked for one by one.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::SnapshotTree;
use crate::Result;
use crate::thin::{Origin, ThinId};

impl SnapshotTree {
    /// The thin devices of the pool. With `thin_ls` (thin-provisioning-tools) these are all; without, or with the metadata
    /// held by somebody else, those with ids that this tree can have used.
    pub(super) fn volumes_in_pool(&self) -> Result<BTreeSet<ThinId>> {
        if let Ok(ids) = self.pool.thin_ids() {
            return Ok(ids.into_iter().collect());
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
}
