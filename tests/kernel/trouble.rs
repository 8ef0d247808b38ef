//! Bad input and trouble: a typed error, everything as it was, nothing left behind.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use dm_thin::Errno;
use dm_thin::kernel::{Kernel, RealKernel};
use dm_thin::tree::{AddOptions, Filesystem, Options, Parent, SnapshotTree};
use dm_thin::tree::{Error, RootProblem};
use dm_thin::units::{Blocks, Bytes};
use dm_thin::{dm, loopdev, thin};
use nix::unistd::{Uid, seteuid};

use crate::bench::{Bench, names, small};
use crate::spy::Spy;

fn open(bench: &Bench, options: Options) -> Error {
    let error = SnapshotTree::open(bench.root(), options).unwrap_err();
    println!("{error}");
    error
}

#[test]
fn not_root() {
    let bench = Bench::new();
    seteuid(Uid::from_raw(65534)).unwrap();
    let error = SnapshotTree::open(bench.root(), small());
    seteuid(Uid::from_raw(0)).unwrap();
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Thin(thin::Error::Dm(dm::Error::NotPermitted { .. }))), "{error}");
    assert!(!bench.root().exists());
}

#[test]
fn no_device_mapper() {
    let bench = Bench::new();
    fs::rename("/dev/mapper/control", "/dev/mapper-control.away").unwrap();
    let error = SnapshotTree::open(bench.root(), small());
    fs::rename("/dev/mapper-control.away", "/dev/mapper/control").unwrap();
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Thin(thin::Error::Dm(dm::Error::NoDeviceMapper { .. }))), "{error}");
    assert!(!bench.root().exists());
}

#[test]
fn no_loop_devices() {
    let bench = Bench::new();
    let kernel = Spy { without_loop: true, ..Spy::default() };
    let error = open(&bench, small().kernel(Arc::new(kernel)));
    assert!(matches!(error, Error::Thin(thin::Error::Loop(loopdev::Error::NoLoopDevices))), "{error}");
    assert!(!bench.root().exists());
}

#[test]
fn mkfs_missing() {
    let bench = Bench::new();
    let programs: BTreeSet<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .filter_map(|directory| directory.join("mkfs.xfs").canonicalize().ok())
        .collect();
    for path in &programs {
        let bind = dm_thin::abi::mount::MountFlags::from_bits_retain(4096);
        RealKernel.mount(Some(Path::new("/dev/null")), path, None, bind, "").unwrap();
    }
    let error =
        SnapshotTree::open(bench.root(), small().base_size(Bytes::mib(512)).filesystem(Filesystem::Xfs));
    for path in &programs {
        RealKernel.unmount(path, Default::default()).unwrap();
    }
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::MkfsMissing { program, .. } if program == "mkfs.xfs"), "{error}");
    assert!(!bench.root().exists());
}

#[test]
fn mkfs_fails() {
    let bench = Bench::new();
    let error = open(&bench, small().mkfs_args(vec!["--no-such-argument".into()]));
    assert!(matches!(error, Error::Mkfs { .. }), "{error}");
    let said = error.to_string();
    assert!(said.ends_with("mkfs.ext4: invalid option -- '-'"), "{said}");
    assert!(!bench.root().exists());
}

/// A file system of some kilobytes, unmounted when dropped.
struct TinyDisk(PathBuf);

