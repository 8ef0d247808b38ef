//! One raw block device for a whole pool. /dev/vdb is the guest's empty disk of 2 GiB.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dm_thin::dm::targets::{Linear, Target, Zero};
use dm_thin::dm::{DeviceMapper, DmFlags};
use dm_thin::kernel::{Kernel, RealKernel};
use dm_thin::thin::Error;
use dm_thin::thin::{
    AutoExtend, ExtendRule, Extension, LabelledDevice, LabelledOptions, PoolStatus, SubDevice,
    SubDeviceBacking, ThinPool,
};
use dm_thin::units::{Blocks, Bytes, Sectors};

use crate::bench::{Bench, dm, wipe};
use crate::rig::{BLOCK, TakeDown, drop_caches, holds, id, name, uuid, write};

const DISK: &str = "/dev/vdb";

/// A part of the disk, which can become larger.
fn disk(dm: &DeviceMapper, size: Bytes) -> std::path::PathBuf {
    let linear = Linear { device: RealKernel.block_device(Path::new(DISK)).unwrap(), start: Sectors(0) };
    let line = linear.over(Sectors(0), size.sectors());
    dm.create_active(&name("data"), &uuid("data"), &[line], DmFlags::empty()).unwrap();
    let path = dm.node_path(&name("data"));
    wipe(&path);
    path
}

fn grow_disk(dm: &DeviceMapper, size: Bytes) {
    let linear = Linear { device: RealKernel.block_device(Path::new(DISK)).unwrap(), start: Sectors(0) };
    let line = linear.over(Sectors(0), size.sectors());
    dm.load_table(&name("data"), &[line], DmFlags::empty()).unwrap();
    dm.resume(&name("data")).unwrap();
}

fn pool_on(device: &LabelledDevice) -> ThinPool {
    let table = device.activate(&name("pool")).unwrap();
    let size = device.label().size(SubDevice::Data);
    ThinPool::create(dm(), &name("pool"), &uuid("pool"), &table, size).unwrap()
}

fn totals(pool: &ThinPool) -> (Blocks, Blocks) {
    match pool.status().unwrap() {
        PoolStatus::Usage(usage) => (usage.total_metadata, usage.total_data),
        status => panic!("{status}"),
    }
}

#[test]
fn labelled_used_found_again_and_grown() {
    let bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(256));
    let device = LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new()).unwrap();
    let label = device.label();
    assert_eq!(label.size(SubDevice::Metadata), Bytes::mib(2).sectors());
    assert_eq!(label.size(SubDevice::Data), Bytes::mib(253).sectors());
    let pool = pool_on(&device);
    assert_eq!(totals(&pool), (Blocks(512), Blocks(253 * 16)));
    pool.create_thin(id(1)).unwrap();
    let size = Bytes::mib(512).sectors();
    let volume = pool.activate(&name("v1"), &uuid("v1"), id(1), size).unwrap();
    write(&volume.path(), 0, 100, 1).unwrap();
    // In use, it is not for formatting, by force or not.
    let error = LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new().force(true)).unwrap_err();
    assert!(error.is_busy(), "{error}");

    // Taken down, and found again; `tests/power` does it with a restart of the machine.
    volume.deactivate().unwrap();
    pool.deactivate().unwrap();
    device.deactivate().unwrap();
    drop(device);
    drop_caches();
    let device = LabelledDevice::find(dm.clone(), label.uuid).unwrap();
    assert_eq!(device.label(), label);
    let pool = pool_on(&device);
    let volume = pool.activate(&name("v1"), &uuid("v1"), id(1), size).unwrap();
    assert!(holds(&volume.path(), 0, 100, 1));

    // Grown while it is in use. Nothing to take over is no error.
    device.grow().unwrap();
    grow_disk(&dm, Bytes::gib(2));
    let grown = device.grow().unwrap();
    let [metadata, data] = [SubDevice::Metadata, SubDevice::Data].map(|part| grown.size(part));
    pool.grow_data(data).unwrap();
    assert_eq!(totals(&pool).1, Blocks(data.0 / BLOCK.0));
    assert!(data.bytes() > Bytes::mib(2000) && metadata >= Bytes::mib(2).sectors(), "{metadata} {data}");
    write(&volume.path(), 100, 5000, 2).unwrap();
    drop_caches();
    assert!(holds(&volume.path(), 0, 100, 1) && holds(&volume.path(), 100, 5000, 2));
    volume.deactivate().unwrap();
    pool.deactivate().unwrap();
    device.deactivate().unwrap();
    let again = LabelledDevice::open(dm.clone(), &path).unwrap();
    assert_eq!(again.label(), device.label());
    assert_eq!(again.label().generation, 2);
    let other = uuid::Uuid::nil();
    assert!(matches!(LabelledDevice::find(dm.clone(), other), Err(Error::NoLabel { .. })));
    dm.remove(&name("data")).unwrap();
    bench.audit();
}

