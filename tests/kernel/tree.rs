//! The tree: what it promises to its callers.

use std::fs;
use std::sync::Arc;

use dm_thin::thin::{Message, PoolStatus, ThinId, TransactionId};
use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Filesystem, Finding, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use nix::sys::statvfs::statvfs;

use crate::bench::{Bench, dm, small};
use crate::spy::Spy;

/// Write a file into a snapshot.
fn fill(bench: &Bench, tree: &SnapshotTree, id: &str, text: &str) {
    let target = bench.path().join("fill");
    tree.mount(id, &target).unwrap();
    fs::write(target.join("file"), text).unwrap();
    tree.unmount(id).unwrap();
}

/// Read it back.
fn text(bench: &Bench, tree: &SnapshotTree, id: &str) -> String {
    let target = bench.path().join("text");
    tree.mount(id, &target).unwrap();
    let text = fs::read_to_string(target.join("file")).unwrap_or_default();
    tree.unmount(id).unwrap();
    text
}

fn remove_all(tree: &SnapshotTree) {
    for snapshot in tree.list() {
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    tree.close().unwrap();
}

#[test]
fn snapshots_are_isolated_from_their_origin() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    fill(&bench, &tree, "image", "image");
    tree.add("one", Parent::Snapshot("image")).unwrap();
    tree.add("two", Parent::Snapshot("image")).unwrap();
    fill(&bench, &tree, "one", "one");
    fill(&bench, &tree, "image", "changed");
    assert_eq!(text(&bench, &tree, "one"), "one");
    assert_eq!(text(&bench, &tree, "two"), "image");
    remove_all(&tree);
}

#[test]
fn a_mounted_origin_can_be_snapshotted() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("mounted");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    // Not synced: suspending freezes the file system, which writes it out.
    fs::write(target.join("file"), "written a moment ago").unwrap();
    tree.add("copy", Parent::Snapshot("image")).unwrap();
    fs::write(target.join("file"), "written later").unwrap();
    tree.unmount("image").unwrap();
    assert_eq!(text(&bench, &tree, "copy"), "written a moment ago");
    assert_eq!(text(&bench, &tree, "image"), "written later");
    remove_all(&tree);
}

#[test]
fn one_directory_takes_one_snapshot() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.root().join("target");
    for id in ["below", "above"] {
        tree.add(id, Parent::Base).unwrap();
    }
    tree.mount("below", &target).unwrap();
    let error = tree.mount("above", bench.root().join("./target")).unwrap_err();
    assert!(matches!(&error, Error::Mounted { id, .. } if id == "below") && error.is_busy(), "{error}");
    assert_eq!(tree.get("above").unwrap().device, None);
    tree.unmount("below").unwrap();
    tree.mount("above", &target).unwrap();
    tree.unmount("above").unwrap();
    remove_all(&tree);
}

#[test]
fn open_restores_the_tree_after_a_close() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    fill(&bench, &tree, "image", "kept");
    tree.add("container", Parent::Snapshot("image")).unwrap();
    let before = tree.list();
    tree.close().unwrap();
    drop(tree);
    bench.audit();
    let tree = bench.tree();
    assert_eq!(tree.list(), before);
    assert_eq!(text(&bench, &tree, "container"), "kept");
    remove_all(&tree);
}

#[test]
fn open_restores_the_tree_after_a_reboot() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    fill(&bench, &tree, "image", "kept");
    tree.activate("image").unwrap();
    bench.restart(tree);
    bench.audit();
    let tree = bench.tree();
    assert_eq!(text(&bench, &tree, "image"), "kept");
    assert_eq!(tree.get("image").unwrap().device, None);
    remove_all(&tree);
}

#[test]
fn active_and_mounted_snapshots_survive_their_manager() {
    let bench = Bench::new();
    let tree = bench.tree();
    // In the root, of all places, and with a blank.
    let target = bench.root().join("a target");
    for id in ["active", "mounted", "idle"] {
        tree.add(id, Parent::Base).unwrap();
    }
    let device = tree.activate("active").unwrap();
    tree.mount("mounted", &target).unwrap();
    fs::write(target.join("file"), "open").unwrap();

    let tree = bench.reopen(tree);
    assert_eq!(tree.get("active").unwrap().device, Some(device));
    assert_eq!(tree.get("mounted").unwrap().mounted, Some(target.clone()));
    assert_eq!(tree.get("idle").unwrap().device, None);
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "open");
    tree.unmount("mounted").unwrap();
    assert_eq!(tree.get("mounted").unwrap().device, None);
    assert_eq!(text(&bench, &tree, "mounted"), "open");
    remove_all(&tree);
}

