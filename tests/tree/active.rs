//! What is active is told by what it is, whatever others do to names and nodes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dm_thin::dm::{DeviceMapper, DmFlags, DmName, UdevPolicy};
use dm_thin::kernel::{Access, Kernel};
use dm_thin::model::Mode;
use dm_thin::tree::{AddOptions, Filesystem, Finding, InitLayer, Parent, Removal, RemoveOptions};
use dm_thin::units::Bytes;
use nix::errno::Errno;

use crate::rig::Rig;

fn name(device: &Path) -> DmName {
    device.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn dm(rig: &Rig) -> DeviceMapper {
    DeviceMapper::with_kernel(rig.kernel.clone(), UdevPolicy::None).unwrap()
}

fn named(text: &str) -> DmName {
    DmName::new(text).unwrap()
}

#[test]
fn add_suspends_an_active_parent_whose_device_was_renamed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    dm(&rig).rename(&name(&device), &named("theirs")).unwrap();
    rig.kernel.clear_log();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    // Suspended and resumed; the name may have been tried first.
    let log = rig.kernel.log();
    let suspends = log.iter().filter(|call| call.name == "DM_DEV_SUSPEND").count();
    assert!(suspends >= 2, "{log:?}");
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn activate_restores_a_missing_node() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    rig.kernel.remove_node(&device).unwrap();
    assert_eq!(tree.activate("a").unwrap(), device);
    rig.kernel.block_device(&device).unwrap();
    // Under another name, and not at all.
    dm(&rig).rename(&name(&device), &named("theirs")).unwrap();
    assert_eq!(tree.activate("a").unwrap(), device);
    rig.kernel.block_device(&device).unwrap();
    dm(&rig).remove(&name(&device)).unwrap();
    assert_eq!(tree.activate("a").unwrap(), device);
    rig.kernel.block_device(&device).unwrap();
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn deactivate_removes_a_renamed_device() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    for deferred in [false, true] {
        let device = tree.activate("a").unwrap();
        dm(&rig).rename(&name(&device), &named("theirs")).unwrap();
        match deferred {
            true => assert_eq!(tree.deactivate_deferred("a").unwrap(), Removal::Removed),
            false => tree.deactivate("a").unwrap(),
        }
        assert_eq!(rig.kernel.leftovers().iter().filter(|left| left.contains("theirs")).count(), 0);
    }
    // Nobody's now.
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn snapshot_status_keeps_a_deferred_removal() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let file = rig.kernel.open(&device, Access::READ).unwrap();
    assert_eq!(tree.deactivate_deferred("a").unwrap(), Removal::Deferred);
    let status = tree.snapshot_status("a").unwrap();
    assert!(dm(&rig).status(&name(&device)).unwrap().flags.contains(dm_thin::dm::DmFlags::DEFERRED_REMOVE));
    drop(file);
    assert_eq!(tree.snapshot_status("a").unwrap(), status);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn busy_timeout_of_duration_max_does_not_panic() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().busy_timeout(Duration::MAX)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    tree.activate("a").unwrap();
    tree.deactivate("a").unwrap();
    let removal = tree.remove_with("a", &RemoveOptions::new().busy_timeout(Duration::MAX)).unwrap();
    assert_eq!(removal, Removal::Removed);
    tree.close().unwrap();
}