impl TinyDisk {
    fn new(bench: &Bench, size: &str) -> Self {
        let path = bench.root();
        fs::create_dir(&path).unwrap();
        let size = format!("size={size},mode=0700");
        RealKernel.mount(Some(Path::new("tiny")), &path, Some("tmpfs"), Default::default(), &size).unwrap();
        Self(path)
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // udev may still be looking at a loop device over a file of it.
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(errno) = RealKernel.unmount(&self.0, Default::default()) {
            assert!(errno == Errno::EBUSY && Instant::now() < end, "{errno}");
            sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn disk_full_while_the_files_are_made() {
    let bench = Bench::new();
    // Room for nothing; for the state, but not for the pool's metadata; for that, but not for the base.
    for size in ["4k", "32k", "256k"] {
        let disk = TinyDisk::new(&bench, size);
        open(&bench, small());
        assert!(names(&disk.0).is_empty(), "{size}: {:?}", names(&disk.0));
        drop(disk);
        fs::remove_dir(bench.root()).unwrap();
    }
}

#[test]
fn unsuitable_roots_are_refused() {
    let bench = Bench::new();
    let root = bench.root();
    let problem = || match open(&bench, small()) {
        Error::Root { problem, .. } => problem,
        error => panic!("{error}"),
    };
    fs::write(&root, "a file").unwrap();
    assert_eq!(problem(), RootProblem::NotDirectory);
    assert_eq!(fs::read_to_string(&root).unwrap(), "a file");
    fs::remove_file(&root).unwrap();

    let directory = bench.path().join("directory");
    fs::create_dir(&directory).unwrap();
    symlink(&directory, &root).unwrap();
    assert_eq!(problem(), RootProblem::Symlink);
    fs::remove_file(&root).unwrap();

    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
    assert_eq!(problem(), RootProblem::WritableByOthers { mode: 0o777 });
    fs::set_permissions(&root, Permissions::from_mode(0o700)).unwrap();
    chown(&root, Some(1000), None).unwrap();
    assert_eq!(problem(), RootProblem::WrongOwner { uid: 1000 });
    assert!(names(&root).is_empty() && names(&directory).is_empty());
}

#[test]
fn a_root_needs_its_parent_directory() {
    let bench = Bench::new();
    let error = SnapshotTree::open(bench.path().join("no/such"), small()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[test]
fn a_second_manager_is_refused_and_a_dead_one_is_replaced() {
    let bench = Bench::new();
    let tree = bench.tree();
    assert!(matches!(open(&bench, small()), Error::Locked { .. }));
    let tree = bench.reopen(tree);
    tree.close().unwrap();
}

#[test]
fn ids() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    let before = tree.list();
    let long = "x".repeat(257);
    for id in ["", "a\nb", "..", "base", "a\tb", &long] {
        let error = tree.add(id, Parent::Base).unwrap_err();
        assert!(matches!(&error, Error::InvalidName { value, .. } if value == id), "{error}");
    }
    // What a device cannot be called is escaped.
    let long = "x".repeat(256);
    for id in ["a/b", "a b", &long] {
        tree.add(id, Parent::Base).unwrap();
        let device = tree.activate(id).unwrap();
        assert!(
            device.exists() && device.parent() == Some(std::path::Path::new("/dev/mapper")),
            "{device:?}"
        );
        tree.remove(id).unwrap();
    }
    assert!(matches!(tree.add("image", Parent::Base), Err(Error::SnapshotExists { id }) if id == "image"));
    let unknown = |result: dm_thin::tree::Result<()>| {
        assert!(matches!(&result, Err(Error::UnknownSnapshot { id }) if id == "nobody"), "{result:?}");
    };
    unknown(tree.add("child", Parent::Snapshot("nobody")));
    unknown(tree.activate("nobody").map(drop));
    unknown(tree.deactivate("nobody"));
    unknown(tree.mount("nobody", bench.path().join("target")));
    unknown(tree.unmount("nobody"));
    unknown(tree.remove("nobody"));
    assert_eq!(tree.list(), before);
    assert!(!bench.path().join("target").exists());
    tree.close().unwrap();
    assert!(matches!(tree.add("late", Parent::Base), Err(Error::Closed)));
}

#[test]
fn close_refuses_mounted_snapshots() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    fs::write(target.join("file"), "here").unwrap();
    for result in [
        tree.remove("image"),
        tree.deactivate("image"),
        tree.close(),
        tree.mount("image", bench.path().join("elsewhere")),
    ] {
        assert!(matches!(&result, Err(Error::Mounted { target: at, .. }) if *at == target), "{result:?}");
    }
    // A file that is open keeps the file system mounted, and the snapshot active.
    let file = fs::File::open(target.join("file")).unwrap();
    let error = tree.unmount("image").unwrap_err();
    assert!(matches!(&error, Error::MountInUse { .. }) && error.is_busy(), "{error}");
    drop(file);
    tree.unmount("image").unwrap();
    assert!(matches!(tree.unmount("image"), Err(Error::NotMounted { .. })));
    tree.close().unwrap();
}

#[test]
fn close_refuses_open_devices() {
    let bench = Bench::new();
    let options = small().busy_timeout(Duration::from_millis(50));
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    tree.add("image", Parent::Base).unwrap();
    let device = tree.activate("image").unwrap();
    let file = fs::File::open(device).unwrap();
    for result in [tree.deactivate("image"), tree.remove("image"), tree.close()] {
        assert!(matches!(&result, Err(Error::Busy { open_count: 1, .. })), "{result:?}");
    }
    drop(file);
    tree.remove("image").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_mount_that_fails_leaves_nothing() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), small().mount_options("no_such_option".into())).unwrap();
    tree.add("image", Parent::Base).unwrap();
    let target = bench.path().join("target");
    let error = tree.mount("image", &target).unwrap_err().to_string();
    let name = tree.get("image").unwrap();
    assert!(error.starts_with("mount /dev/mapper/dm-thin-"), "{error}");
    assert!(
        error.ends_with("(ext4, flags 0x0, options errors=remount-ro,no_such_option): Invalid argument"),
        "{error}"
    );
    assert!(name.device.is_none() && !target.exists());
    tree.close().unwrap();
}

#[test]
fn sizes() {
    let bench = Bench::new();
    for (options, option) in [
        (small().base_size(Bytes(1000)), "base size"),
        (small().data_size(Bytes::kib(4)), "data size"),
        (small().metadata_size(Bytes::mib(1)), "metadata size"),
        (small().metadata_size(Bytes::gib(16)), "metadata size"),
        (small().block_size(Bytes::kib(65)), "block size"),
        (small().name_prefix("a-name-that-is-too-long".into()), "name prefix"),
    ] {
        let error = open(&bench, options);
        assert!(matches!(error, Error::InvalidOption { option: named, .. } if named == option), "{error}");
    }
    assert!(!bench.root().exists());
}

#[test]
fn open_rejects_options_that_conflict_with_the_tree() {
    let bench = Bench::new();
    let tree = bench.tree();
    let smaller = AddOptions::new().size(Bytes::mib(32));
    let error = tree.add_with("smaller", Parent::Base, &smaller).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "snapshot size", .. }), "{error}");
    tree.close().unwrap();
    drop(tree);
    for (options, option) in [
        (Options::new().block_size(Bytes::kib(128)), "block size"),
        (Options::new().metadata_size(Bytes::mib(64)), "metadata size"),
        (Options::new().filesystem(Filesystem::Xfs), "file system"),
        (Options::new().low_water_mark(Blocks(1)), "low water mark"),
    ] {
        let error = open(&bench, options);
        assert!(matches!(error, Error::OptionConflict { option: named, .. } if named == option), "{error}");
    }
    // Nothing said, or less: everything as it was made.
    let less =
        Options::new().base_size(Bytes::mib(32)).data_size(Bytes::mib(512)).metadata_size(Bytes::mib(4));
    let tree = SnapshotTree::open(bench.root(), less).unwrap();
    assert_eq!(tree.status().unwrap().base_size, Bytes::mib(64));
    tree.close().unwrap();
}

