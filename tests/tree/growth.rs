//! A pool that grew is as large after a restart.

use std::sync::Arc;

use dm_thin::loopdev::LoopControl;
use dm_thin::thin::{Backing, LoopFile};
use dm_thin::tree::Parent;
use dm_thin::units::Bytes;

use crate::rig::Rig;

#[test]
fn a_grown_pool_stays_grown() {
    let mut rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let control = LoopControl::with_kernel(rig.kernel.clone()).unwrap();
    let size = Bytes::mib(128).sectors();
    LoopFile::find(control, rig.root().join("pool/data")).unwrap().extend(size).unwrap();
    tree.pool().grow_data(size).unwrap();
    drop(tree);
    let total = |rig: &Rig| rig.tree().status().unwrap().data.unwrap().total;
    assert_eq!(total(&rig), Bytes::mib(128));
    rig.kernel = Arc::new(rig.kernel.power_cut());
    assert_eq!(total(&rig), Bytes::mib(128));
    let tree = rig.tree();
    assert!(tree.contains("a"));
    tree.close().unwrap();
}
