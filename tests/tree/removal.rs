//! Removing what somebody has open.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dm_thin::kernel::{Access, DeviceFile, Kernel};
use dm_thin::model::Mode;
use dm_thin::thin;
use dm_thin::thin::MinFree;
use dm_thin::tree::{
    AddOptions, Finding, Parent, ReceiveOptions, Removal, RemoveOptions, SendOptions, SnapshotTree,
};
use dm_thin::tree::{Error, Result};
use dm_thin::units::Bytes;

use crate::rig::{Rig, crash_everywhere};

fn hold(rig: &Rig, device: &Path) -> DeviceFile {
    rig.kernel.open(device, Access::READ).unwrap()
}

fn deferred() -> RemoveOptions {
    RemoveOptions::new().deferred(true).busy_timeout(Duration::ZERO)
}

fn ids(rig: &Rig, tree: &SnapshotTree) -> usize {
    rig.kernel.thin_devices(tree.pool().name().to_str().unwrap()).unwrap().len()
}

#[test]
fn a_busy_snapshot_is_removed_when_it_is_closed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.add("child", Parent::Snapshot("a")).unwrap();
    let file = hold(&rig, &tree.activate("a").unwrap());
    let now = RemoveOptions::new().busy_timeout(Duration::ZERO);
    assert!(matches!(tree.remove_with("a", &now), Err(Error::Busy { open_count: 1, .. })));
    assert_eq!(tree.remove_with("a", &deferred()).unwrap(), Removal::Deferred);
    // Gone for callers, and its id is free.
    assert!(!tree.contains("a") && tree.activate("a").is_err());
    assert_eq!(tree.list().len(), 1);
    assert_eq!((tree.deferred(), tree.reap().unwrap()), (1, 1));
    tree.add("a", Parent::Base).unwrap();
    let another = hold(&rig, &tree.activate("a").unwrap());
    assert_eq!(tree.remove_with("a", &deferred()).unwrap(), Removal::Deferred);
    assert_eq!((ids(&rig, &tree), tree.reap().unwrap()), (4, 2));
    drop(file);
    assert_eq!((tree.reap().unwrap(), tree.deferred()), (1, 1));
    drop(another);
    assert_eq!((tree.reap().unwrap(), tree.deferred()), (0, 0));
    assert_eq!((ids(&rig, &tree), tree.check().unwrap()), (2, vec![]));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_failed_pool_can_be_closed() {
    for mode in [Mode::OutOfMetadataSpace, Mode::ReadOnly, Mode::Fail] {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.add("a", Parent::Base).unwrap();
        tree.add("b", Parent::Base).unwrap();
        tree.activate("b").unwrap();
        rig.kernel.set_mode(tree.pool().name().to_str().unwrap(), mode).unwrap();
        assert!(matches!(tree.remove("a"), Err(Error::Thin(thin::Error::PoolMode { .. }))), "{mode:?}");
        tree.close().unwrap();
        assert!(rig.kernel.is_clean(), "{mode:?}: {:?}", rig.kernel.leftovers());
        drop(tree);
        // The pool is sound again, and the removal is finished.
        let tree = rig.tree();
        assert_eq!((tree.list().len(), tree.deferred(), ids(&rig, &tree)), (1, 0, 2));
        tree.close().unwrap();
    }
}

