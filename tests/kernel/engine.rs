//! What engines do with snapshots, with file systems in them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use dm_thin::abi::mount::MountFlags;
use dm_thin::tree::{
    AddOptions, Consistency, DeviceOptions, Error, Filesystem, InitLayer, Labels, MountOptions, Parent,
    SnapshotTree,
};
use dm_thin::units::Bytes;
use nix::sys::statvfs::fstatvfs;

use crate::bench::{Bench, small};
use crate::{layers, look, watch};

fn file_system_size(directory: &std::path::Path) -> Bytes {
    let file = File::open(directory).unwrap();
    let status = fstatvfs(file.as_fd()).unwrap();
    Bytes(status.blocks() * status.fragment_size())
}

#[test]
fn a_snapshot_and_its_file_system_grow() {
    for (filesystem, base) in [(Filesystem::Ext4, Bytes::mib(64)), (Filesystem::Xfs, Bytes::mib(320))] {
        let bench = Bench::new();
        let options = || small().filesystem(filesystem).base_size(base).data_size(Bytes::gib(2));
        let tree = SnapshotTree::open(bench.root(), options()).unwrap();
        let target = bench.path().join("mounted");
        let sizes = [1, 2, 3, 4].map(|n| Bytes(base.0 + n * Bytes::mib(64).0));
        tree.add("a", Parent::Base).unwrap();
        // Without what the file system keeps for itself.
        let step = Bytes::mib(48);
        let mut size = Bytes(0);
        let mut has_grown = || {
            let before = std::mem::replace(&mut size, file_system_size(&target));
            assert!(size >= before + step, "{filesystem:?}: {before}, now {size}");
        };
        // Mounted and in use.
        tree.mount("a", &target).unwrap();
        has_grown();
        fs::write(target.join("kept"), "text").unwrap();
        tree.resize("a", sizes[0]).unwrap();
        has_grown();
        tree.unmount("a").unwrap();
        // Inactive: at the next mount.
        tree.resize("a", sizes[1]).unwrap();
        tree.mount("a", &target).unwrap();
        has_grown();
        tree.unmount("a").unwrap();
        // Open, as by a virtual machine: the device only.
        let device = tree.activate("a").unwrap();
        let open = File::open(&device).unwrap();
        tree.resize("a", sizes[2]).unwrap();
        let length = std::io::Seek::seek(&mut &open, std::io::SeekFrom::End(0)).unwrap();
        assert_eq!(Bytes(length), sizes[2]);
        drop(open);
        // After a manager that died, at the next mount.
        let tree = {
            drop(tree);
            SnapshotTree::open(bench.root(), options()).unwrap()
        };
        tree.resize("a", sizes[3]).unwrap();
        tree.mount("a", &target).unwrap();
        has_grown();
        assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "text");
        assert_eq!(tree.check().unwrap(), []);
        tree.unmount("a").unwrap();
        tree.deactivate("a").unwrap();
        tree.close().unwrap();
        bench.audit();
    }
}

#[test]
fn a_layer_is_committed_and_mounted() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("mounted");
    let mut labels = Labels::new();
    labels.set("digest", "sha256:1").unwrap();
    tree.add_with("extract", Parent::Base, &AddOptions::new()).unwrap();
    tree.mount("extract", &target).unwrap();
    fs::write(target.join("file"), "of the layer").unwrap();
    let error = tree.commit("extract", "layer", labels.clone()).unwrap_err();
    assert!(matches!(error, Error::Mounted { .. }), "{error}");
    tree.unmount("extract").unwrap();
    let uuid = tree.commit("extract", "layer", labels).unwrap();
    let tree = bench.reopen(tree);
    assert_eq!(tree.labelled("digest", "sha256:1")[0].sealed, Some(uuid));
    tree.mount("layer", &target).unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "of the layer");
    assert!(fs::write(target.join("file"), "").is_err());
    let number = tree.get("layer").unwrap().number.unwrap();
    assert_eq!(fs::metadata(&target).map(|it| std::os::unix::fs::MetadataExt::dev(&it)).unwrap(), {
        nix::sys::stat::makedev(u64::from(number.major), u64::from(number.minor))
    });
    tree.unmount("layer").unwrap();
    tree.close().unwrap();
    bench.audit();
}

