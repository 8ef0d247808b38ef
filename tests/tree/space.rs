//! No snapshot is made when the pool has too little space.

use dm_thin::Errno;
use dm_thin::model::Mode;
use dm_thin::thin;
use dm_thin::thin::{ExtendRule, MinFree, PoolMode, ThinId};
use dm_thin::tree::Error;
use dm_thin::tree::{Finding, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

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
fn the_default_guard_keeps_a_tenth_free() {
    let rig = Rig::new();
    let options = || rig.options().base_size(dm_thin::units::Bytes::mib(64));
    let tree = filled(&rig, options(), 90);
    let error = tree.add("more", Parent::Base).unwrap_err();
    assert!(matches!(error, Error::Thin(thin::Error::LowSpace { .. })) && error.is_out_of_space(), "{error}");
    assert!(!tree.contains("more"));
    // Removing needs none of it, and makes room.
    tree.remove("full").unwrap();
    tree.add("more", Parent::Base).unwrap();
    tree.close().unwrap();
}

#[test]
fn an_active_parent_of_a_full_pool_is_not_suspended() {
    let free = MinFree::Percent(0);
    for guarded in [true, false] {
        let rig = Rig::new();
        let options = rig.options().base_size(Bytes::mib(128));
        let options = if guarded { options } else { options.min_free_data(free).min_free_metadata(free) };
        let tree = rig.open(options).unwrap();
        tree.add("full", Parent::Base).unwrap();
        let device = tree.activate("full").unwrap();
        let full = rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..2000);
        assert_eq!(full, Err(Errno::ENOSPC));
        // What was seen of the pool before serves for a second.
        tree.status().unwrap();
        for _ in 0..2 {
            rig.kernel.clear_log();
            let error = tree.add("more", Parent::Snapshot("full")).unwrap_err();
            assert!(error.is_out_of_space() && !tree.contains("more"), "{error}");
            // It would wait for the writes.
            assert!(rig.kernel.log().iter().all(|call| call.name != "DM_DEV_SUSPEND"));
        }
        tree.grow_pool(Bytes::mib(256)).unwrap();
        tree.add("more", Parent::Snapshot("full")).unwrap();
        for id in ["full", "more"] {
            tree.deactivate(id).unwrap();
        }
        tree.close().unwrap();
    }
}

#[test]
fn a_guard_of_zero_is_disabled() {
    let rig = Rig::new();
    let free = MinFree::Percent(0);
    let options = rig.options().base_size(dm_thin::units::Bytes::mib(64));
    let tree = filled(&rig, options.min_free_data(free).min_free_metadata(free), 1);
    tree.add("more", Parent::Base).unwrap();
    tree.deactivate("full").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_pool_without_metadata_space_opens_for_reads_and_removals() {
    let cases = [(true, true), (true, false), (false, true), (false, false)];
    for (closed, reaped, looks) in cases.into_iter().flat_map(|(a, b)| [(a, b, &[2, 1][..]), (a, b, &[])]) {
        let rig = Rig::new();
        let none = MinFree::Percent(0);
        let options = || {
            let options = rig.options().metadata_size(Bytes::mib(2));
            options.min_free_data(none).min_free_metadata(none)
        };
        let tree = rig.open(options()).unwrap();
        for id in ["a", "b", "c"] {
            tree.add(id, Parent::Base).unwrap();
        }
        // Each has a block of the metadata.
        let others = |id| tree.pool().create_thin(ThinId::new(id).unwrap());
        let error = (1000..).find_map(|id| others(id).err()).unwrap();
        assert!(matches!(error, thin::Error::PoolMode { mode: PoolMode::ReadOnly, .. }), "{error}");
        if !reaped {
            assert!(matches!(tree.remove("c"), Err(Error::Thin(thin::Error::PoolMode { .. }))));
        }
        if closed {
            tree.close().unwrap();
        }
        drop(tree);
        for &left in looks {
            let tree = rig.open(options()).unwrap();
            let read_only = Finding::Pool { mode: PoolMode::ReadOnly, needs_check: false };
            assert!(tree.check().unwrap().contains(&read_only));
            tree.activate("a").unwrap();
            tree.deactivate("a").unwrap();
            for result in [tree.add("d", Parent::Base), tree.remove("b"), tree.remove("c")] {
                let error = result.unwrap_err();
                assert!(
                    matches!(error, Error::Thin(thin::Error::PoolMode { .. })) || error.is_not_found(),
                    "{error}"
                );
            }
            assert!(tree.list().len() <= left, "{:?}", tree.list());
            tree.close().unwrap();
        }
        let rule = ExtendRule { threshold: 70, step: 50, maximum: Bytes::mib(64) };
        let tree = rig.open(options().auto_extend(rule)).unwrap();
        tree.add("e", Parent::Base).unwrap();
        let count = if looks.is_empty() { 4 - usize::from(!reaped) } else { 2 };
        assert_eq!((tree.list().len(), tree.deferred()), (count, 0));
        let others = |finding: &Finding| matches!(finding, Finding::UnknownVolume { own: false, .. });
        assert!(tree.check().unwrap().iter().all(others));
        tree.close().unwrap();
    }
}

#[test]
fn a_failed_pool_opens_for_status_and_close() {
    let rig = Rig::new();
    let tree = rig.tree();
    for id in ["a", "b"] {
        tree.add(id, Parent::Base).unwrap();
    }
    let device = tree.activate("a").unwrap();
    rig.kernel.set_mode(tree.pool().name().to_str().unwrap(), Mode::Fail).unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!(tree.get("a").unwrap().device, Some(device));
    assert!(matches!(tree.remove("b"), Err(Error::Thin(thin::Error::PoolMode { mode: PoolMode::Fail, .. }))));
    tree.close().unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!((tree.list().len(), tree.deferred(), tree.check().unwrap()), (1, 0, vec![]));
    tree.close().unwrap();
}