#[test]
fn extend_reads_the_label_again() {
    let bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(256));
    let options = LabelledOptions::new().data(Bytes::mib(16).sectors());
    let one = LabelledDevice::format(dm.clone(), &path, &options).unwrap();
    // Through another node of the same device.
    let node = bench.path().join("node");
    RealKernel.make_node(&node, RealKernel.block_device(&path).unwrap()).unwrap();
    let other = LabelledDevice::open(dm.clone(), &node).unwrap();
    let [metadata, data] = [8, 64].map(|mib| Bytes::mib(mib).sectors());
    one.extend(SubDevice::Data, data).unwrap();
    other.extend(SubDevice::Metadata, metadata).unwrap();
    let label = LabelledDevice::open(dm.clone(), &path).unwrap().label();
    assert_eq!((label.size(SubDevice::Metadata), label.size(SubDevice::Data)), (metadata, data));
    // At once: each step is taken once, and none is lost.
    let step = |device: &LabelledDevice, part, from: u64| {
        (from..from + 16).for_each(|mib| device.extend(part, Bytes::mib(mib).sectors()).unwrap());
    };
    thread::scope(|scope| {
        scope.spawn(|| step(&one, SubDevice::Data, 65));
        scope.spawn(|| step(&one, SubDevice::Metadata, 9));
        scope.spawn(|| step(&other, SubDevice::Data, 65));
    });
    let label = LabelledDevice::open(dm.clone(), &path).unwrap().label();
    let sizes = [24, 80].map(|mib| Bytes::mib(mib).sectors());
    assert_eq!([label.size(SubDevice::Metadata), label.size(SubDevice::Data)], sizes);
    for step in 1..=40 {
        let sizes = [24 + step, 80 + step].map(|mib| Bytes::mib(mib).sectors());
        thread::scope(|scope| {
            scope.spawn(|| one.extend(SubDevice::Data, sizes[1]).unwrap());
            scope.spawn(|| other.extend(SubDevice::Metadata, sizes[0]).unwrap());
        });
        let label = LabelledDevice::open(dm.clone(), &path).unwrap().label();
        assert_eq!([label.size(SubDevice::Metadata), label.size(SubDevice::Data)], sizes, "step {step}");
    }
    dm.remove(&name("data")).unwrap();
    bench.audit();
}

#[test]
fn one_good_copy_of_the_label_is_enough() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(64));
    assert!(matches!(LabelledDevice::open(dm.clone(), &path), Err(Error::NoLabel { .. })));
    let label = LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new()).unwrap().label();
    let damage = |at: u64, bytes: &[u8]| {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    };
    let second = (1 << 20) - 4096;
    for at in [0, second] {
        let mut good = vec![0; 4096];
        File::open(&path).unwrap().read_exact_at(&mut good, at).unwrap();
        for bad in [vec![0; 4096], [&good[..2048], &[9; 2048]].concat()] {
            damage(at, &bad);
            assert_eq!(LabelledDevice::open(dm.clone(), &path).unwrap().label(), label);
        }
        damage(at, &good);
    }
    damage(100, &[1]);
    damage(second + 100, &[1]);
    let error = LabelledDevice::open(dm.clone(), &path).unwrap_err();
    assert_eq!(error.to_string(), "malformed dm-thin label: \"wrong checksum\"");
    // Labelled, if badly: not to be taken without force.
    let error = LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/dev/mapper/dm-thin-data contains a dm-thin label; set force_device to overwrite it"
    );
}

#[test]
fn a_device_with_data_needs_force() {
    let bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(512));
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(&path).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    };
    let format = |force| LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new().force(force));
    let gpt = || {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"EFI PART", (512 << 20) - 512).unwrap();
        file.sync_all().unwrap();
    };
    for (what, make) in [
        ("ext4", &(|| run("mkfs.ext4", &["-q", "-F"])) as &dyn Fn()),
        ("xfs", &|| run("mkfs.xfs", &["-q", "-f"])),
        ("swap", &|| run("mkswap", &[])),
        ("not zero", &gpt),
    ] {
        wipe(&path);
        make();
        let error = format(false).unwrap_err();
        println!("{error}");
        assert!(matches!(&error, Error::DeviceInUse { found, .. } if found.contains(what)), "{error}");
        format(true).unwrap();
        // Nothing of it is left to be found.
        assert!(matches!(format(false), Err(Error::DeviceInUse { found, .. }) if found == "a dm-thin label"));
        let output =
            Command::new("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{what}");
    }
    // Mounted, not even by force.
    run("mkfs.ext4", &["-q", "-F"]);
    let target = bench.path().join("target");
    std::fs::create_dir(&target).unwrap();
    RealKernel.mount(Some(&path), &target, Some("ext4"), Default::default(), "").unwrap();
    let error = format(true).unwrap_err();
    RealKernel.unmount(&target, Default::default()).unwrap();
    assert!(error.is_busy(), "{error}");
    assert!(matches!(format(false), Err(Error::DeviceInUse { .. })), "untouched");
    // Not a block device.
    let file = bench.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(LabelledDevice::format(dm.clone(), &file, &LabelledOptions::new()).is_err());
}

