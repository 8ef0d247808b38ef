use super::*;
use crate::tree::Filesystem;
use crate::tree::state::record::Receiving;
use crate::units::Bytes;

fn add(id: &str, thin_id: u32) -> Record {
    let thin_id = ThinId::new(thin_id).unwrap();
    let snapshot = Snapshot::new(thin_id, None, Bytes::gib(1), FsState::Ready);
    Record::Add { id: SnapshotId::new(id).unwrap(), snapshot }
}

fn id(id: &str) -> SnapshotId {
    SnapshotId::new(id).unwrap()
}

#[test]
fn what_contradicts_the_tree_is_refused() {
    let mut graph = Graph::default();
    graph.apply(&add("a", 1)).unwrap();
    assert_eq!(graph.apply(&add("a", 2)), Err("a second snapshot of that id"));
    assert_eq!(graph.apply(&add("b", 1)), Err("a thin id used twice"));
    assert_eq!(graph.apply(&Record::Deleted { id: id("a") }), Err("deleted without warning"));
    assert_eq!(graph.apply(&Record::Deleting { id: id("b") }), Err("no such snapshot"));
}

#[test]
fn a_record_that_is_refused_changes_nothing() {
    let mut graph = Graph::default();
    let base = |thin_id, fs| Base {
        thin_id: ThinId::new(thin_id).unwrap(),
        size: Bytes::gib(1),
        filesystem: Filesystem::Ext4,
        filesystem_uuid: Uuid::nil(),
        fs,
    };
    graph.apply(&Record::Base(base(0, FsState::Making))).unwrap();
    graph.apply(&add("a", 1)).unwrap();
    let before = graph.clone();
    assert_eq!(graph.apply(&Record::Base(base(1, FsState::Making))), Err("a thin id used twice"));
    for (from, to) in [(1, 0), (0, u32::MAX), (0, 1 << 24), (u32::MAX, u32::MAX)] {
        let window = IdWindow { from, to, in_flight: Vec::new() };
        assert_eq!(graph.apply(&Record::Reserve(window)), Err("no window of thin ids"));
    }
    assert_eq!(graph, before);
    // Made again under the same id, and under another one.
    graph.apply(&Record::Base(base(0, FsState::Making))).unwrap();
    graph.apply(&Record::Base(base(2, FsState::Ready))).unwrap();
    assert!(!graph.uses(ThinId::new(0).unwrap()) && graph.uses(ThinId::new(2).unwrap()));
}

#[test]
fn a_deleted_snapshot_frees_its_ids() {
    let mut graph = Graph::default();
    graph.apply(&add("a", 1)).unwrap();
    graph.apply(&Record::Deleting { id: id("a") }).unwrap();
    assert!(graph.get("a").is_none());
    assert_eq!(graph.apply(&add("a", 1)), Err("a thin id used twice"));
    // The name is free at once, the thin id when the volume is deleted.
    graph.apply(&add("a", 2)).unwrap();
    graph.apply(&Record::Unmade { thin_id: ThinId::new(1).unwrap() }).unwrap();
    graph.apply(&add("b", 1)).unwrap();
}

#[test]
fn a_snapshot_is_sealed_with_an_identity_and_without() {
    let mut graph = Graph::default();
    let sealed = |sealed, time| Record::Sealed { id: id("a"), sealed, time };
    assert_eq!(graph.apply(&sealed(None, None)), Err("no such snapshot"));
    graph.apply(&add("a", 1)).unwrap();
    let before = serde_json::to_string(&graph).unwrap();
    let uuid = Uuid::from_u128(7);
    graph.apply(&sealed(Some(uuid), Some(3))).unwrap();
    let found = |graph: &Graph| graph.get("a").map(|found| (found.sealed, found.seal_time)).unwrap();
    assert_eq!(found(&graph), (Some(uuid), Some(3)));
    let text = serde_json::to_string(&graph).unwrap();
    assert_eq!(found(&serde_json::from_str(&text).unwrap()), (Some(uuid), Some(3)));
    graph.apply(&sealed(None, Some(4))).unwrap();
    assert_eq!(serde_json::to_string(&graph).unwrap(), before);
    graph.apply(&Record::Fs { id: id("a"), fs: FsState::Growing }).unwrap();
    assert_eq!(graph.apply(&sealed(Some(uuid), None)), Err("sealed before its file system is ready"));
}

#[test]
fn a_volume_is_made_until_it_is_published_or_gone() {
    let mut graph = Graph::default();
    let thin_id = ThinId::new(1).unwrap();
    let receive = Receiving { volume: Uuid::from_u128(7), base: None, id: id("a"), offset: Bytes(0) };
    let making = |receive| Record::Making(Making { thin_id, size: Bytes::gib(1), receive });
    let received = Record::Received { thin_id, offset: Bytes::mib(64) };
    graph.apply(&making(None)).unwrap();
    assert_eq!(graph.apply(&making(None)), Err("a thin id used twice"));
    assert_eq!(graph.apply(&received), Err("no such receive"));
    graph.apply(&Record::Unmade { thin_id }).unwrap();
    assert_eq!(graph, Graph::default());
    assert_eq!(graph.apply(&Record::Unmade { thin_id }), Err("no such volume"));

    graph.apply(&making(Some(receive))).unwrap();
    graph.apply(&received).unwrap();
    let text = serde_json::to_string(&graph).unwrap();
    let mut again: Graph = serde_json::from_str(&text).unwrap();
    again.index().unwrap();
    assert_eq!(again, graph);
    let offset = graph.making(thin_id).and_then(|making| making.receive.as_ref()).unwrap().offset;
    assert_eq!(offset, Bytes::mib(64));
    graph.apply(&add("a", 1)).unwrap();
    assert!(graph.making.is_empty());
    assert!(graph.uses(thin_id));
}