#[test]
fn a_deferred_removal_outlives_its_manager() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let file = hold(&rig, &tree.activate("a").unwrap());
    assert_eq!(tree.remove_with("a", &deferred()).unwrap(), Removal::Deferred);
    drop(tree);
    // Still open: that does not keep the tree from opening.
    let tree = rig.tree();
    assert_eq!(tree.deferred(), 1);
    assert!(!tree.contains("a"));
    drop(tree);
    drop(file);
    let tree = rig.tree();
    assert_eq!((tree.deferred(), ids(&rig, &tree)), (0, 1));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_thread_deletes_what_was_removed() {
    let rig = Rig::new();
    let options = rig.options().background_threads(true).deferred_deletion(true).busy_timeout(Duration::ZERO);
    let tree = rig.open(options.clone()).unwrap();
    for id in ["a", "b", "c"] {
        tree.add(id, Parent::Base).unwrap();
    }
    let file = hold(&rig, &tree.activate("a").unwrap());
    for id in ["a", "b"] {
        assert_eq!(tree.remove_with(id, &RemoveOptions::new()).unwrap(), Removal::Deferred);
    }
    assert_eq!(tree.remove_with("c", &RemoveOptions::new().background(false)).unwrap(), Removal::Removed);
    wait_until(|| tree.deferred() == 1);
    assert_eq!(ids(&rig, &tree), 2);
    // What is open is a finding, what the thread will delete is none.
    assert!(matches!(&tree.check().unwrap()[..], [Finding::Deferred { id, .. }] if id.as_str() == "a"));
    // It looks again from time to time.
    drop(file);
    wait_until(|| ids(&rig, &tree) == 1);
    tree.close().unwrap();
    drop(tree);

    // What a manager without a thread leaves, the next one's thread deletes.
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let _ = tree.remove_with("a", &RemoveOptions::new().background(true)).unwrap();
    drop(tree);
    let tree = rig.open(options).unwrap();
    wait_until(|| ids(&rig, &tree) == 1);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_removal_is_one_record_and_a_close_deletes_the_volumes() {
    let rig = Rig::new();
    let tree = rig.tree();
    let background = RemoveOptions::new().background(true);
    for n in 0..3 {
        tree.add("a", Parent::Base).unwrap();
        rig.kernel.clear_log();
        assert_eq!(tree.remove_with("a", &background).unwrap(), Removal::Deferred);
        let calls: Vec<_> = rig.kernel.log().into_iter().map(|call| call.name).collect();
        assert!(calls.iter().all(|name| !name.starts_with("DM_")), "{calls:?}");
        assert_eq!((tree.deferred(), ids(&rig, &tree), tree.check().unwrap().len()), (n + 1, n + 2, n + 1));
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    drop(tree);
    let tree = rig.tree();
    assert_eq!((tree.deferred(), ids(&rig, &tree), tree.check().unwrap()), (0, 1, vec![]));
    tree.close().unwrap();
}

#[test]
fn removals_do_not_outrun_the_deletions() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().metadata_size(Bytes::mib(16))).unwrap();
    for _ in 0..1100 {
        tree.add("a", Parent::Base).unwrap();
        assert_eq!(tree.remove_with("a", &RemoveOptions::new().background(true)).unwrap(), Removal::Deferred);
    }
    assert_eq!(tree.deferred(), 1024);
    tree.close().unwrap();
}

#[test]
fn an_addition_without_space_deletes_what_was_removed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("large", Parent::Base).unwrap();
    let device = tree.activate("large").unwrap();
    // 15 of 64 MiB.
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..240).unwrap();
    tree.deactivate("large").unwrap();
    drop(tree);
    let tree = rig.open(rig.options().min_free_data(MinFree::Percent(80))).unwrap();
    assert!(tree.add("a", Parent::Base).unwrap_err().is_out_of_space());
    let _ = tree.remove_with("large", &RemoveOptions::new().background(true)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    assert_eq!((tree.deferred(), ids(&rig, &tree)), (0, 2));
    tree.close().unwrap();
}

#[test]
fn activate_cancels_a_deferred_deactivation() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    for closed_before in [false, true] {
        let file = hold(&rig, &tree.activate("a").unwrap());
        assert_eq!(tree.deactivate_deferred("a").unwrap(), Removal::Deferred);
        assert_eq!(tree.deactivate_deferred("a").unwrap(), Removal::Deferred);
        assert_eq!(tree.get("a").unwrap().device, None);
        if closed_before {
            drop(file);
            assert_eq!(tree.activate("a").unwrap(), device);
        } else {
            assert_eq!(tree.activate("a").unwrap(), device);
            drop(file);
        }
        // It is there to stay.
        assert!(rig.kernel.open(&device, Access::READ).is_ok());
    }
    // The kernel was faster than whoever else needs it.
    let file = hold(&rig, &device);
    assert_eq!(tree.deactivate_deferred("a").unwrap(), Removal::Deferred);
    drop(file);
    tree.add("b", Parent::Snapshot("a")).unwrap();
    tree.rename("a", "c").unwrap();
    tree.remove("c").unwrap();
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn one_of_many_threads_gets_the_id_of_a_removed_snapshot() {
    let rig = Rig::new();
    let tree = rig.tree();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let added = tree.add("a", Parent::Base);
                    assert!(added.is_ok() || added.unwrap_err().is_exists());
                    let removed = tree.remove("a");
                    assert!(removed.is_ok() || removed.unwrap_err().is_not_found());
                    tree.reap().unwrap();
                }
            });
        }
    });
    assert_eq!(ids(&rig, &tree), 1 + tree.list().len());
    tree.close().unwrap();
}

#[test]
fn remove_discards_after_the_record_is_durable() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let name = device.file_name().unwrap().to_str().unwrap();
    rig.kernel.write(name, 0..10).unwrap();
    tree.deactivate("a").unwrap();
    rig.kernel.clear_log();
    tree.remove("a").unwrap();
    let log = rig.kernel.log();
    let at = |name: &str| log.iter().position(|call| call.name == name);
    assert!(at("BLKDISCARD").unwrap() < at("DM_TARGET_MSG").unwrap());
    tree.close().unwrap();
    assert!(rig.kernel.is_clean());

    // A crash in between: nothing that is listed has lost its blocks.
    let prepare = |tree: &SnapshotTree| tree.add("a", Parent::Base).unwrap();
    crash_everywhere(
        prepare,
        |tree| tree.remove("a"),
        |rig, tree| {
            assert_eq!((tree.deferred(), ids(rig, tree)), (0, 1 + tree.list().len()));
            if tree.contains("a") {
                assert!(!rig.kernel.log().iter().any(|call| call.name == "BLKDISCARD"));
            }
        },
    );
}

