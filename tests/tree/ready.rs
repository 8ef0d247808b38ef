//! Ready snapshots, and the volume that is kept active.

use std::time::Duration;

use dm_thin::kernel::{Access, Kernel};
use dm_thin::tree::{AddOptions, Filesystem, Labels, Lineage, Parent, Removal, RemoveOptions};
use dm_thin::tree::{Error, ReadyStatus};
use dm_thin::tree::{SnapshotId, SnapshotTree};
use dm_thin::units::Bytes;

use crate::rig::{Rig, crash_everywhere};

/// Thin devices of the pool.
fn volumes(rig: &Rig, tree: &SnapshotTree) -> usize {
    rig.kernel.thin_devices(tree.pool().name().to_str().unwrap()).unwrap().len()
}

fn status(tree: &SnapshotTree) -> Vec<ReadyStatus> {
    tree.status().unwrap().ready
}

/// Of each origin: wanted, there, hits and misses.
fn counts(tree: &SnapshotTree) -> Vec<(Option<String>, usize, usize, usize, usize)> {
    let all = status(tree).into_iter();
    all.map(|it| (it.origin.map(|id| id.to_string()), it.wanted, it.count, it.hits, it.misses)).collect()
}

fn sealed(tree: &SnapshotTree, id: &str) {
    tree.add(id, Parent::Base).unwrap();
    tree.seal(id).unwrap();
}

