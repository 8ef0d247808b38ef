//! Whose pool it is, and of what time.

use std::fs;
use std::path::{Path, PathBuf};

use dm_thin::kernel::DeviceNumber;
use dm_thin::thin::{Origin, ThinId, TransactionId};
use dm_thin::tree::{Filesystem, Finding, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::{Bytes, Sectors};
use dm_thin::{Error, StateAge};

use crate::rig::Rig;

/// The files of the state, without the pool.
const STATE: [&str; 3] = ["state.json", "journal.jsonl", "lock"];

fn save(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    STATE.iter().map(|name| root.join(name)).map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn restore(saved: &[(PathBuf, Vec<u8>)]) {
    saved.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
}

fn names(tree: &SnapshotTree) -> Vec<String> {
    tree.list().into_iter().map(|info| info.id.to_string()).collect()
}

fn transaction_id(tree: &SnapshotTree) -> TransactionId {
    match tree.pool().status().unwrap() {
        dm_thin::thin::PoolStatus::Usage(usage) => usage.transaction_id,
        status => panic!("{status}"),
    }
}

#[test]
fn the_generation_rises_at_each_open_and_close_and_with_each_window() {
    let rig = Rig::new();
    let tree = rig.tree();
    let first = transaction_id(&tree);
    assert_ne!(first.0 >> 32, 0, "a nonce");
    (0..200).for_each(|n| tree.add(&format!("s{n}"), Parent::Base).unwrap());
    let windows = transaction_id(&tree);
    assert_eq!(windows.0 - first.0, 3, "200 ids are in four windows");
    tree.close().unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!(transaction_id(&tree).0 - windows.0, 2);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn a_state_from_a_backup_is_refused_and_nothing_is_deleted() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("old", Parent::Base).unwrap();
    let saved = save(&rig.root());
    tree.add("new", Parent::Base).unwrap();
    tree.close().unwrap();
    drop(tree);
    restore(&saved);
    let error = rig.open(rig.options()).unwrap_err();
    let evidence = |error: &Error| match error {
        Error::StateOlderThanPool { evidence } => *evidence,
        error => panic!("{error}"),
    };
    assert!(matches!(evidence(&error), StateAge::Generation { .. }), "{error}");
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());

    let tree = rig.open(rig.options().accept_older_state(true)).unwrap();
    assert_eq!(names(&tree), ["old"]);
    let [Finding::Orphan { thin_id }] = tree.check().unwrap()[..] else { panic!("{:?}", tree.check()) };
    tree.close().unwrap();
    drop(tree);
    // Accepted once, the tree goes on where the pool is; the orphan stays until it is repaired.
    let tree = rig.tree();
    assert_eq!(tree.check().unwrap(), [Finding::Orphan { thin_id }]);
    (0..70).for_each(|n| tree.add(&format!("s{n}"), Parent::Base).unwrap());
    assert!(tree.list().iter().all(|info| info.thin_id != thin_id));
    assert_eq!(tree.repair().unwrap().left, []);
    assert!(!tree.pool().thin_ids().unwrap().contains(&thin_id));
    tree.close().unwrap();
}

/// The generation is the same: what the volumes hold tells that they were handed out.
#[test]
fn a_backup_of_the_same_generation_is_refused_once_a_later_snapshot_was_written() {
    let rig = Rig::new();
    let tree = rig.tree();
    let saved = save(&rig.root());
    tree.add("new", Parent::Base).unwrap();
    let device = tree.activate("new").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..3).unwrap();
    let thin_id = tree.get("new").unwrap().thin_id;
    rig.kernel.commit();
    drop(tree);
    restore(&saved);
    for _ in 0..2 {
        let error = rig.open(rig.options()).unwrap_err();
        assert!(
            matches!(error, Error::StateOlderThanPool { evidence: StateAge::UnknownVolume { thin_id: found } } if found == thin_id),
            "{error}"
        );
    }
    assert!(
        device
            .file_name()
            .is_some_and(|name| rig.devices().iter().any(|it| name.to_str().unwrap().ends_with(it)))
    );
}

#[test]
fn a_volume_without_a_record_is_kept_if_its_origin_has_changed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let write = |blocks| rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), blocks).unwrap();
    write(0..3);
    // What adds that were never recorded leave: one of an origin that stays as it was, one of another.
    let origin = tree.get("a").unwrap().thin_id;
    let [same, other] = [40, 41].map(|id| ThinId::new(id).unwrap());
    tree.pool().create_snap(other, &Origin::Inactive(origin)).unwrap();
    write(1..2);
    tree.pool().create_snap(same, &Origin::Inactive(origin)).unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!(tree.check().unwrap(), [Finding::Orphan { thin_id: other }]);
    assert!(!tree.pool().thin_ids().unwrap().contains(&same));
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

fn disk(rig: &Rig, name: &str, minor: u32) -> PathBuf {
    let path = PathBuf::from("/dev").join(name);
    let size = if name.contains("meta") { Bytes::mib(4) } else { Bytes::mib(64) };
    rig.kernel.set_disk(&path, DeviceNumber { major: 8, minor }, Sectors(size.0 >> 9)).unwrap();
    path
}

#[test]
fn another_trees_devices_are_refused_untouched() {
    let rig = Rig::new();
    let options = |names: [PathBuf; 2]| {
        let [data, metadata] = names;
        let source = PoolSource::Devices { data, metadata };
        let small = Options::new().base_size(Bytes::mib(16)).filesystem(Filesystem::None).pool_source(source);
        small.kernel(rig.kernel.clone()).udev(dm_thin::dm::UdevPolicy::None)
    };
    let [a, b] = ["a", "b"].map(|name| rig.directory.path().join(name));
    let paths = [["sda", "sda-meta"], ["sdb", "sdb-meta"]];
    let minors = |swapped: bool| if swapped { [[2, 3], [0, 1]] } else { [[0, 1], [2, 3]] };
    let set = |swapped: bool| {
        let mut found = Vec::new();
        for (names, minors) in paths.iter().zip(minors(swapped)) {
            found.push([disk(&rig, names[0], minors[0]), disk(&rig, names[1], minors[1])]);
        }
        found
    };
    let found = set(false);
    for (root, devices) in [(&a, &found[0]), (&b, &found[1])] {
        let tree = SnapshotTree::open(root, options(devices.clone())).unwrap();
        (0..5).for_each(|n| tree.add(&format!("s{n}"), Parent::Base).unwrap());
        tree.close().unwrap();
    }
    // After a restart the names are exchanged.
    let found = set(true);
    for (root, devices) in [(&a, &found[0]), (&b, &found[1])] {
        let error = SnapshotTree::open(root, options(devices.clone())).unwrap_err();
        assert!(matches!(error, Error::ForeignPool { .. }), "{error}");
    }
    let found = set(false);
    for (root, devices) in [(&a, &found[0]), (&b, &found[1])] {
        let tree = SnapshotTree::open(root, options(devices.clone())).unwrap();
        assert_eq!((names(&tree).len(), tree.check().unwrap()), (5, vec![]));
        tree.close().unwrap();
    }
}