#[test]
fn a_large_volume_is_discarded_in_slices() {
    let rig = Rig::new();
    let options = rig.options().base_size(Bytes::gib(4)).data_size(Bytes::gib(8)).blkdiscard(true);
    let tree = rig.open(options.clone().background_threads(true)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    rig.kernel.clear_log();
    tree.remove("a").unwrap();
    wait_until(|| tree.deferred() == 0);
    let discards = rig.kernel.log().iter().filter(|call| call.name == "BLKDISCARD").count();
    assert_eq!(discards, 4);

    // A manager that goes meanwhile leaves the rest to the next one.
    (0..20).for_each(|n| tree.add(n.to_string(), Parent::Base).unwrap());
    (0..20).for_each(|n| tree.remove(n.to_string()).unwrap());
    drop(tree);
    let tree = rig.open(options).unwrap();
    assert!(tree.check().unwrap().iter().all(|finding| matches!(finding, Finding::Deferred { .. })));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn deferred_removal_needs_interface_4_27() {
    let mut rig = Rig::new();
    let options = dm_thin::model::ModelOptions { interface_minor: 26, ..Default::default() };
    rig.kernel = Arc::new(dm_thin::model::ModelKernel::with_options(options));
    let tree = rig.open(rig.options().busy_timeout(Duration::ZERO)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let file = hold(&rig, &tree.activate("a").unwrap());
    assert!(tree.deactivate_deferred("a").unwrap_err().is_busy());
    // The tree can.
    assert_eq!(tree.remove_with("a", &deferred()).unwrap(), Removal::Deferred);
    assert_eq!(tree.reap().unwrap(), 1);
    drop(file);
    assert_eq!(tree.reap().unwrap(), 0);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean());
}

/// As soon as a volume is deleted, another user of the pool may get its id.
#[test]
fn a_crash_during_a_removal_deletes_no_other_volume_of_a_shared_pool() {
    let stream = {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.create("b", None, &AddOptions::new().size(Bytes::mib(1))).unwrap().commit_sealed().unwrap();
        let mut stream = Vec::new();
        tree.send("b", None, &mut stream, SendOptions::new()).unwrap();
        stream
    };
    let remove = |tree: &SnapshotTree| tree.remove("a");
    let discard = |tree: &SnapshotTree| tree.discard_receive(tree.partial_receives()[0].volume);
    for work in [&remove as &dyn Fn(&SnapshotTree) -> Result<()>, &discard] {
        for n in 1.. {
            let rig = Rig::new();
            let pool = rig.pool();
            let tree = rig.open(rig.adopting("vg-pool")).unwrap();
            tree.add("a", Parent::Base).unwrap();
            let partial = ReceiveOptions::new().resumable(true);
            tree.receive(&stream[..stream.len() - 10], partial).unwrap_err();
            let before = pool.thin_ids().unwrap();
            rig.kernel.unwind_at_cut(true);
            rig.kernel.cut_after(n);
            let run = catch_unwind(AssertUnwindSafe(|| work(&tree)));
            drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
            rig.kernel.heal();
            let after = pool.thin_ids().unwrap();
            let deleted: Vec<_> = before.iter().filter(|id| !after.contains(id)).collect();
            deleted.iter().for_each(|id| pool.create_thin(**id).unwrap());
            let tree = rig.open(rig.adopting("vg-pool")).unwrap();
            tree.reap().unwrap();
            let left = pool.thin_ids().unwrap();
            assert!(deleted.iter().all(|id| left.contains(id)), "call {n}: {deleted:?} are gone");
            if run.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn a_close_leaves_what_is_to_be_deleted_to_the_next_open() {
    let rig = Rig::new();
    let background = RemoveOptions::new().background(true);
    let remove_three = |tree: &SnapshotTree| {
        for id in ["a", "b", "c"] {
            tree.add(id, Parent::Base).unwrap();
            assert_eq!(tree.remove_with(id, &background).unwrap(), Removal::Deferred);
        }
        assert_eq!((tree.deferred(), ids(&rig, tree)), (3, 4));
    };
    let tree = rig.tree();
    remove_three(&tree);
    tree.close_within(Duration::ZERO).unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    drop(tree);
    let tree = rig.tree();
    assert_eq!((tree.deferred(), ids(&rig, &tree)), (0, 1), "deleted by the open");
    remove_three(&tree);
    tree.close_within(Duration::from_secs(60)).unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!((tree.recovered(), ids(&rig, &tree)), (&[][..], 1), "deleted by the close");
    tree.close().unwrap();
}