#[test]
fn an_addition_takes_a_ready_snapshot_by_a_rename() {
    let rig = Rig::new();
    let tree = rig.tree();
    sealed(&tree, "image");
    tree.keep_ready(Parent::Snapshot("image"), 2).unwrap();
    tree.keep_ready(Parent::Base, 1).unwrap();
    assert_eq!((tree.list().len(), counts(&tree).len(), status(&tree)[0].oldest), (1, 2, None));
    tree.refill_ready().unwrap();
    assert!(status(&tree).iter().all(|it| it.oldest < Some(Duration::from_secs(60))));
    assert_eq!((volumes(&rig, &tree), tree.list().len(), tree.check().unwrap()), (5, 1, vec![]));

    rig.kernel.clear_log();
    let labels = std::collections::BTreeMap::from([("tenant".to_owned(), "one".to_owned())]);
    let labels = Labels::try_from(labels).unwrap();
    let options = AddOptions::new().labels(labels.clone());
    tree.add_with("a", Parent::Snapshot("image"), &options).unwrap();
    let device = tree.add_activated("b", Parent::Base, &AddOptions::new()).unwrap();
    let calls: Vec<_> = rig.kernel.log().into_iter().map(|call| call.name).collect();
    let ioctls: Vec<_> = calls.iter().filter(|name| name.starts_with("DM_")).collect();
    assert_eq!(ioctls, [&"DM_DEV_RENAME", &"DM_DEV_RENAME"]);

    let (a, b) = (tree.get("a").unwrap(), tree.get("b").unwrap());
    assert_eq!((&a.labels, &a.parent), (&labels, &Lineage::Snapshot(SnapshotId::new("image").unwrap())));
    assert_eq!((b.device, b.parent), (Some(device), Lineage::Base));
    assert!(a.device.unwrap().to_str().unwrap().ends_with("-a"));
    assert_eq!(counts(&tree), [(None, 1, 0, 1, 0), (Some("image".into()), 2, 1, 1, 0)]);
    // Of another size, of an id that is taken, and without one that is ready: they are made, or not, as ever.
    let larger = AddOptions::new().size(Bytes::mib(32));
    tree.add_with("larger", Parent::Snapshot("image"), &larger).unwrap();
    assert!(matches!(tree.add("a", Parent::Snapshot("image")), Err(Error::SnapshotExists { .. })));
    assert!(tree.get("larger").unwrap().device.is_none());
    let made = tree.add_activated("made", Parent::Base, &AddOptions::new()).unwrap();
    assert_eq!(tree.get("made").unwrap().device, Some(made));
    assert_eq!(counts(&tree), [(None, 1, 0, 1, 1), (Some("image".into()), 2, 1, 1, 1)]);
    assert_eq!(tree.check().unwrap(), []);
    tree.refill_ready().unwrap();
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn ready_snapshots_do_not_outlive_their_manager_but_the_setting_does() {
    let rig = Rig::new();
    let tree = rig.tree();
    sealed(&tree, "image");
    tree.keep_ready(Parent::Snapshot("image"), 2).unwrap();
    tree.refill_ready().unwrap();
    tree.rename("image", "golden").unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!((volumes(&rig, &tree), counts(&tree)), (2, vec![(Some("golden".into()), 2, 0, 0, 0)]));
    tree.refill_ready().unwrap();
    assert_eq!(volumes(&rig, &tree), 4);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    drop(tree);
    // Deleted by the close; the thread makes them again.
    let tree = rig.open(rig.options().background_threads(true).keep_one_active(true)).unwrap();
    while status(&tree)[0].count < 2 || tree.status().unwrap().kept_active.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(volumes(&rig, &tree), 5);
    tree.add("a", Parent::Snapshot("golden")).unwrap();
    while status(&tree)[0].count < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn what_changes_has_no_ready_snapshots() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    assert!(matches!(tree.keep_ready(Parent::Snapshot("a"), 1), Err(Error::NotSealed { id }) if id == "a"));
    assert!(matches!(tree.keep_ready(Parent::Snapshot("b"), 1), Err(Error::UnknownSnapshot { .. })));
    for end in ["unseal", "remove", "none", "fewer"] {
        tree.seal("a").unwrap();
        tree.keep_ready(Parent::Snapshot("a"), 3).unwrap();
        tree.refill_ready().unwrap();
        let there = volumes(&rig, &tree);
        match end {
            "unseal" => tree.unseal("a").unwrap(),
            "remove" => {
                assert_eq!(tree.remove_with("a", &RemoveOptions::new()).unwrap(), Removal::Removed);
                tree.add("a", Parent::Base).unwrap();
            }
            "none" => tree.keep_ready(Parent::Snapshot("a"), 0).unwrap(),
            _ => tree.keep_ready(Parent::Snapshot("a"), 1).unwrap(),
        }
        assert_eq!(tree.reap().unwrap(), 0);
        let left = usize::from(end == "fewer");
        assert_eq!((volumes(&rig, &tree), status(&tree).len()), (there - 3 + left, left), "{end}");
        assert_eq!(tree.check().unwrap(), [], "{end}");
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_crash_leaves_no_ready_snapshot() {
    let options = |tree: &SnapshotTree| {
        sealed(tree, "image");
        tree.keep_ready(Parent::Snapshot("image"), 1).unwrap();
        tree.refill_ready().unwrap();
        tree.keep_ready(Parent::Snapshot("image"), 2).unwrap();
    };
    let work = |tree: &SnapshotTree| {
        tree.add("a", Parent::Snapshot("image"))?;
        tree.refill_ready()?;
        tree.add_activated("b", Parent::Snapshot("image"), &AddOptions::new())?;
        tree.keep_ready(Parent::Base, 1)?;
        tree.unseal("image").unwrap_err();
        tree.refill_ready()?;
        tree.close()
    };
    crash_everywhere(options, work, |rig, tree| {
        let snapshots = tree.list().len();
        assert_eq!((volumes(rig, tree), tree.check().unwrap()), (1 + snapshots, vec![]));
        assert!(status(tree).iter().any(|it| it.origin.is_some() && it.wanted == 2 && it.count == 0));
        tree.refill_ready().unwrap();
        for id in ["a", "b"] {
            if !tree.contains(id) {
                tree.add(id, Parent::Snapshot("image")).unwrap();
            }
            tree.activate(id).unwrap();
        }
        assert_eq!(tree.check().unwrap(), []);
    });
}

#[test]
fn a_ready_snapshot_was_mounted_once() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().filesystem(Filesystem::Ext4)).unwrap();
    tree.keep_ready(Parent::Base, 1).unwrap();
    rig.kernel.clear_log();
    tree.refill_ready().unwrap();
    let calls = |name: &str| rig.kernel.log().into_iter().filter(|call| call.name == name).count();
    assert_eq!((calls("mount"), calls("umount")), (1, 1));
    rig.kernel.clear_log();
    let target = rig.directory.path().join("mnt");
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", &target).unwrap();
    assert_eq!((calls("mount"), calls("DM_DEV_CREATE")), (1, 0));
    tree.unmount("a").unwrap();
    assert_eq!((tree.get("a").unwrap().device, tree.check().unwrap()), (None, vec![]));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn threads_get_different_ready_snapshots() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().background_threads(true)).unwrap();
    tree.keep_ready(Parent::Base, 4).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let tree = &tree;
            scope.spawn(move || {
                for n in 0..20 {
                    let id = format!("{thread}-{n}");
                    let device = tree.add_activated(&id, Parent::Base, &AddOptions::new()).unwrap();
                    assert_eq!(tree.get(&id).unwrap().device, Some(device));
                    if n % 3 == 0 {
                        tree.remove(&id).unwrap();
                    }
                }
            });
        }
    });
    let mut thin_ids: Vec<_> = tree.list().into_iter().map(|snapshot| snapshot.thin_id).collect();
    thin_ids.sort();
    thin_ids.dedup();
    assert_eq!(thin_ids.len(), tree.list().len());
    assert!(status(&tree)[0].hits > 0);
    tree.reap().unwrap();
    assert_eq!(tree.check().unwrap(), []);
    for snapshot in tree.list() {
        tree.deactivate(snapshot.id.as_str()).unwrap();
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn ready_snapshots_that_cannot_be_made_hold_nothing_up() {
    let rig = Rig::new();
    let options = rig.options().background_threads(true).filesystem(Filesystem::Ext4);
    let tree = rig.open(options).unwrap();
    tree.add("broken", Parent::Base).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("broken").unwrap();
    let file = rig.kernel.open(&device, Access::READ_WRITE).unwrap();
    // No file system: it cannot be mounted.
    rig.kernel.write_at(&file, 0, &[0; 4096]).unwrap();
    drop(file);
    tree.deactivate("broken").unwrap();
    tree.seal("broken").unwrap();
    tree.keep_ready(Parent::Snapshot("broken"), 1).unwrap();
    tree.remove("a").unwrap();
    while tree.deferred() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(counts(&tree), [(Some("broken".into()), 1, 0, 0, 0)]);
    assert!(tree.refill_ready().is_err());
    assert_eq!((tree.reap().unwrap(), tree.check().unwrap()), (0, vec![]));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}
