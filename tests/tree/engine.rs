//! What an engine does with its snapshots: commits them, resizes them, and finds them again.

use std::collections::BTreeSet;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use dm_thin::Errno;
use dm_thin::abi::dm::DM_DEV_REMOVE;
use dm_thin::abi::mount::MountFlags;
use dm_thin::dm::{DmName, DmUuid};
use dm_thin::kernel::{Access, Kernel};
use dm_thin::tree::{
    AddOptions, DeviceOptions, Error, Filesystem, Labels, Lineage, MountOptions, Parent, ReceiveOptions,
    RemoveOptions, SendOptions, SnapshotDevice, SnapshotTree,
};
use dm_thin::units::{Bytes, Sectors};

use crate::rig::{Rig, crash_everywhere};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut labels = Labels::new();
    pairs.iter().for_each(|(key, value)| labels.set(key, value).unwrap());
    labels
}

#[test]
fn a_commit_names_labels_and_seals() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("extract", Parent::Base).unwrap();
    tree.add("child", Parent::Snapshot("extract")).unwrap();
    let device = tree.activate("extract").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..1).unwrap();
    let uuid = tree.commit("extract", "layer", labels(&[("digest", "sha256:1")])).unwrap();

    let layer = tree.get("layer").unwrap();
    assert_eq!(
        (layer.sealed, layer.labels.get("digest"), layer.device),
        (Some(uuid), Some("sha256:1"), None)
    );
    assert!(!tree.contains("extract") && tree.children("layer").unwrap()[0].as_str() == "child");
    let refused = |from: &str, to: &str| tree.commit(from, to, Labels::new()).unwrap_err();
    assert!(matches!(refused("layer", "other"), Error::Sealed { id } if id == "layer"));
    assert!(matches!(refused("child", "layer"), Error::SnapshotExists { id } if id == "layer"));
    assert!(matches!(refused("child", "child"), Error::SnapshotExists { id } if id == "child"));
    assert!(matches!(refused("extract", "other"), Error::UnknownSnapshot { id } if id == "extract"));
    let path = tree.activate("child").unwrap();
    let open = rig.kernel.open(&path, Access::READ).unwrap();
    assert!(matches!(refused("child", "other"), Error::Busy { .. }));
    drop(open);
    assert!(tree.contains("child") && !tree.contains("other"));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_crash_leaves_all_of_a_commit_or_nothing() {
    let prepare = |tree: &SnapshotTree| {
        tree.add_with("a", Parent::Base, &AddOptions::new().labels(labels(&[("old", "1")]))).unwrap();
        tree.activate("a").unwrap();
    };
    crash_everywhere(
        prepare,
        |tree| tree.commit("a", "b", labels(&[("new", "2")])).map(drop),
        |_, tree| {
            assert_eq!(tree.check().unwrap(), []);
            let found = tree.list().remove(0);
            let is = (found.id.as_str(), found.sealed.is_some(), found.labels);
            assert!(
                is == ("a", false, labels(&[("old", "1")])) || is == ("b", true, labels(&[("new", "2")])),
                "{is:?}"
            );
        },
    );
}

fn device_size(tree: &SnapshotTree, id: &str) -> Bytes {
    let uuid = format!("DMTHIN-{}-{}", tree.uuid().simple(), tree.get(id).unwrap().thin_id);
    let dm = tree.pool().device_mapper();
    let found = dm.find(&DmUuid::new(&uuid).unwrap()).unwrap().unwrap();
    let lines = dm.table(&found.name, dm_thin::dm::TableKind::Live).unwrap();
    lines.iter().map(|line| line.length).fold(Sectors(0), |sum, length| sum + length).bytes()
}