#[test]
fn what_is_deleted_comes_back_with_trim() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("mounted");
    tree.add("a", Parent::Base).unwrap();
    let mapped = || match tree.pool().status().unwrap() {
        dm_thin::thin::PoolStatus::Usage(usage) => usage.used_data.0,
        status => panic!("{status:?}"),
    };
    for mounted in [true, false] {
        tree.mount("a", &target).unwrap();
        let before = mapped();
        fs::write(target.join("large"), vec![7; 8 << 20]).unwrap();
        nix::unistd::syncfs(File::open(&target).unwrap()).unwrap();
        assert!(mapped() >= before + 100);
        fs::remove_file(target.join("large")).unwrap();
        nix::unistd::syncfs(File::open(&target).unwrap()).unwrap();
        if !mounted {
            tree.unmount("a").unwrap();
        }
        assert!(tree.trim("a").unwrap() >= Bytes::mib(8));
        assert!(mapped() <= before + 20, "{before} blocks, now {}", mapped());
        if mounted {
            tree.unmount("a").unwrap();
        }
    }
    let device = tree.activate("a").unwrap();
    let open = File::open(&device).unwrap();
    assert!(matches!(tree.trim("a").unwrap_err(), Error::Busy { .. }));
    drop(open);
    tree.deactivate("a").unwrap();
    tree.seal("a").unwrap();
    assert!(matches!(tree.trim("a").unwrap_err(), Error::Sealed { .. }));
    let status = tree.snapshot_status("a").unwrap();
    assert!(status.mapped < Bytes::mib(32), "{status:?}");
    tree.close().unwrap();
    bench.audit();
}

#[test]
fn a_container_engine_commits_and_collects() {
    let bench = Bench::new();
    layers::run(&bench.root(), small()).unwrap();
    bench.audit();
}

#[test]
fn a_tool_on_tokio_extends_the_pool() {
    let bench = Bench::new();
    watch::run(&bench.root(), small()).unwrap();
    bench.audit();
}

#[test]
fn another_process_looks_at_a_tree_in_use() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("mounted");
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", &target).unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for n in 0..40 {
                tree.add(n.to_string(), Parent::Snapshot("image")).unwrap();
            }
        });
        let mut seen = 0;
        while !worker.is_finished() {
            let now = look::run(&bench.root()).unwrap();
            assert!(now >= seen);
            seen = now;
        }
    });
    let seen = SnapshotTree::open_read_only(bench.root(), &small()).unwrap();
    assert_eq!(seen.manager().unwrap().pid, std::process::id());
    assert_eq!(seen.get("image").unwrap().mounted.as_deref(), Some(&*target));
    assert_eq!(look::run(&bench.root()).unwrap(), 41);
    tree.unmount("image").unwrap();
    tree.close().unwrap();
    bench.audit();
}

#[test]
fn a_snapshot_of_a_mounted_one_is_sealed_with_a_clean_log() {
    for (filesystem, base) in [(Filesystem::Ext4, Bytes::mib(64)), (Filesystem::Xfs, Bytes::mib(320))] {
        let bench = Bench::new();
        let options = small().filesystem(filesystem).base_size(base).data_size(Bytes::gib(1));
        let tree = SnapshotTree::open(bench.root(), options).unwrap();
        let [target, copy] = ["mounted", "copy"].map(|name| bench.path().join(name));
        tree.add("a", Parent::Base).unwrap();
        tree.mount("a", &target).unwrap();
        fs::write(target.join("text"), "of a").unwrap();
        nix::unistd::syncfs(File::open(&target).unwrap()).unwrap();
        let crash = AddOptions::new().consistency(Consistency::Crash);
        tree.add_with("b", Parent::Snapshot("a"), &crash).unwrap();
        // Whoever has it open may have mounted it.
        let open = File::open(tree.activate("b").unwrap()).unwrap();
        assert!(matches!(tree.seal("b").unwrap_err(), Error::Busy { .. }));
        drop(open);
        tree.seal("b").unwrap();
        tree.mount("b", &copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join("text")).unwrap(), "of a");
        tree.unmount("b").unwrap();
        tree.unmount("a").unwrap();
        tree.close().unwrap();
        bench.audit();
    }
}

