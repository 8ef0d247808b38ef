//! Looking at what is recorded.

use uuid::Uuid;

use super::Store;
use crate::thin::ThinId;
use crate::tree::Filesystem;
use crate::tree::state::graph::Graph;
use crate::tree::state::journal::State;
use crate::tree::state::recorded::Recorded;

impl Store {
    /// The tree's identity.
    pub(in crate::tree) fn tree(&self) -> Uuid {
        self.tree
    }

    /// The kind of file system of the tree.
    pub(in crate::tree) fn filesystem(&self) -> Filesystem {
        self.lock().state.filesystem
    }

    /// Whether the pool is adopted: other programs may use it.
    pub(in crate::tree) fn is_shared(&self) -> bool {
        self.lock().state.pool.source.is_shared()
    }

    /// Whether an open makes the base. In a pool of others that is left to the first snapshot.
    pub(in crate::tree) fn awaits_base(&self) -> bool {
        self.read_state(|State { graph, pool, .. }| {
            graph.made_base().is_none() && (graph.base.is_some() || !pool.source.is_shared())
        })
    }

    /// Looks at the tree.
    pub(in crate::tree) fn read<T>(&self, look: impl FnOnce(&Graph) -> T) -> T {
        look(&self.lock().state.graph)
    }

    /// Looks at everything.
    pub(in crate::tree) fn read_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Volumes under construction whose writer is gone: left by a failed undo.
    pub(in crate::tree) fn abandoned(&self) -> Vec<ThinId> {
        self.lock().abandoned().collect()
    }

    /// Looks at the tree and at what calls are making.
    pub(in crate::tree) fn recorded<T>(&self, look: impl FnOnce(&Recorded<'_>) -> T) -> T {
        let inner = self.lock();
        look(&Recorded::new(&inner.state.graph, &inner.pending_ids))
    }
}