#[test]
fn a_snapshot_is_resized_while_it_is_in_use() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.activate("a").unwrap();
    tree.resize("a", Bytes::mib(24)).unwrap();
    assert_eq!((tree.get("a").unwrap().size, device_size(&tree, "a")), (Bytes::mib(24), Bytes::mib(24)));
    tree.deactivate("a").unwrap();
    tree.resize("a", Bytes::mib(32)).unwrap();
    tree.resize("a", Bytes::mib(32)).unwrap();
    drop(tree);
    let tree = rig.tree();
    tree.activate("a").unwrap();
    assert_eq!(device_size(&tree, "a"), Bytes::mib(32));
    let error = tree.resize("a", Bytes::mib(24)).unwrap_err();
    assert!(matches!(error, Error::OptionConflict { option: "snapshot size", .. }), "{error}");
    assert!(matches!(tree.resize("a", Bytes(1)).unwrap_err(), Error::InvalidOption { .. }));
    assert!(matches!(tree.resize("b", Bytes::mib(64)).unwrap_err(), Error::UnknownSnapshot { .. }));
    // What another program did to its device is seen, and resizing it mends it.
    let device = tree.get("a").unwrap().device.unwrap();
    let name: DmName = device.file_name().unwrap().to_str().unwrap().parse().unwrap();
    tree.pool().active_volume(&name).unwrap().grow(Bytes::mib(40).sectors()).unwrap();
    assert_eq!(tree.check().unwrap().len(), 1);
    tree.resize("a", Bytes::mib(40)).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.seal("a").unwrap();
    assert!(matches!(tree.resize("a", Bytes::mib(64)).unwrap_err(), Error::Sealed { .. }));
    tree.close().unwrap();
}

#[test]
fn a_crash_while_a_snapshot_is_resized_loses_nothing() {
    let prepare = |tree: &SnapshotTree| {
        tree.add("a", Parent::Base).unwrap();
        tree.activate("a").unwrap();
    };
    crash_everywhere(
        prepare,
        |tree| tree.resize("a", Bytes::mib(32)),
        |_, tree| {
            // The size that is recorded is the device's, at the latest when it is asked for.
            tree.activate("a").unwrap();
            assert_eq!(tree.get("a").unwrap().size, device_size(tree, "a"));
            assert_eq!(tree.check().unwrap(), []);
        },
    );
}

#[test]
fn the_file_system_of_an_open_device_is_left_alone() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().filesystem(Filesystem::Ext4)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let path = tree.activate("a").unwrap();
    // A virtual machine may have mounted it.
    let open = rig.kernel.open(&path, Access::READ_WRITE).unwrap();
    rig.kernel.clear_log();
    tree.resize("a", Bytes::mib(32)).unwrap();
    tree.activate("a").unwrap();
    assert!(rig.kernel.log().iter().all(|call| !call.name.contains("mount")), "{:?}", rig.kernel.log());
    assert_eq!(device_size(&tree, "a"), Bytes::mib(32));
    drop(open);
    tree.activate("a").unwrap();
    assert!(rig.kernel.log().iter().any(|call| call.name.contains("mount")), "{:?}", rig.kernel.log());
    tree.close().unwrap();
}

#[test]
fn snapshots_are_found_by_their_labels_and_know_their_age() {
    let rig = Rig::new();
    let tree = rig.tree();
    let begun = SystemTime::now() - Duration::from_secs(1);
    for (id, kind) in [("a", "layer"), ("b", "container"), ("c", "layer")] {
        tree.add_with(id, Parent::Base, &AddOptions::new().labels(labels(&[("kind", kind)]))).unwrap();
    }
    let ids = |kind: &str| -> Vec<String> {
        tree.labelled("kind", kind).into_iter().map(|info| info.id.to_string()).collect()
    };
    assert_eq!((ids("layer"), ids("other")), (vec!["a".to_owned(), "c".to_owned()], vec![]));
    let moved = tree.change_labels("a", |labels| {
        labels.set("kind", "container")?;
        labels.set("bad key\n", "").map(|()| true)
    });
    assert!(matches!(moved.unwrap_err(), Error::InvalidName { .. }));
    assert_eq!(ids("layer").len(), 2, "nothing has changed");
    assert!(tree.change_labels("a", |labels| labels.set("kind", "container").map(|()| true)).unwrap());
    assert_eq!(ids("container"), ["a", "b"]);
    let created = tree.get("a").unwrap().created.unwrap();
    assert!((begun..=SystemTime::now()).contains(&created));
    drop(tree);
    assert_eq!(rig.tree().get("a").unwrap().created, Some(created));
}

#[test]
fn a_parent_is_not_removed_where_that_is_refused() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    let options = RemoveOptions::new().refuse_children(true);
    let error = tree.remove_with("a", &options).unwrap_err();
    assert!(matches!(&error, Error::HasChildren { id, child } if id == "a" && child == "b"), "{error}");
    let _ = tree.remove_with("b", &options).unwrap();
    let _ = tree.remove_with("a", &options).unwrap();
    assert_eq!(tree.list(), []);
    tree.close().unwrap();
}

