//! What errors tell: what, why, and what to do.

use std::path::Path;

use dm_thin::kernel::{Access, DeviceFile, Kernel, ProcessName};
use dm_thin::thin::ThinId;
use dm_thin::tree::Error;
use dm_thin::tree::{Filesystem, Holder, Parent, RemoveOptions};
use dm_thin::units::Bytes;

use super::rig::Rig;

fn sleep() -> ProcessName {
    ProcessName { pid: 233, command: "sleep".to_owned() }
}

fn hold(rig: &Rig, device: &Path) -> DeviceFile {
    rig.kernel.process_called(sleep()).open(device, Access::READ).unwrap()
}

#[test]
fn a_locked_root_names_the_process() {
    let rig = Rig::new();
    let tree = rig.tree();
    let error = rig.open(rig.options()).unwrap_err();
    let command = std::fs::read_to_string("/proc/self/comm").unwrap();
    let root = tree.root().display();
    assert_eq!(error.to_string(), format!("{root} is locked by {}[{}]", command.trim(), std::process::id()));
}

#[test]
fn a_busy_device_names_the_snapshot_and_the_process() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().busy_timeout(std::time::Duration::ZERO)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let name = device.file_name().unwrap().to_str().unwrap();
    let file = hold(&rig, &device);
    assert_eq!(tree.holders("a").unwrap(), [Holder::Process(sleep())]);
    let text = format!("snapshot \"a\" is busy: open in sleep[233] (device {name}, open count 1)");
    for result in [tree.deactivate("a"), tree.remove("a"), tree.seal("a").map(drop), tree.close()] {
        assert_eq!(result.unwrap_err().to_string(), text);
    }
    // Removed for callers, it is not in the way of the next one of that id.
    let _ = tree.remove_with("a", &RemoveOptions::new().deferred(true)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    drop(file);
    // Opened by this process.
    let own = rig.kernel.open(&tree.activate("a").unwrap(), Access::READ).unwrap();
    assert!(matches!(&tree.holders("a").unwrap()[..], [Holder::Process(it)] if it.pid == std::process::id()));
    drop(own);
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_deferred_removal_does_not_search_for_holders() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().busy_timeout(std::time::Duration::ZERO)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let _file = hold(&rig, &tree.activate("a").unwrap());
    rig.kernel.clear_log();
    let _ = tree.remove_with("a", &RemoveOptions::new().deferred(true)).unwrap();
    assert_eq!(tree.reap().unwrap(), 1);
    assert!(rig.kernel.log().iter().all(|call| call.name != "process"));
}

#[test]
fn a_volume_deleted_by_another_program_is_named() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let (pool, id) = (tree.pool().name(), tree.get("a").unwrap().thin_id);
    tree.pool().delete(id).unwrap();
    let text = format!(
        "snapshot \"a\" is lost: its volume (thin device {id}) is not in pool {pool}, another program deleted it; \
         what is left is to remove the snapshot"
    );
    for result in [tree.activate("a").map(drop), tree.add("b", Parent::Snapshot("a"))] {
        let error = result.unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), text);
    }
    tree.remove("a").unwrap();
    let base = ThinId::new(0).unwrap();
    tree.pool().delete(base).unwrap();
    assert_eq!(
        tree.add("b", Parent::Base).unwrap_err().to_string(),
        format!(
            "the base is lost: its volume (thin device 0) is not in pool {pool}, another program deleted it"
        )
    );
}

#[test]
fn a_missing_pool_is_named() {
    let rig = Rig::new();
    let error = rig.open(rig.adopting("vg-pool")).unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "device mapper has no pool vg-pool; its owner has to activate it first (LVM: lvchange -ay)"
    );
    assert!(!rig.root().exists());
    // Nor is it when the tree is opened again.
    let pool = rig.pool();
    rig.open(rig.adopting("vg-pool")).unwrap().close().unwrap();
    pool.deactivate().unwrap();
    assert!(matches!(rig.open(rig.adopting("vg-pool")), Err(Error::NoPool { name }) if name == "vg-pool"));
}

#[test]
fn a_missing_directory_is_named() {
    let rig = Rig::new();
    let above = rig.directory.path().join("no");
    let root = above.join("such");
    let error = dm_thin::tree::SnapshotTree::open(&root, rig.options()).unwrap_err();
    assert!(error.is_not_found());
    let text = format!("{} does not exist; create it before {}", above.display(), root.display());
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_base_too_small_for_xfs_is_refused() {
    let rig = Rig::new();
    let options = rig.options().filesystem(Filesystem::Xfs).base_size(Bytes::mib(64));
    let error = rig.open(options).unwrap_err();
    assert_eq!(error.to_string(), "base size: 64 MiB: mkfs.xfs makes no file system below 300 MiB");
    assert!(!rig.root().exists());
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn low_space_names_human_sizes_and_the_option() {
    let rig = Rig::new();
    let half = dm_thin::thin::MinFree::Bytes(Bytes::kib(1536));
    let tree = rig.open(rig.options().min_free_data(half)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let pool = tree.pool().name().to_string();
    rig.kernel.fill(device.file_name().unwrap().to_str().unwrap(), 7).unwrap();
    assert_eq!(
        tree.add("b", Parent::Base).unwrap_err().to_string(),
        format!(
            "pool {pool}: 448 KiB of data space free, at least 1.5 MiB required (min_free_data); \
             remove snapshots or grow the pool"
        )
    );
}