#[test]
fn a_file_of_the_pool_vanished() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.close().unwrap();
    drop(tree);
    let (data, away) = (bench.root().join("pool/data"), bench.root().join("pool/data.away"));
    fs::rename(&data, &away).unwrap();
    assert!(matches!(open(&bench, small()), Error::BackingFile { path, .. } if path == data));
    fs::File::create(&data).unwrap().set_len(4096).unwrap();
    assert!(matches!(open(&bench, small()), Error::BackingFile { path, .. } if path == data));
    assert_eq!(fs::metadata(&data).unwrap().len(), 4096, "untouched");
    fs::rename(&away, &data).unwrap();
    bench.audit();
    bench.tree().close().unwrap();
}

#[test]
fn a_damaged_superblock_is_named_and_left_alone() {
    let bench = Bench::new();
    bench.tree().close().unwrap();
    let path = bench.root().join("pool/metadata");
    let whole = fs::read(&path).unwrap();
    for byte in [0, 0xff] {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[byte; 4096], 0).unwrap();
        let damaged = fs::read(&path).unwrap();
        let named = match open(&bench, small()) {
            Error::BackingFile { path, .. } if byte == 0 => path,
            Error::DamagedMetadata { path, .. } if byte != 0 => path,
            error => panic!("{error}"),
        };
        assert_eq!(named, path);
        assert!(fs::read(&path).unwrap() == damaged, "untouched");
        file.write_all_at(&whole[..4096], 0).unwrap();
        bench.audit();
    }
    bench.tree().close().unwrap();
}

#[test]
fn a_pool_without_a_state_is_not_overwritten() {
    let bench = Bench::new();
    bench.tree().close().unwrap();
    let (state, away) = (bench.root().join("state.json"), bench.root().join("state.json.away"));
    fs::rename(&state, &away).unwrap();
    let before = names(&bench.root());
    assert!(matches!(open(&bench, small()), Error::BackingFile { .. }));
    assert_eq!(names(&bench.root()), before);
    fs::rename(&away, &state).unwrap();
    bench.tree().close().unwrap();
}

#[test]
fn a_damaged_state_is_named_and_left_alone() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.close().unwrap();
    drop(tree);
    let path = bench.root().join("state.json");
    let good = fs::read_to_string(&path).unwrap();
    let bad = good.replace("\"generation\": ", "\"generation\": 7");
    assert_ne!(good, bad);
    fs::write(&path, &bad).unwrap();
    assert!(matches!(open(&bench, small()), Error::Corrupt { path: named, .. } if named == path));
    assert_eq!(fs::read_to_string(&path).unwrap(), bad);
    // A stray temporary file, on the other hand, is of no consequence.
    fs::write(&path, &good).unwrap();
    fs::write(bench.root().join("state.json.tmp"), "{").unwrap();
    bench.tree().close().unwrap();
}
