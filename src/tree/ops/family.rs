//! Parents, children, and walks over the tree.

use crate::tree::state::graph::Graph;
use crate::tree::state::recorded::Recorded;
use crate::tree::{Error, Result};
use crate::tree::{Lineage, Node};
use crate::tree::{SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// What a snapshot was made from.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; so for all of these.
    pub fn parent(&self, id: impl AsRef<str>) -> Result<Lineage> {
        let id = id.as_ref();
        self.lineage(id, |graph, id| graph.parent(id.as_str()))
            .and_then(|p| p.ok_or_else(|| crate::tree::error::unknown(id)))
    }

    /// The snapshots that were made from this one, by their ids.
    pub fn children(&self, id: impl AsRef<str>) -> Result<Vec<SnapshotId>> {
        let id = id.as_ref();
        self.lineage(id, |graph, id| {
            let mut children = graph.children(id);
            children.retain(|child| graph.get(child.as_str()).is_some());
            children
        })
    }

    /// The snapshot's parent, the parent's parent, and so on, up to the base or to one that was removed.
    pub fn ancestors(&self, id: impl AsRef<str>) -> Result<Vec<SnapshotId>> {
        let id = id.as_ref();
        self.lineage(id, |graph, id| graph.ancestors(id.as_str()))
    }

    /// How many ancestors it has.
    pub fn depth(&self, id: impl AsRef<str>) -> Result<usize> {
        let id = id.as_ref();
        self.ancestors(id).map(|ancestors| ancestors.len())
    }

    /// All snapshots, each after its parent and before its next sibling. Siblings come by their ids; those of
    /// the base first, then those whose parent was removed.
    pub fn walk(&self) -> Vec<Node> {
        self.store.read(|graph| graph.walk(None))
    }

    /// The same for a snapshot and its descendants.
    pub fn walk_from(&self, id: impl AsRef<str>) -> Result<Vec<Node>> {
        let id = id.as_ref();
        self.lineage(id, |graph, id| graph.walk(Some(id)))
    }

    fn lineage<T>(&self, id: &str, look: impl FnOnce(&Graph, &SnapshotId) -> T) -> Result<T> {
        self.check_open()?;
        self.store
            .read(|graph| {
                let (known, _) = graph.snapshots.get_key_value(id)?;
                Some(look(graph, known))
            })
            .ok_or_else(|| crate::tree::error::unknown(id))
    }
}

/// # Errors
/// [`Error::HasChildren`], also for a child that is still being added.
pub(in crate::tree) fn check_childless(recorded: &Recorded<'_>, id: &str) -> Result<()> {
    let known = recorded.graph.snapshots.get_key_value(id);
    let (known, _) = known.ok_or_else(|| crate::tree::error::unknown(id))?;
    match recorded.any_child(known) {
        Some(child) => Err(Error::HasChildren { id: id.to_owned(), child: child.to_string() }),
        None => Ok(()),
    }
}
