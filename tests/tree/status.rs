//! What a tree says of itself.

use dm_thin::tree::Parent;
use dm_thin::units::Bytes;

use crate::rig::Rig;

#[test]
fn of_the_tree() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let status = tree.status().unwrap();
    let data = status.data.as_ref().unwrap();
    assert_eq!((data.used, data.total), (Bytes(0), Bytes::mib(64)));
    assert!(data.available <= Bytes::mib(64));
    assert_eq!(data.loop_file.as_deref(), Some(&*rig.root().join("pool/data")));
    assert_eq!(status.metadata.as_ref().unwrap().total, Bytes::mib(4));
    assert_eq!((status.snapshots, status.deferred, status.udev_sync), (1, 0, false));
    assert_eq!(status.rcu_expedited, Some(false));
    assert!(status.to_string().contains("Deferred Deleted Device Count: 0\n"));
    tree.close().unwrap();
}

#[test]
fn of_a_snapshot() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 2..5).unwrap();
    for active in [true, false] {
        let status = tree.snapshot_status("a").unwrap();
        assert_eq!((status.mapped, status.highest), (Bytes::kib(192), Some(Bytes::kib(320))));
        assert_eq!(tree.get("a").unwrap().device.is_some(), active);
        tree.deactivate("a").unwrap();
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean());
}
