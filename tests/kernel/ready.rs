//! What a tree's threads do on a real kernel: ready snapshots, removals, the volume that is kept active.

use std::fs;
use std::time::{Duration, Instant};

use dm_thin::tree::{AddOptions, InitLayer, Parent, Removal, RemoveOptions, SnapshotTree};

use crate::bench::{Bench, small};

fn wait_until(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn additions_take_ready_snapshots() {
    let bench = Bench::new();
    let options = || {
        let layer = InitLayer::new().file("etc/hostname");
        small().background_threads(true).keep_one_active(true).init_layer(layer)
    };
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    let target = bench.path().join("mounted");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    fs::write(target.join("text"), "of the image").unwrap();
    tree.unmount("image").unwrap();
    tree.seal("image").unwrap();
    let image = Parent::Snapshot("image");
    tree.keep_ready(image, 2).unwrap();
    let is_full = |tree: &SnapshotTree| tree.status().unwrap().ready[0].count == 2;
    wait_until(|| is_full(&tree) && tree.status().unwrap().kept_active.is_some());
    for id in ["one", "two"] {
        let device = tree.add_activated(id, image, &AddOptions::new()).unwrap();
        assert!(device.exists() && device.to_str().unwrap().ends_with(id));
        tree.mount(id, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("text")).unwrap(), "of the image");
        assert!(target.join("etc/hostname").exists());
        fs::write(target.join("text"), id).unwrap();
        tree.unmount(id).unwrap();
        tree.deactivate(id).unwrap();
    }
    assert_eq!(tree.status().unwrap().ready[0].hits, 2);
    wait_until(|| is_full(&tree));
    assert_eq!(tree.check().unwrap(), []);
    // Killed: the next one deletes those of this one, and makes its own.
    drop(tree);
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    wait_until(|| is_full(&tree));
    tree.add("three", image).unwrap();
    tree.mount("three", &target).unwrap();
    assert_eq!(fs::read_to_string(target.join("text")).unwrap(), "of the image");
    tree.unmount("three").unwrap();
    let removed = tree.remove_with("three", &RemoveOptions::new()).unwrap();
    assert_eq!(removed, Removal::Deferred);
    tree.add("three", Parent::Snapshot("one")).unwrap();
    wait_until(|| tree.deferred() == 0);
    assert_eq!(tree.check().unwrap(), []);
    for snapshot in tree.list() {
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    tree.close().unwrap();
    drop(tree);
    // Nothing is left in the pool but the base.
    let tree = SnapshotTree::open(bench.root(), small()).unwrap();
    assert_eq!(tree.pool().thin_ids().unwrap().len(), 1);
    assert!(tree.status().unwrap().ready.is_empty());
    tree.close().unwrap();
}
