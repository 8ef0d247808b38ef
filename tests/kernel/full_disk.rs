//! A root on a file system that somebody else fills.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::kernel::{Kernel, RealKernel};
use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::thin::PoolMode;
use dm_thin::tree::Error;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::bench::{Bench, small};
use crate::rig::{drop_caches, holds, write};

/// A file system of its own on a loop device, and somebody who takes all of its space. Unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(bench: &Bench, filesystem: &str, size: Bytes) -> Self {
        let (image, path) = (bench.path().join(format!("{filesystem}.img")), bench.path().join(filesystem));
        let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
        file.set_len(size.0).unwrap();
        let made = Command::new(format!("mkfs.{filesystem}")).arg("-q").arg(&image).status().unwrap();
        assert!(made.success());
        fs::create_dir(&path).unwrap();
        let options = AttachOptions::new().autoclear(true);
        let device = LoopControl::open().unwrap().attach(&file, &image, &options).unwrap();
        RealKernel.mount(Some(&device.path()), &path, Some(filesystem), Default::default(), "").unwrap();
        Self(path)
    }

    fn tenant(&self) -> PathBuf {
        self.0.join("tenant")
    }

    /// Nobody else finds a block.
    fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.tenant()).unwrap();
        for step in [1 << 20, 64 << 10, 4096] {
            let end = || libc_offset(file.metadata().unwrap().len());
            while fallocate(&file, FallocateFlags::empty(), end(), step) != Err(Errno::ENOSPC) {}
        }
        while file.write_all(&[1; 512]).is_ok() {}
    }
}

fn libc_offset(len: u64) -> i64 {
    i64::try_from(len).unwrap()
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        // A loop device lets go of its file a moment after its last close.
        while let Err(errno) = RealKernel.unmount(&self.0, Default::default()) {
            assert_eq!(errno, Errno::EBUSY);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn options() -> Options {
    small().metadata_size(Bytes::mib(4)).filesystem(Filesystem::None)
}

fn fill_snapshots(tree: &SnapshotTree, count: usize) {
    for index in 0..count {
        let id = format!("a-name-of-some-length-{index}");
        tree.add(&id, Parent::Base).unwrap();
        write(&tree.activate(&id).unwrap(), 0, 4, 1).unwrap();
        tree.deactivate(&id).unwrap();
    }
}

/// Whatever becomes free is taken before the next one is removed.
fn remove(disk: &SmallDisk, tree: &SnapshotTree, count: usize) {
    for snapshot in tree.list().iter().take(count) {
        disk.fill();
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    disk.fill();
}

#[test]
fn everything_can_be_removed() {
    for (filesystem, size) in [("ext4", Bytes::mib(64)), ("xfs", Bytes::mib(320))] {
        let bench = Bench::new();
        let disk = SmallDisk::new(&bench, filesystem, size);
        let root: &Path = &disk.0.join("root");
        let open = || SnapshotTree::open(root, options()).unwrap();
        let tree = open();
        fill_snapshots(&tree, 20);
        // A checkpoint.
        tree.grow_pool(Bytes::gib(2)).unwrap();
        remove(&disk, &tree, 5);
        // Killed.
        drop(tree);
        let tree = open();
        remove(&disk, &tree, 5);
        // The checkpoint finds no space, or just enough.
        let closed = tree.close();
        assert!(closed.as_ref().map_or_else(Error::is_out_of_space, |()| true), "{closed:?}");
        drop(tree);
        let tree = open();
        remove(&disk, &tree, 5);
        bench.restart(tree);
        let tree = open();
        remove(&disk, &tree, 4);
        assert_eq!((tree.list().len(), tree.check().unwrap()), (1, vec![]), "{filesystem}");
        fs::remove_file(disk.tenant()).unwrap();
        tree.add("new", Parent::Base).unwrap();
        for snapshot in tree.list() {
            tree.remove(snapshot.id.as_str()).unwrap();
        }
        tree.close().unwrap();
    }
}

#[test]
fn the_pool_stays_writable() {
    let bench = Bench::new();
    let disk = SmallDisk::new(&bench, "ext4", Bytes::mib(64));
    let tree = SnapshotTree::open(disk.0.join("root"), options()).unwrap();
    fill_snapshots(&tree, 2);
    disk.fill();
    tree.add("b", Parent::Base).unwrap();
    let device = tree.activate("b").unwrap();
    assert!(write(&device, 0, 128, 2).is_err());
    // Metadata finds space: it is allocated.
    let kept = "a-name-of-some-length-0";
    tree.add("c", Parent::Snapshot(kept)).unwrap();
    tree.remove("a-name-of-some-length-1").unwrap();
    let status = tree.status().unwrap();
    println!("{}", status.pool);
    assert_eq!((status.pool.mode(), tree.check().unwrap()), (PoolMode::ReadWrite, vec![]));
    fs::remove_file(disk.tenant()).unwrap();
    write(&device, 0, 128, 3).unwrap();
    drop_caches();
    assert!(holds(&device, 0, 128, 3) && holds(&tree.activate("c").unwrap(), 0, 4, 1));
    for snapshot in tree.list() {
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    tree.close().unwrap();
}
