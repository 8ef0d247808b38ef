//! Whose root it is: one manager's, whatever is done to its names.

use std::fs;
use std::process::Command;

use dm_thin::Error;
use dm_thin::tree::{Parent, SnapshotTree};

use crate::rig::Rig;

#[test]
fn a_tree_stays_locked_when_the_files_in_its_root_are_deleted() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    fs::remove_file(rig.root().join("lock")).unwrap();
    let error = rig.open(rig.options()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    tree.close().unwrap();
}

#[test]
fn a_tree_goes_with_its_root_when_that_is_renamed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let moved = rig.directory.path().join("moved");
    fs::rename(rig.root(), &moved).unwrap();
    fs::create_dir(rig.root()).unwrap();
    tree.add("b", Parent::Base).unwrap();
    tree.grow_pool(dm_thin::units::Bytes::mib(128)).unwrap();
    tree.close().unwrap();
    drop(tree);
    assert_eq!(fs::read_dir(rig.root()).unwrap().count(), 0);
    let tree = SnapshotTree::open(&moved, rig.options()).unwrap();
    assert!(tree.contains("a") && tree.contains("b"));
    tree.close().unwrap();
}

#[test]
fn a_copied_root_does_not_get_the_pool_of_the_one_it_was_copied_from() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let copy = rig.directory.path().join("copy");
    assert!(Command::new("cp").arg("-a").args([&rig.root(), &copy]).status().unwrap().success());
    tree.add("b", Parent::Base).unwrap();
    let before = rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap();
    let error = SnapshotTree::open(&copy, rig.options()).unwrap_err();
    assert!(matches!(error, Error::OtherRoot { .. } | Error::Locked { .. }), "{error}");
    assert_eq!(rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap(), before);
    drop(tree);
    let error = SnapshotTree::open(&copy, rig.options()).unwrap_err();
    assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    let tree = rig.tree();
    assert!(tree.contains("b"));
    tree.close().unwrap();
}