#[test]
fn mounts_are_counted() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("counted");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    tree.mount("image", &target).unwrap();
    tree.unmount("image").unwrap();
    assert_eq!(tree.get("image").unwrap().mounted, Some(target.clone()));
    tree.unmount("image").unwrap();
    assert_eq!(tree.get("image").unwrap().device, None);
    assert!(!target.exists(), "made by mount, removed by unmount");
    remove_all(&tree);
}

#[test]
fn an_activated_snapshot_stays_active_when_unmounted() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    let device = tree.activate("image").unwrap();
    assert_eq!(text(&bench, &tree, "image"), "");
    assert_eq!(tree.get("image").unwrap().device, Some(device));
    tree.deactivate("image").unwrap();
    assert_eq!(tree.get("image").unwrap().device, None);
    remove_all(&tree);
}

#[test]
fn a_larger_snapshot_has_a_larger_file_system() {
    let bench = Bench::new();
    // XFS wants 300 MiB to begin with.
    for (filesystem, size) in [(Filesystem::Ext4, Bytes::mib(64)), (Filesystem::Xfs, Bytes::mib(320))] {
        let options = || small().filesystem(filesystem).base_size(size);
        let tree = SnapshotTree::open(bench.root(), options()).unwrap();
        let larger = AddOptions::new().size(Bytes(size.0 * 2));
        tree.add_with("larger", Parent::Base, &larger).unwrap();
        tree.add("child", Parent::Snapshot("larger")).unwrap();
        assert_eq!(tree.get("child").unwrap().size, Bytes(size.0 * 2));
        assert!(file_system_size(&bench, &tree, "child").0 > size.0 * 3 / 2);
        // So is one from a base that has grown since.
        tree.close().unwrap();
        drop(tree);
        let tree = SnapshotTree::open(bench.root(), options().base_size(Bytes(size.0 * 3))).unwrap();
        tree.add("grown", Parent::Base).unwrap();
        assert!(file_system_size(&bench, &tree, "grown").0 > size.0 * 5 / 2);
        remove_all(&tree);
        fs::remove_dir_all(bench.root()).unwrap();
    }
}

fn file_system_size(bench: &Bench, tree: &SnapshotTree, id: &str) -> Bytes {
    let target = bench.path().join("size");
    tree.mount(id, &target).unwrap();
    let stat = statvfs(&target).unwrap();
    tree.unmount(id).unwrap();
    #[allow(clippy::useless_conversion)] // the types differ between architectures
    Bytes(u64::from(stat.blocks()) * u64::from(stat.fragment_size()))
}

#[test]
fn a_block_device_needs_no_file_system() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), small().filesystem(Filesystem::None)).unwrap();
    tree.add("disk", Parent::Base).unwrap();
    let device = tree.activate("disk").unwrap();
    fs::write(&device, "raw").unwrap();
    tree.deactivate("disk").unwrap();
    tree.add("copy", Parent::Snapshot("disk")).unwrap();
    let bytes = fs::read(tree.activate("copy").unwrap()).unwrap();
    assert_eq!(bytes.len(), 64 << 20);
    assert_eq!(&bytes[..3], b"raw");
    assert!(bytes[3..].iter().all(|&byte| byte == 0), "new blocks are zeroed");
    assert!(tree.mount("copy", bench.path().join("nothing")).is_err());
    tree.deactivate("copy").unwrap();
    remove_all(&tree);
}

#[test]
fn a_volume_without_a_record_is_deleted_at_the_next_open() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    let leaked = ThinId::new(7).unwrap();
    tree.pool().create_thin(leaked).unwrap();
    let tree = bench.reopen(tree);
    assert!(tree.pool().delete(leaked).unwrap_err().is_not_found());
    assert!(tree.contains("image"));
    remove_all(&tree);
}

#[test]
fn a_state_older_than_its_pool_is_refused() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    tree.close().unwrap();
    drop(tree);
    let root = bench.root();
    let old = ["state.json", "journal.0", "journal.1", "lock"]
        .map(|name| (name, fs::read(root.join(name)).unwrap()));
    let tree = bench.tree();
    tree.add("later", Parent::Base).unwrap();
    tree.close().unwrap();
    drop(tree);
    let tree = bench.tree();
    tree.close().unwrap();
    drop(tree);
    for (name, bytes) in old {
        fs::write(root.join(name), bytes).unwrap();
    }
    let error = SnapshotTree::open(&root, Options::new()).unwrap_err();
    assert!(matches!(error, Error::StateOlderThanPool { .. }), "{error}");
    // Nothing was deleted: whoever knows better finds all of it.
    let tree = SnapshotTree::open(&root, Options::new().accept_older_state(true)).unwrap();
    assert!(tree.contains("image") && matches!(tree.check().unwrap()[..], [Finding::Orphan { .. }]));
    tree.close().unwrap();
}

