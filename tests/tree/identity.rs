//! Whose pool it is, and of what time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::kernel::{Access, DeviceNumber, Kernel};
use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::thin::{Origin, ThinId, TransactionId};
use dm_thin::tree::{AddOptions, Filesystem, Finding, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::tree::{Error, StateAge};
use dm_thin::units::{Bytes, Sectors};

use crate::rig::Rig;

/// The files of the state, without the pool.
const STATE: [&str; 4] = ["state.json", "journal.0", "journal.1", "lock"];

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
    (0..200).for_each(|n| tree.add(format!("s{n}"), Parent::Base).unwrap());
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
    (0..70).for_each(|n| tree.add(format!("s{n}"), Parent::Base).unwrap());
    assert!(tree.list().iter().all(|info| info.thin_id != thin_id));
    assert_eq!(tree.repair().unwrap().left, []);
    assert!(!tree.pool().thin_ids().unwrap().contains(&thin_id));
    tree.close().unwrap();
}

/// The generation is the same: what the volumes hold tells that they were handed out.
#[test]
fn a_backup_of_the_same_generation_is_refused_if_a_later_snapshot_was_written() {
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

#[test]
fn an_active_volume_without_a_record_makes_the_state_too_old() {
    let rig = Rig::new();
    let tree = rig.tree();
    let saved = save(&rig.root());
    tree.add("new", Parent::Base).unwrap();
    let device = tree.activate("new").unwrap();
    let thin_id = tree.get("new").unwrap().thin_id;
    drop(tree);
    restore(&saved);
    let before = rig.kernel.leftovers();
    let error = rig.open(rig.options()).unwrap_err();
    let evidence = StateAge::UnknownVolume { thin_id };
    assert!(matches!(error, Error::StateOlderThanPool { evidence: found } if found == evidence), "{error}");
    // The claim of the manager that is gone is taken over, and given back.
    let left: Vec<_> = before.into_iter().filter(|it| !it.ends_with("-pool-lock")).collect();
    assert_eq!(rig.kernel.leftovers(), left);
    // It may be in use by somebody who knows nothing of this tree.
    let file = rig.kernel.open(&device, Access::READ).unwrap();
    let tree = rig.open(rig.options().accept_older_state(true)).unwrap();
    assert_eq!(tree.status().unwrap().orphans, 1);
    assert!(tree.check().unwrap().contains(&Finding::Orphan { thin_id }));
    assert!(tree.pool().thin_ids().unwrap().contains(&thin_id));
    drop(file);
    tree.close().unwrap();
}

#[test]
fn accept_older_state_deletes_nothing() {
    let rig = Rig::new();
    let tree = rig.tree();
    let writer = tree.create("made", Some(Parent::Base), &AddOptions::new()).unwrap();
    writer.write_at(Bytes(0), b"kept").unwrap();
    let saved = save(&rig.root());
    writer.commit().unwrap();
    // In windows that the state knows nothing of.
    (0..200).for_each(|n| tree.add(format!("s{n}"), Parent::Base).unwrap());
    let volumes = tree.pool().thin_ids().unwrap();
    tree.close().unwrap();
    drop(tree);
    restore(&saved);
    let tree = rig.open(rig.options().accept_older_state(true)).unwrap();
    assert_eq!(tree.pool().thin_ids().unwrap(), volumes);
    let found = tree.check().unwrap();
    assert_eq!(found.len(), 201);
    assert!(found.iter().all(|finding| matches!(finding, Finding::Orphan { .. })), "{found:?}");
    assert_eq!(tree.repair().unwrap().left, []);
    tree.close().unwrap();
}

#[test]
fn a_pool_from_a_backup_is_refused_unless_that_is_accepted() {
    let mut rig = Rig::new();
    let tree = rig.tree();
    tree.add("both", Parent::Base).unwrap();
    tree.add("removed", Parent::Base).unwrap();
    tree.close().unwrap();
    drop(tree);
    // Two machines with the same disks.
    let [backup, goes_on] = [rig.kernel.power_cut(), rig.kernel.power_cut()].map(Arc::new);
    rig.kernel = goes_on;
    let tree = rig.tree();
    tree.remove("removed").unwrap();
    tree.add("later", Parent::Base).unwrap();
    let thin_id = tree.get("later").unwrap().thin_id;
    tree.close().unwrap();
    drop(tree);
    rig.kernel = backup;
    for _ in 0..2 {
        let error = rig.open(rig.options()).unwrap_err();
        assert!(matches!(error, Error::PoolOlderThanState { .. }), "{error}");
        assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    }
    let tree = rig.open(rig.options().accept_older_pool(true)).unwrap();
    assert_eq!(names(&tree), ["both", "later"]);
    let missing =
        Finding::MissingVolume { id: Some(dm_thin::tree::SnapshotId::new("later").unwrap()), thin_id };
    let found = tree.check().unwrap();
    assert!(matches!(&found[..], [Finding::Orphan { .. }, found] if *found == missing), "{found:?}");
    tree.close().unwrap();
    drop(tree);
    rig.tree().close().unwrap();
}

#[test]
fn open_settles_unacknowledged_ids_before_resuming_devices() {
    // A manager dies between the message and the resume; and so does each one after it, a call later each time.
    for call in 1.. {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.add("a", Parent::Base).unwrap();
        let device = tree.activate("a").unwrap();
        let device = device.file_name().unwrap().to_str().unwrap();
        rig.kernel.write(device, 0..3).unwrap();
        let volumes = tree.pool().thin_ids().unwrap();
        rig.kernel.unwind_at_cut(true);
        rig.kernel.cut_after(2);
        // Its record comes after the message.
        let create = || tree.create("b", Some(Parent::Snapshot("a")), &AddOptions::new()).map(drop);
        assert!(catch_unwind(AssertUnwindSafe(create)).is_err());
        drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
        rig.kernel.heal();
        rig.kernel.cut_after(call);
        let opened = catch_unwind(AssertUnwindSafe(|| rig.open(rig.options())));
        let survived = opened.is_ok();
        drop(catch_unwind(AssertUnwindSafe(|| drop(opened))));
        rig.kernel.heal();
        // Whoever has it mounted writes as soon as he can: then the two differ.
        let _ = rig.kernel.write(device, 1..2);
        let tree = rig.tree();
        assert_eq!(tree.check().unwrap(), [], "call {call}");
        assert_eq!(tree.pool().thin_ids().unwrap(), volumes, "call {call}");
        rig.kernel.write(device, 0..3).unwrap();
        tree.deactivate("a").unwrap();
        tree.close().unwrap();
        if survived {
            break;
        }
    }
}

/// The pool as an earlier version, or somebody else, numbered it; the state says nothing of a nonce, or stays as it is.
fn without_nonce(tree: SnapshotTree, generation: u64, in_the_state: bool) {
    let root = tree.root().to_owned();
    let now = transaction_id(&tree);
    tree.pool().set_transaction_id(now, TransactionId(generation)).unwrap();
    drop(tree);
    if !in_the_state {
        return;
    }
    let path = root.join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    let state = text.split_once("\"state\": ").unwrap().1.trim_end().strip_suffix('}').unwrap().trim_end();
    let lines: Vec<_> = state.lines().filter(|line| !line.contains("\"nonce\"")).collect();
    let state = lines.join("\n");
    let checksum = crc32fast::hash(state.as_bytes());
    fs::write(path, format!("{{\"checksum\": \"{checksum:08x}\", \"state\": {state}}}")).unwrap();
}

#[test]
fn a_tree_without_a_nonce_gets_one() {
    for call in 1.. {
        let rig = Rig::in_memory();
        let tree = rig.tree();
        tree.add("a", Parent::Base).unwrap();
        let generation = transaction_id(&tree).0 & 0xffff_ffff;
        without_nonce(tree, generation, true);
        rig.kernel.unwind_at_cut(true);
        rig.kernel.cut_after(call);
        let opened = catch_unwind(AssertUnwindSafe(|| rig.open(rig.options())));
        let survived = opened.is_ok();
        drop(catch_unwind(AssertUnwindSafe(|| drop(opened))));
        rig.kernel.heal();
        let tree = rig.tree();
        assert_ne!(transaction_id(&tree).0 >> 32, 0, "call {call}");
        assert_eq!((names(&tree), tree.check().unwrap()), (vec!["a".to_owned()], vec![]), "call {call}");
        tree.close().unwrap();
        if survived {
            break;
        }
    }
}

#[test]
fn a_pool_without_a_nonce_is_refused_once_the_state_has_one() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let generation = transaction_id(&tree).0 & 0xffff_ffff;
    // As LVM counts, who has made about as many volumes.
    without_nonce(tree, generation - 1, false);
    for _ in 0..2 {
        let error = rig.open(rig.options()).unwrap_err();
        assert!(matches!(error, Error::ForeignPool { found, .. } if found.0 == generation - 1), "{error}");
    }
}

