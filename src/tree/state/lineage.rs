//! Who descends from whom. The pool does not care: each snapshot is independent of all others.

use serde::Serialize;

use crate::tree::SnapshotId;
use crate::tree::state::graph::Graph;
use crate::tree::state::record::Snapshot;

/// What a snapshot was made from.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lineage {
    /// The base.
    Base,
    /// This snapshot.
    Snapshot(SnapshotId),
    /// A snapshot that was removed since. Another one may have its id now.
    Removed(SnapshotId),
}

/// A snapshot's place in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Node {
    /// The snapshot.
    pub id: SnapshotId,
    /// What it was made from.
    pub parent: Lineage,
    /// How many of its ancestors are snapshots that are there.
    pub depth: usize,
}

impl Snapshot {
    pub(in crate::tree) fn lineage(&self) -> Lineage {
        match self.parent.clone() {
            None => Lineage::Base,
            Some(parent) if self.parent_gone => Lineage::Removed(parent),
            Some(parent) => Lineage::Snapshot(parent),
        }
    }
}

impl Graph {
    /// What a snapshot was made from.
    pub(in crate::tree) fn parent(&self, id: &str) -> Option<Lineage> {
        self.get(id).map(Snapshot::lineage)
    }

    /// From the parent up.
    pub(in crate::tree) fn ancestors(&self, id: &str) -> Vec<SnapshotId> {
        let next = |id: &str| match self.parent(id) {
            Some(Lineage::Snapshot(parent)) => Some(parent),
            _ => None,
        };
        std::iter::successors(next(id), |id| next(id.as_str())).collect()
    }