#[test]
fn reap_continues_after_a_failure() {
    let rig = Rig::new();
    let tree = rig.tree();
    let deferred = RemoveOptions::new().deferred(true).busy_timeout(Duration::ZERO);
    let size = AddOptions::new().size(Bytes::mib(1));
    let left = || {
        let findings = tree.check().unwrap();
        let unfinished = findings.iter().filter(|it| matches!(it, Finding::Unfinished { .. })).count();
        (tree.deferred(), unfinished)
    };
    for id in ["a", "b"] {
        tree.add(id, Parent::Base).unwrap();
        let file = rig.kernel.open(&tree.activate(id).unwrap(), Access::READ).unwrap();
        assert_eq!(tree.remove_with(id, &deferred).unwrap(), Removal::Deferred);
        drop(file);
    }
    // Written, and neither published nor deleted: the pool does not take the message.
    let writers = ["c", "d"].map(|id| tree.create(id, None, &size).unwrap());
    let set_mode = |mode| rig.kernel.set_mode(&tree.pool().name().to_string(), mode).unwrap();
    set_mode(Mode::ReadOnly);
    drop(writers);
    set_mode(Mode::Write);
    assert_eq!(left(), (2, 2));
    rig.kernel.fail_at(1, Errno::EIO);
    assert_eq!(tree.reap().unwrap_err().errno(), Some(Errno::EIO));
    assert_eq!(left(), (1, 0));
    assert_eq!(tree.reap().unwrap(), 0);
    assert_eq!(left(), (0, 0));

    let writers = ["c", "d"].map(|id| tree.create(id, None, &size).unwrap());
    set_mode(Mode::ReadOnly);
    drop(writers);
    set_mode(Mode::Write);
    rig.kernel.fail_at(1, Errno::EIO);
    assert_eq!(tree.reap().unwrap_err().errno(), Some(Errno::EIO));
    assert_eq!(left(), (0, 1));
    assert_eq!(tree.reap().unwrap(), 0);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

/// Whoever grows a pool suspends it; the kernel refuses to load a volume's table meanwhile.
#[test]
fn activation_waits_for_a_concurrent_pool_reload() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let other = Arc::new(rig.kernel.process());
    let other = DeviceMapper::with_kernel(other, UdevPolicy::None).unwrap();
    let pool = *tree.pool().name();
    for calls in 1..40 {
        other.suspend(&pool, DmFlags::empty()).unwrap();
        let (resumer, resumed) = (Arc::new(rig.kernel.process()), pool);
        rig.kernel.at_call(calls, move || {
            DeviceMapper::with_kernel(resumer, UdevPolicy::None).unwrap().resume(&resumed).unwrap();
        });
        tree.activate("a").unwrap();
        rig.kernel.heal();
        // If it came before.
        other.resume(&pool).unwrap();
        tree.deactivate("a").unwrap();
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

/// Each call of the check is the one before which another thread deactivates the snapshot.
#[test]
fn check_beside_a_deactivation_reports_nothing() {
    let rig = Rig::new();
    let tree = Arc::new(rig.tree());
    tree.add("a", Parent::Base).unwrap();
    let calls = || {
        let before = rig.kernel.calls();
        assert_eq!(tree.check().unwrap(), []);
        rig.kernel.calls() - before
    };
    tree.activate("a").unwrap();
    for call in 1..=calls() {
        tree.activate("a").unwrap();
        let other = tree.clone();
        rig.kernel.at_call(call, move || other.deactivate("a").unwrap());
        assert_eq!(tree.check().unwrap(), [], "{call}");
        assert!(tree.get("a").unwrap().device.is_none(), "{call}");
    }
    tree.close().unwrap();
}

#[test]
fn mount_can_be_retried_after_a_failure_at_any_call() {
    for call in 1.. {
        let rig = Rig::new();
        let options =
            rig.options().filesystem(Filesystem::Ext4).init_layer(InitLayer::new().file("etc/hostname"));
        let tree = rig.open(options).unwrap();
        tree.add("a", Parent::Base).unwrap();
        let target = rig.directory.path().join("target");
        rig.kernel.fail_at(call, Errno::EIO);
        let done = tree.mount("a", &target);
        let struck = rig.kernel.struck();
        rig.kernel.heal();
        if done.is_err() {
            tree.mount("a", &target).unwrap_or_else(|error| panic!("after {struck:?}: {error}"));
        }
        rig.kernel.read_file(&target.canonicalize().unwrap().join("etc/hostname")).unwrap();
        tree.unmount("a").unwrap();
        assert!(!target.exists(), "after {struck:?}");
        assert_eq!(tree.check().unwrap(), [], "after {struck:?}");
        tree.close().unwrap();
        assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
        if struck.is_none() {
            break;
        }
    }
}

#[test]
fn open_completes_a_mount_of_a_killed_manager() {
    for call in 1.. {
        let rig = Rig::new();
        let layer = || InitLayer::new().file("etc/hostname");
        let options = || rig.options().filesystem(Filesystem::Ext4).init_layer(layer());
        let tree = rig.open(options()).unwrap();
        tree.add("a", Parent::Base).unwrap();
        let target = rig.directory.path().join("target");
        rig.kernel.unwind_at_cut(true);
        rig.kernel.cut_after(call);
        let done = catch_unwind(AssertUnwindSafe(|| tree.mount("a", &target).unwrap()));
        drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
        rig.kernel.heal();
        let tree = rig.open(options()).unwrap();
        tree.mount("a", &target).unwrap();
        rig.kernel.read_file(&target.canonicalize().unwrap().join("etc/hostname")).unwrap();
        if done.is_ok() {
            break;
        }
    }
}

#[test]
fn open_completes_an_unmount_of_a_killed_manager() {
    for call in 1.. {
        let rig = Rig::new();
        let open = || rig.open(rig.options().filesystem(Filesystem::Ext4)).unwrap();
        let tree = open();
        tree.add("a", Parent::Base).unwrap();
        let target = rig.directory.path().join("target");
        tree.mount("a", &target).unwrap();
        rig.kernel.unwind_at_cut(true);
        rig.kernel.cut_at(call);
        let done = catch_unwind(AssertUnwindSafe(|| tree.unmount("a").unwrap()));
        drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
        rig.kernel.heal();
        let tree = open();
        if tree.get("a").unwrap().mounted.is_some() {
            tree.unmount("a").unwrap();
        }
        assert!(!target.exists(), "killed at call {call}");
        if done.is_ok() {
            break;
        }
    }
}