#[test]
fn two_crashes_in_a_row_during_creation() {
    // The first one leaves the pool active, and the state may not say that it is made: that takes some ten calls. The
    // second one comes at each call of the next open.
    let mut active = 0;
    for first in 1.. {
        if active > 8 {
            return;
        }
        for second in 1.. {
            let rig = Rig::in_memory();
            rig.kernel.unwind_at_cut(true);
            let die = |call| {
                rig.kernel.cut_after(call);
                let opened = catch_unwind(AssertUnwindSafe(|| rig.open(rig.options())));
                let survived = opened.is_ok();
                drop(catch_unwind(AssertUnwindSafe(|| drop(opened))));
                rig.kernel.heal();
                survived
            };
            if die(first) {
                return;
            }
            // Before that there is nothing that a second death could make worse.
            if !rig.devices().iter().any(|device| device == "pool") {
                break;
            }
            active += u32::from(second == 1);
            let survived = die(second);
            let tree = rig.open(rig.options());
            let tree = tree.unwrap_or_else(|error| panic!("calls {first}, {second}: {error}"));
            assert_eq!(tree.check().unwrap(), [], "calls {first}, {second}");
            tree.close().unwrap();
            if survived || second > 50 {
                break;
            }
        }
    }
}

fn disk(rig: &Rig, name: &str, minor: u32) -> PathBuf {
    let path = PathBuf::from("/dev").join(name);
    let size = if name.contains("meta") { Bytes::mib(4) } else { Bytes::mib(64) };
    rig.kernel.set_disk(&path, DeviceNumber { major: 8, minor }, Sectors(size.0 >> 9)).unwrap();
    path
}

