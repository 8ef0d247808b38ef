//! File systems on snapshots: what is put into them, and what they give back.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use dm_thin::tree::{
    AddOptions, Consistency, Filesystem, InitLayer, Parent, Removal, RemoveOptions, SnapshotTree,
};
use dm_thin::units::Bytes;

use crate::bench::{Bench, small};

#[test]
fn the_init_layer_is_applied_to_each_mount() {
    let bench = Bench::new();
    let layer =
        || InitLayer::new().directory("/dev/shm").file("/etc/hosts").symlink("/etc/mtab", "/proc/mounts");
    let tree = SnapshotTree::open(bench.root(), small().init_layer(layer())).unwrap();
    let target = bench.path().join("target");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    // As the image of ubuntu:12.10 had it.
    fs::remove_dir(target.join("dev/shm")).unwrap();
    symlink("/run/shm", target.join("dev/shm")).unwrap();
    tree.unmount("image").unwrap();
    // It is put on once: this is the image's own now.
    tree.mount("image", &target).unwrap();
    assert!(target.join("dev/shm").is_symlink());
    tree.unmount("image").unwrap();
    tree.add("container", Parent::Snapshot("image")).unwrap();
    let tree = {
        drop(tree);
        SnapshotTree::open(bench.root(), small().init_layer(layer())).unwrap()
    };
    tree.mount("container", &target).unwrap();
    assert!(target.join("dev/shm").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read_link(target.join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    tree.unmount("container").unwrap();
    tree.close().unwrap();
}

#[test]
fn an_init_layer_that_cannot_be_applied_leaves_nothing_mounted() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    fs::create_dir_all(target.join("etc/hosts/full")).unwrap();
    tree.unmount("image").unwrap();
    tree.add("container", Parent::Snapshot("image")).unwrap();
    tree.close().unwrap();
    drop(tree);
    let options = small().init_layer(InitLayer::new().file("/etc/hosts"));
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    let error = tree.mount("container", &target).unwrap_err();
    assert!(error.to_string().ends_with("etc/hosts: Directory not empty (os error 39)"), "{error}");
    assert!(tree.get("container").unwrap().device.is_none() && !target.exists());
    tree.close().unwrap();
}

/// How much more a loop file holds after 16 MiB were written to a snapshot, and after it was removed.
fn written_and_removed(bench: &Bench, name: &str, discard: bool) -> (u64, u64) {
    let (root, target) = (bench.path().join(name), bench.path().join("target"));
    let tree = SnapshotTree::open(&root, small().blkdiscard(discard)).unwrap();
    let used = || fs::metadata(root.join("pool/data")).unwrap().blocks() / 2048;
    let before = used();
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    fs::write(target.join("file"), vec![7; 16 << 20]).unwrap();
    tree.unmount("image").unwrap();
    let written = used() - before;
    tree.remove("image").unwrap();
    let removed = used().saturating_sub(before);
    tree.close().unwrap();
    (written, removed)
}

#[test]
fn removing_gives_the_loop_files_space_back() {
    let bench = Bench::new();
    let (written, removed) = written_and_removed(&bench, "discard", true);
    assert!(written >= 15 && removed <= 2, "{written} MiB, then {removed} MiB");
    let (written, removed) = written_and_removed(&bench, "keep", false);
    assert!(written >= 15 && removed >= 15, "{written} MiB, then {removed} MiB");
}

#[test]
fn a_snapshot_that_is_open_elsewhere_is_removed_when_it_is_closed() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    let file = fs::File::open(tree.activate("image").unwrap()).unwrap();
    let deferred = RemoveOptions::new().deferred(true).busy_timeout(std::time::Duration::ZERO);
    assert_eq!(tree.remove_with("image", &deferred).unwrap(), Removal::Deferred);
    assert_eq!(tree.reap().unwrap(), 1);
    let tree = bench.reopen(tree);
    assert_eq!(tree.deferred(), 1);
    drop(file);
    assert_eq!(tree.reap().unwrap(), 0);
    tree.add("image", Parent::Base).unwrap();
    tree.close().unwrap();
}

#[test]
fn a_crash_consistent_snapshot_of_a_mounted_parent_has_what_was_synced() {
    for filesystem in [Filesystem::Ext4, Filesystem::Xfs] {
        let bench = Bench::new();
        let options = || small().base_size(Bytes::mib(320)).filesystem(filesystem);
        let tree = SnapshotTree::open(bench.root(), options()).unwrap();
        let (parent, child) = (bench.path().join("parent"), bench.path().join("child"));
        tree.add("parent", Parent::Base).unwrap();
        tree.mount("parent", &parent).unwrap();
        for round in 0..3 {
            let synced = fs::File::create(parent.join(format!("synced{round}"))).unwrap();
            (&synced).write_all(&[round; 5000]).unwrap();
            synced.sync_all().unwrap();
            fs::write(parent.join(format!("cached{round}")), [round; 5000]).unwrap();
            let options = AddOptions::new().consistency(Consistency::Crash);
            tree.add_with("child", Parent::Snapshot("parent"), &options).unwrap();
            tree.mount("child", &child).unwrap();
            for round in 0..=round {
                assert_eq!(fs::read(child.join(format!("synced{round}"))).unwrap(), [round; 5000]);
            }
            fs::write(child.join("own"), "text").unwrap();
            tree.unmount("child").unwrap();
            tree.remove("child").unwrap();
        }
        tree.unmount("parent").unwrap();
        assert_eq!(tree.check().unwrap(), []);
        tree.close().unwrap();
    }
}

#[test]
fn a_mounted_snapshot_is_renamed() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    tree.add("before", Parent::Base).unwrap();
    tree.mount("before", &target).unwrap();
    fs::write(target.join("file"), "kept").unwrap();
    tree.rename("before", "after").unwrap();
    let tree = bench.reopen(tree);
    let info = tree.get("after").unwrap();
    assert_eq!(info.mounted.as_deref(), Some(&*target));
    assert!(info.device.unwrap().to_str().unwrap().ends_with("-after"));
    tree.unmount("after").unwrap();
    tree.mount("after", &target).unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "kept");
    tree.unmount("after").unwrap();
    tree.close().unwrap();
}

#[test]
fn xfs_nospace_max_retries_is_applied() {
    let bench = Bench::new();
    let options = small().filesystem(Filesystem::Xfs).base_size(Bytes::mib(320)).xfs_nospace_max_retries(0);
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    let target = bench.path().join("target");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    let device = fs::metadata(tree.get("image").unwrap().device.unwrap()).unwrap().rdev();
    let minor = nix::sys::stat::minor(device);
    let retries = format!("/sys/fs/xfs/dm-{minor}/error/metadata/ENOSPC/max_retries");
    assert_eq!(fs::read_to_string(retries).unwrap().trim(), "0");
    tree.unmount("image").unwrap();
    tree.close().unwrap();
}