#[test]
fn a_device_that_a_failed_activation_leaves_is_known() {
    let rig = Rig::new();
    let options = rig.options().filesystem(Filesystem::Ext4).busy_timeout(Duration::ZERO);
    let tree = rig.open(options).unwrap();
    tree.add("a", Parent::Base).unwrap();
    tree.resize("a", Bytes::mib(32)).unwrap();
    rig.kernel.uninstall("resize2fs");
    rig.kernel.refuse(DM_DEV_REMOVE, Errno::EBUSY);
    assert!(matches!(tree.activate("a"), Err(Error::MkfsMissing { .. })));
    // Who makes a snapshot of it has to suspend it.
    assert!(tree.get("a").unwrap().device.is_some());
    rig.kernel.allow(DM_DEV_REMOVE);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_snapshot_that_was_open_while_it_was_resized_is_sealed_when_it_is_closed() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().filesystem(Filesystem::Ext4)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let file = rig.kernel.open(&device, Access::READ).unwrap();
    tree.resize("a", Bytes::mib(32)).unwrap();
    std::thread::scope(|scope| {
        let sealed = scope.spawn(|| tree.commit("a", "b", Labels::new()));
        std::thread::sleep(Duration::from_millis(50));
        drop(file);
        sealed.join().unwrap().unwrap();
    });
    let device = tree.activate("b").unwrap();
    assert_eq!(rig.kernel.filesystem(&device).unwrap().unwrap().2, Bytes::mib(32));
    tree.close().unwrap();
}

#[test]
fn a_child_of_a_resized_parent_is_sent_as_a_whole() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    tree.resize("a", Bytes::mib(32)).unwrap();
    for id in ["a", "b"] {
        tree.seal(id).unwrap();
    }
    let mut stream = Vec::new();
    tree.send_tree("a", &mut stream, SendOptions::new()).unwrap();
    let other = Rig::new();
    let copy = other.tree();
    copy.receive(&stream[..], ReceiveOptions::new()).unwrap();
    for id in ["a", "b"] {
        let [there, here] = [&tree, &copy].map(|tree| tree.get(id).unwrap());
        assert_eq!((there.sealed, there.size), (here.sealed, here.size));
    }
    copy.close().unwrap();
    tree.close().unwrap();
}

#[test]
fn many_are_added_activated_and_removed_at_once() {
    let rig = Rig::new();
    let tree = rig.tree();
    let ids: Vec<String> = (0..50).map(|n| format!("vm-{n}")).collect();
    tree.add("vm-7", Parent::Base).unwrap();
    let added = tree.add_many(&ids, Parent::Base, &AddOptions::new());
    for (n, added) in added.into_iter().enumerate() {
        match added {
            Ok(()) => assert_ne!(n, 7),
            Err(error) => assert!(n == 7 && matches!(&error, Error::SnapshotExists { id } if id == "vm-7")),
        }
    }
    for (id, path) in ids.iter().zip(tree.activate_many(&ids)) {
        assert!(path.unwrap().to_str().unwrap().ends_with(id));
    }
    assert_eq!(tree.check().unwrap(), []);
    let open = rig.kernel.open(&tree.get("vm-3").unwrap().device.unwrap(), Access::READ).unwrap();
    let failed: Vec<_> = tree.deactivate_many(&ids).into_iter().map(|it| it.is_err()).collect();
    assert_eq!(failed.iter().position(|failed| *failed), Some(3));
    drop(open);
    let removed = tree.remove_many(&ids, &RemoveOptions::new());
    assert!(removed.len() == 50 && removed.iter().all(Result::is_ok));
    assert_eq!((tree.list(), tree.activate_many::<&str>(&[]).len()), (vec![], 0));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_tree_in_use_is_looked_at_without_its_lock() {
    let rig = Rig::new();
    let options = rig.options().checkpoint_at(Bytes::kib(4)).background_threads(true);
    let tree = rig.open(options.clone()).unwrap();
    let acknowledged = AtomicUsize::new(0);
    let id = |n: usize| format!("s-{n:03}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                tree.add(id(n), Parent::Base).unwrap();
                acknowledged.store(n + 1, Ordering::SeqCst);
            }
        });
        let mut looks = 0;
        while acknowledged.load(Ordering::SeqCst) < 200 || looks < 10 {
            let before = acknowledged.load(Ordering::SeqCst);
            let seen = SnapshotTree::open_read_only(rig.root(), &options).unwrap();
            let after = acknowledged.load(Ordering::SeqCst);
            // No gap, nothing missing, nothing that is not there yet.
            assert!(
                (before..=after + 1).contains(&seen.list().len()),
                "{before}, {after}: {}",
                seen.list().len()
            );
            assert!((0..before).all(|n| seen.get(id(n)).is_some()));
            looks += 1;
        }
    });

    let device = tree.activate(id(7)).unwrap();
    let files =
        || std::fs::read_dir(rig.root()).unwrap().map(|it| it.unwrap().file_name()).collect::<BTreeSet<_>>();
    let before = (files(), std::fs::read(rig.root().join("journal.0")).unwrap());
    rig.kernel.clear_log();
    let seen = SnapshotTree::open_read_only(rig.root(), &options).unwrap();
    let changes = [
        "DM_DEV_CREATE",
        "DM_TABLE_LOAD",
        "DM_DEV_SUSPEND",
        "DM_TARGET_MSG",
        "DM_DEV_REMOVE",
        "mknod",
        "flock",
    ];
    assert!(rig.kernel.log().iter().all(|call| !changes.contains(&call.name)), "{:?}", rig.kernel.log());
    assert_eq!((files(), std::fs::read(rig.root().join("journal.0")).unwrap()), before);
    let found = seen.get(id(7)).unwrap();
    assert_eq!((found.device, found.number), (Some(device), tree.get(id(7)).unwrap().number));
    assert_eq!((seen.uuid(), seen.to_text()), (tree.uuid(), tree.to_text()));
    assert_eq!(seen.holders(id(7)).unwrap(), tree.holders(id(7)).unwrap());
    assert_eq!((seen.holders(id(8)), seen.holders("none")), (Some(vec![]), None));
    let (name, status) = seen.pool().unwrap();
    assert_eq!((name, status), (tree.pool().name(), &tree.pool().status().unwrap()));
    tree.close().unwrap();
    drop(tree);
    let seen = SnapshotTree::open_read_only(rig.root(), &options).unwrap();
    assert!(seen.pool().is_none() && seen.manager().is_none() && seen.list().len() == 200);
    assert!(SnapshotTree::open_read_only(rig.directory.path(), &options).is_err());
}