#[test]
fn the_hot_path_keeps_to_its_budget() {
    let bench = Bench::new();
    let spy = Arc::new(Spy::default());
    let options = small().kernel(spy.clone()).blkdiscard(false);
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    let (message, suspend, remove) = ("DM_TARGET_MSG", "DM_DEV_SUSPEND", "DM_DEV_REMOVE");
    // What was seen of the pool serves for a second; the open took longer, perhaps.
    tree.status().unwrap();
    assert_eq!(spy.during(|| tree.add("image", Parent::Base).unwrap()), [message]);
    assert_eq!(spy.during(|| tree.add("idle", Parent::Snapshot("image")).unwrap()), [message]);
    let activate = spy.during(|| drop(tree.activate("image").unwrap()));
    assert_eq!(activate, ["DM_DEV_CREATE", "DM_TABLE_LOAD", suspend]);
    tree.status().unwrap();
    let add = spy.during(|| tree.add("copy", Parent::Snapshot("image")).unwrap());
    assert_eq!(add, [suspend, message, suspend]);
    assert_eq!(spy.during(|| tree.deactivate("image").unwrap()), [remove]);
    assert_eq!(spy.during(|| tree.remove("image").unwrap()), [message]);
    remove_all(&tree);
}

#[test]
fn status_shows_expedited_grace_periods() {
    let bench = Bench::new();
    let tree = bench.tree();
    let setting = "/sys/kernel/rcu_expedited";
    let before = fs::read_to_string(setting).unwrap();
    for expedited in [true, false] {
        fs::write(setting, if expedited { "1" } else { "0" }).unwrap();
        assert_eq!(tree.status().unwrap().rcu_expedited, Some(expedited));
    }
    fs::write(setting, before).unwrap();
    tree.close().unwrap();
}

#[test]
fn the_pool_grows_while_a_snapshot_is_mounted() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("mounted");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    fs::write(target.join("file"), "kept").unwrap();
    tree.grow_pool(Bytes::gib(2)).unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "kept");
    assert_eq!(fs::metadata(bench.root().join("pool/data")).unwrap().len(), Bytes::gib(2).0);
    let blocks = |tree: &SnapshotTree| match tree.pool().status().unwrap() {
        PoolStatus::Usage(usage) => usage.total_data.0,
        status => panic!("{status}"),
    };
    assert_eq!(blocks(&tree), 32_768);
    assert!(matches!(tree.grow_pool(Bytes::gib(1)), Err(Error::OptionConflict { option: "data size", .. })));
    assert!(matches!(tree.grow_pool(Bytes(1000)), Err(Error::InvalidOption { .. })));
    tree.unmount("image").unwrap();
    bench.restart(tree);
    // The program's next start asks for what it always asked for.
    let tree = SnapshotTree::open(bench.root(), small()).unwrap();
    assert_eq!(blocks(&tree), 32_768);
    assert_eq!(text(&bench, &tree, "image"), "kept");
    // More of it is.
    drop(tree);
    let tree = SnapshotTree::open(bench.root(), small().data_size(Bytes::gib(3))).unwrap();
    assert_eq!(blocks(&tree), 49_152);
    assert_eq!(text(&bench, &tree, "image"), "kept");
    remove_all(&tree);
}

#[test]
fn two_trees_live_side_by_side() {
    let bench = Bench::new();
    let tree = bench.tree();
    let other = SnapshotTree::open(bench.path().join("other"), small()).unwrap();
    for tree in [&tree, &other] {
        tree.add("image", Parent::Base).unwrap();
        tree.activate("image").unwrap();
    }
    let active =
        dm().list().unwrap().iter().filter(|device| device.name.as_bytes().ends_with(b"-image")).count();
    assert_eq!(active, 2);
    // The other tree's pool does not know this one's transaction.
    assert!(
        other
            .pool()
            .message(Message::SetTransactionId { current: TransactionId(7), new: TransactionId(8) })
            .is_err()
    );
    remove_all(&tree);
    remove_all(&other);
}
