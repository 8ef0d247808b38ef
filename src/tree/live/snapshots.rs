//! The snapshots in use: active, mounted, or in the hands of a call.

use std::collections::HashMap;
use std::sync::Arc;

use crate::tree::SnapshotId;
use crate::tree::live::active::{ActiveCell, ActiveSnapshot, ActiveView};
use crate::tree::live::own_data::OwnData;
use crate::tree::sync::{Guard, Lock, Rank};

/// Snapshots in use. One that is neither active nor in use by a call has no cell.
#[derive(Debug)]
pub(in crate::tree) struct LiveSnapshots {
    cells: Lock<HashMap<SnapshotId, Arc<ActiveCell>>>,
    own_data: Lock<OwnData>,
}

impl Default for LiveSnapshots {
    fn default() -> Self {
        let (cells, own_data) = (HashMap::new(), OwnData::default());
        Self { cells: Lock::new(Rank::LiveSnapshots, cells), own_data: Lock::new(Rank::Leaf, own_data) }
    }
}

impl LiveSnapshots {
    fn cells(&self) -> Guard<'_, HashMap<SnapshotId, Arc<ActiveCell>>> {
        self.cells.lock()
    }

    /// The cell of a snapshot, made if there is none. [`release`](Self::release) gives it back.
    pub(in crate::tree) fn cell(&self, id: &SnapshotId) -> Arc<ActiveCell> {
        self.cells().entry(id.clone()).or_default().clone()
    }

    /// Done with a cell: forget it if it is idle.
    pub(in crate::tree) fn release(&self, id: &SnapshotId, cell: Arc<ActiveCell>) {
        drop(cell);
        let mut cells = self.cells();
        // This is the last reference, and none can be made while the map is locked.
        if cells.get_mut(id).and_then(Arc::get_mut).is_some_and(ActiveCell::is_idle) {
            cells.remove(id);
        }
    }

    /// A snapshot that an earlier manager left active.
    pub(in crate::tree) fn insert(&self, id: SnapshotId, active: ActiveSnapshot) {
        self.cells().insert(id, Arc::new(ActiveCell::new(active)));
    }

    /// What the last call on a snapshot left. Waits for no call.
    pub(in crate::tree) fn view(&self, id: &SnapshotId) -> ActiveView {
        self.cells().get(id).map(|cell| cell.view()).unwrap_or_default()
    }

    /// The same of all in use, by their ids.
    pub(in crate::tree) fn views(&self) -> Vec<(SnapshotId, ActiveView)> {
        self.all().into_iter().map(|(id, cell)| (id, cell.view())).collect()
    }

    /// All cells, by their ids.
    pub(in crate::tree) fn all(&self) -> Vec<(SnapshotId, Arc<ActiveCell>)> {
        let mut all: Vec<_> = self.cells().iter().map(|(id, cell)| (id.clone(), cell.clone())).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// How much data of its own each snapshot has.
    pub(in crate::tree) fn own_data(&self) -> Guard<'_, OwnData> {
        self.own_data.lock()
    }
}