#[test]
fn an_image_comes_back_as_it_was() {
    let rig = Rig::new();
    let tree = rig.tree();
    let mut image = vec![0; 300_000];
    image[70_000..70_010].fill(7);
    image[299_999] = 9;
    tree.import("a", &image[..], Bytes(300_000), &AddOptions::new()).unwrap();
    // Two blocks of five: zeroes take no space.
    assert_eq!(tree.snapshot_status("a").unwrap().mapped, Bytes::kib(128));
    assert_eq!((tree.get("a").unwrap().parent, tree.get("a").unwrap().size), (Lineage::Base, Bytes(303_104)));
    let mut file = tempfile::tempfile().unwrap();
    assert!(matches!(tree.export("a", &file).unwrap_err(), Error::NotSealed { .. }));
    tree.seal("a").unwrap();
    file.write_all(&[1; 400_000]).unwrap();
    tree.export("a", &file).unwrap();
    let mut found = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut found).unwrap();
    image.resize(303_104, 0);
    assert!(found == image, "something else came back");
    assert!(file.metadata().unwrap().blocks() * 512 <= 3 * (64 << 10), "zeroes are holes");

    // What cannot be read leaves nothing.
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("broken"))
        }
    }
    let broken = image[..200_000].chain(Broken);
    let error = tree.import("b", broken, Bytes(300_000), &AddOptions::new()).unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    let error = tree.import("b", &image[..], Bytes(200_000), &AddOptions::new()).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "image size", .. }), "{error}");
    assert!(!tree.contains("b"));
    assert_eq!((tree.reap().unwrap(), tree.check().unwrap()), (0, vec![]));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn an_id_is_any_text() {
    let rig = Rig::new();
    let tree = rig.tree();
    let long = "x/".repeat(128);
    let ids = ["containerd/default/12 ü", "=a", "a\"b", &long];
    for id in ids {
        tree.add(id, Parent::Base).unwrap();
        let device = tree.activate(id).unwrap();
        assert_eq!(tree.get(id).unwrap().device.as_ref(), Some(&device));
        tree.resize(id, Bytes::mib(32)).unwrap();
    }
    tree.rename(ids[0], "12").unwrap();
    tree.rename("12", ids[0]).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    drop(tree);
    let tree = rig.tree();
    for id in ids {
        assert!(tree.get(id).unwrap().device.is_some(), "{id}");
        tree.commit(id, format!("of {}", tree.get(id).unwrap().thin_id), Labels::new()).unwrap();
    }
    for id in ["", "a\n", "base", &"x".repeat(257)] {
        assert!(matches!(tree.add(id, Parent::Base).unwrap_err(), Error::InvalidName { .. }));
    }
    assert_eq!((tree.list().len(), tree.check().unwrap()), (4, vec![]));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_resized_parent_without_a_file_system_has_sealed_children() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.resize("a", Bytes::mib(32)).unwrap();
    let writer = tree.create("b", Some(Parent::Snapshot("a")), &AddOptions::new()).unwrap();
    writer.write_at(Bytes(0), b"text").unwrap();
    writer.commit_sealed().unwrap();
    tree.close().unwrap();
}