    /// The snapshots, each after its parent and before its next sibling: `from` and its descendants, or
    /// all. Siblings by their ids; those of the base first, then those whose parent was removed.
    pub(in crate::tree) fn walk(&self, from: Option<&SnapshotId>) -> Vec<Node> {
        let mut places = Vec::new();
        let mut stack: Vec<(SnapshotId, usize)> = match from {
            Some(id) => vec![(id.clone(), self.ancestors(id.as_str()).len())],
            None => {
                let roots = |gone: bool| {
                    let all = self.snapshots.iter();
                    all.filter(move |(_, s)| if gone { s.parent_gone } else { s.parent.is_none() })
                };
                roots(false).chain(roots(true)).map(|(id, _)| (id.clone(), 0)).collect()
            }
        };
        stack.reverse();
        while let Some((id, depth)) = stack.pop() {
            let Some(parent) = self.parent(id.as_str()) else { continue };
            stack.extend(self.children(&id).into_iter().rev().map(|child| (child, depth + 1)));
            places.push(Node { id, parent, depth });
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::thin::ThinId;
    use crate::tree::state::record::{FsState, Record};
    use crate::units::Bytes;

    fn id(id: &str) -> SnapshotId {
        SnapshotId::new(id).unwrap()
    }

    fn add(graph: &mut Graph, name: &str, parent: Option<&str>) {
        let thin_id = (0..).map(|n| ThinId::new(n).unwrap()).find(|id| !graph.uses(*id)).unwrap();
        let snapshot = Snapshot::new(thin_id, parent.map(id), Bytes::gib(1), FsState::Ready);
        graph.apply(&Record::Add { id: id(name), snapshot }).unwrap();
    }

    fn remove(graph: &mut Graph, name: &str) {
        graph.apply(&Record::Deleting { id: id(name) }).unwrap();
    }

    fn shape(graph: &Graph) -> Vec<String> {
        let lines = graph.walk(None).into_iter();
        lines.map(|place| format!("{}{}", "-".repeat(place.depth), place.id)).collect()
    }

    fn family() -> Graph {
        let mut graph = Graph::default();
        for (name, parent) in
            [("b", None), ("a", None), ("a2", Some("a")), ("a1", Some("a")), ("a1x", Some("a1"))]
        {
            add(&mut graph, name, parent);
        }
        graph
    }

    /// What was written can be read as what it was.
    fn reread(graph: &Graph) -> Graph {
        let mut read: Graph = serde_json::from_str(&serde_json::to_string(graph).unwrap()).unwrap();
        read.index().unwrap();
        assert_eq!(&read, graph);
        read
    }

    #[test]
    fn a_walk_is_in_order() {
        let graph = family();
        assert_eq!(shape(&graph), ["a", "-a1", "--a1x", "-a2", "b"]);
        assert_eq!(graph.ancestors("a1x"), [id("a1"), id("a")]);
        assert_eq!(graph.children(&id("a")), [id("a1"), id("a2")]);
        assert_eq!(graph.walk(Some(&id("a1")))[1].depth, 2);
        reread(&graph);
    }

    #[test]
    fn children_of_a_removed_snapshot_are_roots_and_stay_so() {
        let mut graph = family();
        remove(&mut graph, "a1");
        assert_eq!(shape(&graph), ["a", "-a2", "b", "a1x"]);
        assert_eq!(graph.parent("a1x"), Some(Lineage::Removed(id("a1"))));
        // A new snapshot with an id that was used before has no children yet.
        add(&mut graph, "a1", Some("a1x"));
        assert_eq!(shape(&graph), ["a", "-a2", "b", "a1x", "-a1"]);
        reread(&graph);
    }

    #[test]
    fn a_child_recorded_after_its_parent_went() {
        let mut graph = family();
        graph.apply(&Record::Deleting { id: id("b") }).unwrap();
        add(&mut graph, "late", Some("b"));
        assert_eq!(graph.parent("late"), Some(Lineage::Removed(id("b"))));
        reread(&graph);
    }

    #[test]
    fn a_renamed_snapshot_keeps_its_family() {
        let mut graph = family();
        graph.apply(&Record::Renamed { id: id("a1"), to: id("z") }).unwrap();
        assert_eq!(shape(&graph), ["a", "-a2", "-z", "--a1x", "b"]);
        assert_eq!(graph.parent("a1x"), Some(Lineage::Snapshot(id("z"))));
        let taken = graph.apply(&Record::Renamed { id: id("a"), to: id("b") });
        assert_eq!(taken, Err("a second snapshot of that id"));
        reread(&graph);
        remove(&mut graph, "z");
        assert_eq!(graph.parent("a1x"), Some(Lineage::Removed(id("z"))));
    }

    #[test]
    fn what_no_state_can_hold_is_refused() {
        let refused = |parent: &str| {
            let mut graph = family();
            Arc::make_mut(graph.snapshots.get_mut("a").unwrap()).parent = Some(id(parent));
            graph.index().unwrap_err()
        };
        let circle = "a snapshot that descends from itself";
        assert_eq!(refused("a1x"), circle);
        assert_eq!(refused("a"), circle);
        let absent = "a parent that is not there";
        assert_eq!(refused("x"), absent);
    }

    /// A change on few ids, so that most of them meet.
    fn any_change() -> impl Strategy<Value = Record> {
        let any_id = || (0..6u8).prop_map(|n| id(&n.to_string()));
        let add = (any_id(), proptest::option::of(any_id()), 0..8u32).prop_map(|(id, parent, thin_id)| {
            let thin_id = ThinId::new(thin_id).unwrap();
            Record::Add { id, snapshot: Snapshot::new(thin_id, parent, Bytes::gib(1), FsState::Ready) }
        });
        prop_oneof![
            3 => add,
            1 => any_id().prop_map(|id| Record::Deleting { id }),
            1 => any_id().prop_map(|id| Record::Deleted { id }),
            1 => (0..8u32).prop_map(|id| Record::Unmade { thin_id: ThinId::new(id).unwrap() }),
            1 => (any_id(), any_id()).prop_map(|(id, to)| Record::Renamed { id, to }),
        ]
    }

    proptest! {
        /// Every state in between can be read again and has no cycle: reading checks that.
        #[test]
        fn no_changes_close_a_circle(changes in proptest::collection::vec(any_change(), 0..60)) {
            let mut graph = Graph::default();
            for change in changes {
                let before = graph.clone();
                if graph.apply(&change).is_err() {
                    prop_assert_eq!(&graph, &before, "a refused change changes nothing");
                }
                reread(&graph);
                graph.snapshots.keys().for_each(|id| drop(graph.ancestors(id.as_str())));
            }
        }
    }

    #[test]
    fn a_chain_of_a_hundred_thousand() {
        let mut graph = Graph::default();
        for number in 0..100_000u32 {
            let parent = number.checked_sub(1).map(|number| id(&number.to_string()));
            let thin_id = ThinId::new(number).unwrap();
            let snapshot = Snapshot::new(thin_id, parent, Bytes::gib(1), FsState::Ready);
            graph.apply(&Record::Add { id: id(&number.to_string()), snapshot }).unwrap();
        }
        assert_eq!(graph.walk(None).last().unwrap().depth, 99_999);
        assert_eq!(graph.ancestors("99999").len(), 99_999);
        reread(&graph);
    }
}