#[test]
fn devices_of_another_tree_are_refused() {
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
        (0..5).for_each(|n| tree.add(format!("s{n}"), Parent::Base).unwrap());
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

/// The kernel would find other metadata behind such a device, or none, and format it.
#[test]
fn a_foreign_loop_device_on_a_pool_file_is_not_taken_over() {
    for name in ["metadata", "data"] {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.add("a", Parent::Base).unwrap();
        tree.close().unwrap();
        drop(tree);
        let path = rig.root().join("pool").join(name);
        let before = fs::read(&path).unwrap();
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let control = LoopControl::with_kernel(rig.kernel.clone()).unwrap();
        let whole = AttachOptions::new();
        for options in [whole.offset(Bytes::mib(1)), whole.size_limit(Bytes::mib(1)), whole.read_only(true)] {
            let device = control.attach(&file, &path, &options).unwrap();
            let bound = device.status().unwrap();
            let error = rig.open(rig.options()).unwrap_err();
            assert!(matches!(&error, Error::BackingFile { path: found, .. } if *found == path), "{error}");
            assert_eq!(device.status().unwrap(), bound, "left alone");
            device.detach().unwrap();
            assert!(fs::read(&path).unwrap() == before, "{name}: written to");
            assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
        }
        // One that shows all of the file is as good as one of its own.
        let device = control.attach(&file, &path, &whole).unwrap();
        let tree = rig.tree();
        assert!(tree.contains("a"));
        assert_eq!(tree.check().unwrap(), []);
        tree.close().unwrap();
        drop(tree);
        device.detach().unwrap();
    }
}