#[test]
fn a_device_is_read_only_and_belongs_to_who_it_is_given_to() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), small()).unwrap();
    let target = bench.path().join("mounted");
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", &target).unwrap();
    fs::write(target.join("file"), "text").unwrap();
    // Made of a mounted one, so its log is not clean.
    tree.add_with("dirty", Parent::Snapshot("a"), &AddOptions::new().consistency(Consistency::Crash))
        .unwrap();
    tree.unmount("a").unwrap();

    let read_only_device = DeviceOptions::new().read_only(true);
    let jailed = read_only_device.clone().owner(1000, 1001).mode(0o640);
    let device = tree.activate_with("a", &jailed).unwrap();
    let node = fs::metadata(device.path()).unwrap();
    assert_eq!((node.uid(), node.gid(), node.mode() & 0o7777), (1000, 1001, 0o640));
    let mut text = [0; 2];
    // The magic number of an ext4.
    nix::sys::uio::pread(&device, &mut text, 1080).unwrap();
    assert_eq!(text, [0x53, 0xef]);
    let writer = File::options().write(true).open(device.path()).unwrap();
    assert_eq!(nix::sys::uio::pwrite(&writer, &[0; 512], 0), Err(nix::errno::Errno::EPERM));
    drop(writer);
    drop(device);
    let read_only = MountOptions::new().read_only(true);
    tree.mount_with("a", &target, &read_only).unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "text");
    tree.unmount("a").unwrap();
    // A log that is not clean cannot be replayed on it.
    tree.activate_with("dirty", &read_only_device).unwrap();
    assert!(matches!(tree.mount_with("dirty", &target, &read_only).unwrap_err(), Error::Mount(_)));
    tree.deactivate("dirty").unwrap();
    // Taken over by the next manager, it is still known to be read-only.
    let used = File::open(tree.get("a").unwrap().device.unwrap()).unwrap();
    drop(tree);
    let tree = SnapshotTree::open(bench.root(), small()).unwrap();
    assert!(matches!(tree.mount("a", &target).unwrap_err(), Error::ActiveOtherwise { read_only: true, .. }));
    drop(used);
    tree.deactivate("a").unwrap();
    tree.mount("a", &target).unwrap();
    tree.unmount("a").unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    bench.audit();
}

#[test]
fn a_snapshot_is_mounted_read_only_and_described() {
    let bench = Bench::new();
    let options =
        small().init_layer(InitLayer::new().file("etc/hostname")).mount_options("noquota".to_owned());
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    let target = bench.path().join("mounted");
    tree.add("a", Parent::Base).unwrap();
    let read_only = MountOptions::new().read_only(true).flags(MountFlags::NOATIME).options("errors=panic");
    tree.mount_with("a", &target, &read_only).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains("/mounted ")).unwrap();
    assert!(line.contains(" ext4 ro,noatime,errors=panic"), "{line}");
    assert!(fs::write(target.join("file"), "").is_err() && !target.join("etc").exists());
    let propagation = || {
        let lines = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = lines.lines().find(|line| line.contains("/mounted ")).unwrap().to_owned();
        line.contains(" shared:")
    };
    tree.unmount("a").unwrap();
    for (flag, shared) in [(MountFlags::SHARED, true), (MountFlags::PRIVATE, false)] {
        tree.mount_with("a", &target, &read_only.clone().flags(flag)).unwrap();
        assert_eq!(propagation(), shared);
        tree.unmount("a").unwrap();
    }
    let refused = tree.mount_with("a", &target, &read_only.clone().flags(MountFlags::PROPAGATION));
    assert!(matches!(refused.unwrap_err(), Error::Mount(_)));
    assert_eq!(tree.get("a").unwrap().device, None, "nothing is left");
    tree.mount_with("a", &target, &read_only).unwrap();
    // Only the device can grow.
    let size = Bytes(tree.get("a").unwrap().size.0 + Bytes::mib(64).0);
    assert!(matches!(tree.resize("a", size).unwrap_err(), Error::Mkfs { .. }));
    tree.activate("a").unwrap();
    let before = file_system_size(&target);
    // Counted: it stays as it is.
    tree.mount("a", &target).unwrap();
    tree.unmount("a").unwrap();
    tree.unmount("a").unwrap();
    tree.mount("a", &target).unwrap();
    fs::write(target.join("file"), "").unwrap();
    assert!(target.join("etc/hostname").exists());
    assert!(file_system_size(&target) >= before + Bytes::mib(48));
    assert_eq!(tree.check().unwrap(), []);
    tree.unmount("a").unwrap();

    // Mounted by a program that does it itself.
    let call = tree.mount_call("a", &MountOptions::new().options("discard")).unwrap();
    assert_eq!(
        (call.filesystem, call.options.as_str(), call.flags),
        ("ext4", "errors=remount-ro,noquota,discard", MountFlags::empty())
    );
    fs::create_dir(&target).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", call.filesystem, "-o", &call.options])
        .args([&call.source, &target])
        .status();
    assert!(mounted.unwrap().success() && target.join("file").exists());
    assert!(matches!(tree.deactivate("a").unwrap_err(), Error::Busy { .. }));
    assert!(std::process::Command::new("umount").arg(&target).status().unwrap().success());
    fs::remove_dir(&target).unwrap();
    tree.deactivate("a").unwrap();
    tree.seal("a").unwrap();
    assert_eq!(tree.mount_call("a", &MountOptions::new()).unwrap().flags, MountFlags::RDONLY);
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
    bench.audit();
}
