//! The tree together with the ids of what calls are making.

use std::collections::BTreeSet;

use crate::thin::ThinId;
use crate::tree::SnapshotId;
use crate::tree::state::graph::Graph;

/// The tree, and what calls are making.
#[derive(Debug)]
pub(in crate::tree) struct Recorded<'a> {
    pub(in crate::tree) graph: &'a Graph,
    pending_ids: &'a BTreeSet<ThinId>,
}

impl<'a> Recorded<'a> {
    pub(super) fn new(graph: &'a Graph, pending_ids: &'a BTreeSet<ThinId>) -> Self {
        Self { graph, pending_ids }
    }

    /// A snapshot that was made from this one, or is being made.
    pub(in crate::tree) fn any_child(&self, id: &SnapshotId) -> Option<SnapshotId> {
        let snapshots = &self.graph.snapshots;
        let made = self.graph.children(id).into_iter().find(|child| snapshots.contains_key(child));
        let mut adding = self.graph.adding.iter();
        // What a failed addition left is no child.
        let child =
            adding.find(|(_, child)| child.is_child_of(id) && self.pending_ids.contains(&child.thin_id));
        made.or_else(|| child.map(|(id, _)| id.clone()))
    }
}
