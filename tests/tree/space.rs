//! No snapshot is made when the pool has too little space.

use dm_thin::Error;
use dm_thin::thin::MinFree;
use dm_thin::tree::{Options, Parent, SnapshotTree};

use crate::rig::Rig;

/// A tree whose pool has only `left` of its 1024 blocks.
fn filled(rig: &Rig, options: Options, left: u64) -> SnapshotTree {
    let tree = rig.open(options).unwrap();
    tree.add("full", Parent::Base).unwrap();
    let device = tree.activate("full").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..1024 - left).unwrap();
    // What was seen of the pool serves for a second, or until the next answer tells of an event.
    tree.status().unwrap();
    tree
}

#[test]
fn a_tenth_is_kept_free() {
    let rig = Rig::new();
    let options = || rig.options().base_size(dm_thin::units::Bytes::mib(64));
    let tree = filled(&rig, options(), 90);
    let error = tree.add("more", Parent::Base).unwrap_err();
    assert!(matches!(error, Error::LowSpace { .. }) && error.is_out_of_space(), "{error}");
    assert!(!tree.contains("more"));
    // Removing needs none of it, and makes room.
    tree.remove("full").unwrap();
    tree.add("more", Parent::Base).unwrap();
    tree.close().unwrap();
}

#[test]
fn zero_disables_it() {
    let rig = Rig::new();
    let free = MinFree::Percent(0);
    let options = rig.options().base_size(dm_thin::units::Bytes::mib(64));
    let tree = filled(&rig, options.min_free_data(free).min_free_metadata(free), 1);
    tree.add("more", Parent::Base).unwrap();
    tree.deactivate("full").unwrap();
    tree.close().unwrap();
}
