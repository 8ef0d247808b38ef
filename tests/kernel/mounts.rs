//! Mounts are recognised by what they are, whatever others do to the same directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use dm_thin::tree::Error;
use dm_thin::tree::{Finding, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::bench::{Bench, names, small};

fn tmpfs(target: &Path) {
    mount(Some("none"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn unmount(target: &Path) {
    umount2(target, MntFlags::empty()).unwrap();
}

#[test]
fn concurrent_mounts_do_not_share_a_directory() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    for id in ["x", "y"] {
        tree.add(id, Parent::Base).unwrap();
    }
    for round in 0..10 {
        // Made by this call in one half of the rounds.
        if round % 2 == 0 {
            fs::create_dir(&target).unwrap();
        }
        let begin = Barrier::new(2);
        let results = thread::scope(|scope| {
            let run = |id: &'static str| {
                let (tree, begin, target) = (&tree, &begin, &target);
                scope.spawn(move || {
                    begin.wait();
                    tree.mount(id, target).map(|()| id)
                })
            };
            [run("x"), run("y")].map(|thread| thread.join().unwrap())
        });
        let mounted: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        assert_eq!(mounted.len(), 1, "{results:?}");
        tree.unmount(mounted[0]).unwrap();
        if target.exists() {
            fs::remove_dir(&target).unwrap();
        }
    }
    // Neither under another name of the directory.
    fs::create_dir(&target).unwrap();
    tree.mount("x", &target).unwrap();
    for other in [bench.path().join("./target"), bench.path().join("x/../target")] {
        fs::create_dir_all(bench.path().join("x")).unwrap();
        assert!(matches!(tree.mount("y", other), Err(Error::Mounted { id, .. }) if id == "x"));
    }
    tree.unmount("x").unwrap();
    tree.close().unwrap();
}

#[test]
fn unmount_does_not_take_down_a_mount_stacked_on_top() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", &target).unwrap();
    tmpfs(&target);
    fs::write(target.join("theirs"), "").unwrap();
    let error = tree.unmount("a").unwrap_err();
    assert!(matches!(&error, Error::Covered { target: at } if *at == target), "{error}");
    assert!(error.is_busy() && target.join("theirs").exists());
    // The next manager knows it, too.
    let tree = bench.reopen(tree);
    assert_eq!(tree.get("a").unwrap().mounted.as_deref(), Some(&*target));
    assert!(matches!(tree.unmount("a"), Err(Error::Covered { .. })));
    unmount(&target);
    tree.unmount("a").unwrap();
    assert!(!target.exists());
    tree.close().unwrap();
}

#[test]
fn a_mount_of_another_program_is_not_taken_over() {
    let bench = Bench::new();
    let tree = bench.tree();
    let (ours, theirs) = (bench.path().join("ours"), bench.path().join("theirs"));
    tree.add("a", Parent::Base).unwrap();
    fs::create_dir(&theirs).unwrap();
    let device = tree.activate("a").unwrap();
    mount(Some(&device), &theirs, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    let tree = bench.reopen(tree);
    assert_eq!(tree.get("a").unwrap().mounted, None);
    assert!(matches!(tree.unmount("a"), Err(Error::NotMounted { .. })));
    tree.mount("a", &ours).unwrap();
    // Ours is taken down by somebody, who puts his own in its place.
    unmount(&ours);
    mount(Some(&device), &ours, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    let tree = bench.reopen(tree);
    let also = tree.check().unwrap();
    if unique_ids() {
        assert_eq!(also.len(), 2, "{also:?}");
        assert!(also.iter().all(|finding| matches!(finding, Finding::AlsoMounted { .. })), "{also:?}");
        assert_eq!(tree.get("a").unwrap().mounted, None);
    }
    unmount(&theirs);
    if unique_ids() {
        unmount(&ours);
        fs::remove_dir(&ours).unwrap();
    } else {
        tree.unmount("a").unwrap();
    }
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

/// Without STATX_MNT_ID_UNIQUE a mount with the same plain id on the same directory is the same mount.
fn unique_ids() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

#[test]
fn mount_works_after_a_foreign_unmount() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    for id in ["a", "b"] {
        tree.add(id, Parent::Base).unwrap();
    }
    tree.mount("a", &target).unwrap();
    unmount(&target);
    tree.mount("a", &target).unwrap();
    fs::write(target.join("file"), "").unwrap();
    unmount(&target);
    tree.mount("b", &target).unwrap();
    assert!(!target.join("file").exists());
    tree.unmount("a").unwrap();
    assert!(target.join("lost+found").exists());
    tree.unmount("b").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_mount_is_taken_over_where_it_is_now() {
    let bench = Bench::new();
    let tree = bench.tree();
    let [before, after] = ["before", "after"].map(|name| bench.path().join(name));
    fs::create_dir(&before).unwrap();
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", before.join("target")).unwrap();
    drop(tree);
    fs::rename(&before, &after).unwrap();
    let tree = bench.tree();
    assert_eq!(tree.get("a").unwrap().mounted, Some(after.join("target")));
    tree.unmount("a").unwrap();
    assert!(!after.join("target").exists());
    tree.close().unwrap();
}

#[test]
fn a_base_without_lost_found_is_empty_before_and_after_it_grows() {
    let bench = Bench::new();
    let target = bench.path().join("target");
    for size in [64, 128] {
        let options = small().base_size(Bytes::mib(size)).lost_found(false);
        let tree = SnapshotTree::open(bench.root(), options).unwrap();
        let id = format!("{size}");
        tree.add(&id, Parent::Base).unwrap();
        tree.mount(&id, &target).unwrap();
        assert!(names(&target).is_empty());
        tree.unmount(&id).unwrap();
        tree.close().unwrap();
    }
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let bench = Bench::new();
    let tree = bench.tree();
    let path = |name: &str| bench.path().join(name);
    tree.add("a", Parent::Base).unwrap();
    fs::create_dir_all(path("etc/cron.d")).unwrap();
    symlink("etc", path("target")).unwrap();
    assert!(matches!(tree.mount("a", path("target")), Err(Error::InvalidOption { .. })));
    // As a tenant could make it, in a directory of his.
    symlink(path("etc"), path("link")).unwrap();
    std::os::unix::fs::lchown(path("link"), Some(12345), None).unwrap();
    for below in ["link/cron.d", "link/new"] {
        let error = tree.mount("a", path(below)).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::EACCES), "{error}");
    }
    assert!(!path("etc/new").exists());
    // One of root's own is.
    symlink(path("etc"), path("own")).unwrap();
    tree.mount("a", path("own/cron.d")).unwrap();
    assert_eq!(tree.get("a").unwrap().mounted, Some(path("etc/cron.d")));
    tree.mount("a", path("etc/cron.d")).unwrap();
    tree.unmount("a").unwrap();
    tree.unmount("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn mount_directories_of_a_killed_manager_are_removed() {
    let bench = Bench::new();
    let tree = bench.tree();
    let [one, two, full] = ["one", "two", "full"].map(|name| bench.path().join(name));
    for (id, target) in [("one", &one), ("two", &two), ("full", &full)] {
        tree.add(id, Parent::Base).unwrap();
        tree.mount(id, target).unwrap();
    }
    let tree = bench.reopen(tree);
    tree.unmount("one").unwrap();
    assert!(!one.exists());
    // As after a restart; somebody uses one of them.
    drop(tree);
    for target in [&two, &full] {
        unmount(target);
    }
    fs::write(full.join("theirs"), "").unwrap();
    let tree = SnapshotTree::open(bench.root(), small()).unwrap();
    assert!(!two.exists() && full.join("theirs").exists());
    for id in ["two", "full"] {
        tree.deactivate(id).unwrap();
    }
    tree.close().unwrap();
}