#[test]
fn sizes_that_do_not_fit() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(16));
    let option = |options: LabelledOptions| match LabelledDevice::format(dm.clone(), &path, &options) {
        Err(Error::InvalidOption { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    assert_eq!(option(LabelledOptions::new().block_size(Sectors(100))), "block size");
    assert_eq!(option(LabelledOptions::new().metadata(Sectors(8))), "metadata size");
    assert_eq!(option(LabelledOptions::new().metadata(Bytes::mib(15).sectors())), "data size");
    assert_eq!(option(LabelledOptions::new().data(Bytes::mib(14).sectors())), "data size");
    assert!(matches!(LabelledDevice::open(dm.clone(), &path), Err(Error::NoLabel { .. })), "untouched");
    let device = LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new()).unwrap();
    let error = device.extend(SubDevice::Data, Bytes::mib(64).sectors()).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "data size", .. }), "{error}");
}

#[test]
fn a_policy_extends_it_from_what_is_free() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(256));
    let options = LabelledOptions::new().data(Bytes::mib(64).sectors()).metadata(Bytes::mib(4).sectors());
    let device = Arc::new(LabelledDevice::format(dm.clone(), &path, &options).unwrap());
    let pool = pool_on(&device);
    let part = |part| SubDeviceBacking::new(device.clone(), part).unwrap();
    let rule = ExtendRule { threshold: 50, step: 100, maximum: Bytes::gib(1) };
    let policy = AutoExtend::new()
        .data(rule, part(SubDevice::Data))
        .unwrap()
        .metadata(rule, part(SubDevice::Metadata))
        .unwrap();
    pool.create_thin(id(1)).unwrap();
    let volume = pool.activate(&name("v1"), &uuid("v1"), id(1), Bytes::gib(1).sectors()).unwrap();
    write(&volume.path(), 0, 40 << 4, 1).unwrap();
    assert_eq!(policy.apply(&pool).unwrap().data, Extension::To(Bytes::mib(128).sectors()));
    write(&volume.path(), 40 << 4, 80 << 4, 2).unwrap();
    // All that is left.
    let data = policy.apply(&pool).unwrap().data;
    assert_eq!(data, Extension::To(Bytes::mib(251).sectors()));
    write(&volume.path(), 120 << 4, 100 << 4, 3).unwrap();
    assert_eq!(policy.apply(&pool).unwrap().data, Extension::Exhausted);
    drop_caches();
    assert!(holds(&volume.path(), 0, 40 << 4, 1) && holds(&volume.path(), 120 << 4, 100 << 4, 3));
    device.extend(SubDevice::Metadata, Bytes::mib(4).sectors()).unwrap();
    volume.deactivate().unwrap();
    pool.deactivate().unwrap();
    device.deactivate().unwrap();
}

#[test]
fn a_suspended_device_does_not_stop_the_search_for_a_label() {
    let bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    let path = disk(&dm, Bytes::mib(64));
    let label = LabelledDevice::format(dm.clone(), &path, &LabelledOptions::new()).unwrap().label();
    // One that is suspended, and one that stands on it. Their names come before the disks'.
    let size = Bytes::mib(16).sectors();
    let below = dm.create_active(&name("v1"), &uuid("v1"), &[Zero.over(Sectors(0), size)], DmFlags::empty());
    let linear = Linear { device: below.unwrap().number, start: Sectors(0) };
    dm.create_active(&name("v2"), &uuid("v2"), &[linear.over(Sectors(0), size)], DmFlags::empty()).unwrap();
    dm.suspend(&name("v1"), DmFlags::NOFLUSH).unwrap();
    let (sender, receiver) = mpsc::channel();
    let search = {
        let dm = dm.clone();
        thread::spawn(move || {
            let found =
                [label.uuid, uuid::Uuid::nil()].map(|uuid| LabelledDevice::find(dm.clone(), uuid).is_ok());
            sender.send(found)
        })
    };
    let found = receiver.recv_timeout(Duration::from_secs(20));
    dm.resume(&name("v1")).unwrap();
    search.join().unwrap().ok();
    assert_eq!(found, Ok([true, false]));
    for device in ["v2", "v1", "data"] {
        dm.remove(&name(device)).unwrap();
    }
    bench.audit();
}