#[test]
fn a_device_is_read_only_for_who_asks_for_that() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.add("sealed", Parent::Base).unwrap();
    tree.seal("sealed").unwrap();
    let read_only = DeviceOptions::new().read_only(true);
    let write = |device: &SnapshotDevice| {
        let file = rig.kernel.open(device.path(), Access::READ_WRITE).unwrap();
        rig.kernel.write_at(&file, 0, &[1; 4096])
    };
    let otherwise = |error: Error, is: bool| matches!(error, Error::ActiveOtherwise { id, read_only } if id == "a" && read_only == is);

    let device = tree.activate_with("a", &read_only).unwrap();
    assert_eq!(
        (write(&device), device.path()),
        (Err(Errno::EPERM), &*tree.get("a").unwrap().device.unwrap())
    );
    assert_eq!(Some(device.number()), tree.get("a").unwrap().number);
    assert!(matches!(tree.deactivate("a").unwrap_err(), Error::Busy { .. }));
    drop(device);
    // Whoever wants to write is told.
    assert!(otherwise(tree.activate("a").unwrap_err(), true));
    assert!(otherwise(tree.seal("a").unwrap_err(), true));
    // Also by the next manager, if it is in use.
    let used = rig.kernel.open(&tree.get("a").unwrap().device.unwrap(), Access::READ).unwrap();
    drop(tree);
    let tree = rig.tree();
    assert!(otherwise(tree.activate("a").unwrap_err(), true));
    drop(used);
    tree.activate_with("a", &read_only).unwrap();
    tree.deactivate("a").unwrap();

    let device = tree.activate_with("a", &DeviceOptions::new()).unwrap();
    write(&device).unwrap();
    assert!(otherwise(tree.activate_with("a", &read_only).unwrap_err(), false));
    drop(device);
    tree.deactivate("a").unwrap();
    // A sealed one is read-only, whatever is asked for.
    for options in [&DeviceOptions::new(), &read_only] {
        assert_eq!(write(&tree.activate_with("sealed", options).unwrap()), Err(Errno::EPERM));
    }
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn a_node_that_cannot_be_given_away_leaves_nothing_active() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let refused = tree.activate_with("a", &DeviceOptions::new().owner(1000, 1000).mode(0o10000)).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EINVAL));
    assert_eq!(tree.get("a").unwrap().device, None);
    tree.activate_with("a", &DeviceOptions::new().owner(1000, 1000).mode(0o660)).unwrap();
    tree.close().unwrap();
}

#[test]
fn a_propagation_that_fails_leaves_no_mount() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().filesystem(Filesystem::Ext4)).unwrap();
    let target = rig.directory.path().join("mounted");
    tree.add("a", Parent::Base).unwrap();
    let private = MountOptions::new().flags(MountFlags::PRIVATE);
    let mounts = || rig.kernel.log().iter().filter(|call| call.name == "mount").count();
    rig.kernel.clear_log();
    tree.mount_with("a", &target, &private).unwrap();
    assert_eq!(mounts(), 2, "one that mounts, one that sets the propagation");
    tree.unmount("a").unwrap();
    // The second one fails.
    rig.kernel.clear_log();
    tree.mount("a", &target).unwrap();
    let calls = rig.kernel.log().iter().position(|call| call.name == "mount").unwrap() as u64;
    tree.unmount("a").unwrap();
    let failed = (calls + 1..calls + 20).any(|call| {
        rig.kernel.fail_at(call, Errno::EPERM);
        let result = tree.mount_with("a", &target, &private);
        rig.kernel.heal();
        match result {
            Ok(()) => tree.unmount("a").map(|()| false).unwrap(),
            Err(error) => {
                assert_eq!(tree.get("a").unwrap().mounted, None);
                error.to_string().contains("flags 0x40000")
            }
        }
    });
    assert!(failed, "no call was the second one");
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}
