//! Devices with something on them, and devices that somebody else uses.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

use dm_thin::dm::targets::{Linear, Target};
use dm_thin::dm::{DeviceMapper, DmFlags, DmName, TargetSpec, UdevPolicy};
use dm_thin::kernel::{Access, DeviceNumber, Kernel};
use dm_thin::thin;
use dm_thin::thin::{DeviceShares, Extension};
use dm_thin::tree::Error;
use dm_thin::tree::{Filesystem, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::{Bytes, Sectors};

use crate::rig::{Rig, crash_at_each_call};

const DATA: &str = "/dev/vdb";
const METADATA: &str = "/dev/vdc";
const SIZE: u64 = Bytes::mib(64).0;

fn disks() -> Rig {
    let rig = Rig::new();
    set_disks(&rig);
    rig
}

fn set_disks(rig: &Rig) {
    for (minor, path) in [(16, DATA), (32, METADATA)] {
        let number = DeviceNumber { major: 254, minor };
        rig.kernel.set_disk(Path::new(path), number, Bytes(SIZE).sectors()).unwrap();
    }
}

fn two() -> PoolSource {
    PoolSource::Devices { data: DATA.into(), metadata: METADATA.into() }
}

/// Sizes are the devices'.
fn options(rig: &Rig, source: PoolSource) -> Options {
    let options = Options::new().kernel(rig.kernel.clone()).udev(UdevPolicy::None);
    let options = options.base_size(Bytes::mib(16)).filesystem(Filesystem::None);
    options.pool_source(source)
}

fn write(rig: &Rig, path: &str, at: u64, bytes: &[u8]) {
    let file = rig.kernel.open(Path::new(path), Access::READ_WRITE).unwrap();
    assert_eq!(rig.kernel.write_at(&file, at, bytes), Ok(bytes.len()));
}

fn read(rig: &Rig, path: &str, at: u64, len: usize) -> Vec<u8> {
    let file = rig.kernel.open(Path::new(path), Access::READ).unwrap();
    let mut bytes = vec![0; len];
    assert_eq!(rig.kernel.read_at(&file, at, &mut bytes), Ok(len));
    bytes
}

/// Magic bytes where each format documents them, on a device of 64 MiB.
const FOREIGN: &[(&str, u64, &[u8])] = &[
    ("ZFS, first uberblock", 128 << 10, &[0x0c, 0xb1, 0xba, 0]),
    ("ZFS, last label", SIZE - (256 << 10) + (128 << 10), &[0x0c, 0xb1, 0xba, 0]),
    ("bcache, bcachefs", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("bcachefs, last superblock", SIZE - (1 << 20) + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    ("md 0.90", SIZE - (64 << 10), &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("md 1.0", SIZE - (8 << 10), &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("Stratis", 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("VDO", 0, b"dmvdo001"),
    ("BlueStore", 0, b"bluestore block device"),
    ("JFS", 32 << 10, b"JFS1"),
    ("GFS2", 64 << 10, &[0x01, 0x16, 0x19, 0x70]),
    ("OCFS2", 8192, b"OCFSV2"),
    ("NILFS2", 1024 + 6, &[0x34, 0x34]),
    ("NILFS2, second superblock", SIZE - 4096 + 6, &[0x34, 0x34]),
    ("ReiserFS", (64 << 10) + 52, b"ReIsEr2Fs"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("LUKS2, second header", 16 << 10, b"SKUL\xba\xbe"),
    ("DRBD, internal metadata", SIZE - 4096 + 60, &[0x83, 0x74, 0x02, 0x6b]),
    ("GPT, backup", SIZE - 512, b"EFI PART"),
    // In the heads that the tools of Debian 12 write on 1 GiB: as found there; btrfs, ext4 and LVM by their magic.
    ("mkfs.btrfs 6.2, behind the checksum", (64 << 10) + 64, b"_BHRfS_M"),
    ("mkfs.ext4 1.47, its magic", 1080, &[0x53, 0xef]),
    ("mkfs.xfs", 0, b"XFSB\x00\x00\x10\x00"),
    ("mkfs.f2fs 1.15", 1024, &[0x10, 0x20, 0xf5, 0xf2, 0x01, 0x00, 0x0f, 0x00]),
    ("mkfs.nilfs2 2.2", 1024, &[2, 0, 0, 0, 0, 0, 0x34, 0x34]),
    ("mkfs.jfs 1.1", 32 << 10, b"JFS1\x01"),
    ("mkfs.reiserfs 3.6", (64 << 10) + 2, &[4, 0]),
    ("mkfs.gfs2 3.5", 64 << 10, &[0x01, 0x16, 0x19, 0x70, 0, 0, 0, 1]),
    ("mkfs.exfat 1.2", 0, b"\xebv\x90EXFAT   "),
    ("mkfs.fat 4.2", 0, b"\xebX\x90mkfs.fat"),
    ("mkntfs 2022.10", 0, b"\xebR\x90NTFS    "),
    ("mkudffs 2.3", (32 << 10) + 1, b"BEA01\x01"),
    ("mkfs.minix", 1024, &[0x60, 0x55]),
    ("mkswap", 1024, &[1, 0, 0, 0]),
    ("cryptsetup 2.6, LUKS1", 0, b"LUKS\xba\xbe\x00\x01"),
    ("cryptsetup 2.6, LUKS2", 0, b"LUKS\xba\xbe\x00\x02"),
    ("make-bcache 1.0", 4096, &[0x5d, 0xc7, 0xf6, 0x2b]),
    ("pvcreate 2.03, its label", 512, b"LABELONE"),
    ("any byte at the end", SIZE - 1, &[1]),
    ("any byte in the first 4 MiB", (4 << 20) - 1, &[1]),
];

#[test]
fn a_new_tree_refuses_devices_with_foreign_signatures() {
    let rig = disks();
    for (what, at, magic) in FOREIGN {
        for (source, device) in
            [(two(), DATA), (two(), METADATA), (PoolSource::Device { path: DATA.into() }, DATA)]
        {
            write(&rig, device, *at, magic);
            let error = rig.open(options(&rig, source)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{device} contains data that is not zero; set force_device to overwrite it"),
                "{what}"
            );
            assert_eq!(read(&rig, device, *at, magic.len()), *magic, "{what}");
            assert!(!rig.root().exists() && rig.kernel.is_clean(), "{what}");
            write(&rig, device, *at, &vec![0; magic.len()]);
        }
    }
    rig.open(options(&rig, two())).unwrap().close().unwrap();
}

#[test]
fn force_device_overwrites_foreign_signatures() {
    for source in [two(), PoolSource::Device { path: DATA.into() }] {
        let rig = disks();
        for (_, at, magic) in FOREIGN {
            write(&rig, DATA, *at, magic);
            write(&rig, METADATA, *at, magic);
        }
        let tree = rig.open(options(&rig, source).force_device(true)).unwrap();
        tree.add("a", Parent::Base).unwrap();
        assert_eq!(read(&rig, DATA, SIZE - (4 << 20), 4 << 20), vec![0; 4 << 20]);
        tree.close().unwrap();
        drop(tree);
        let tree = rig.open(Options::new().kernel(rig.kernel.clone())).unwrap();
        assert!(tree.contains("a"));
        assert_eq!(tree.check().unwrap(), []);
        tree.close().unwrap();
    }
}

#[test]
fn a_failed_creation_leaves_the_devices_blank() {
    for source in [two(), PoolSource::Device { path: DATA.into() }] {
        for n in 1.. {
            let rig = disks();
            rig.kernel.fail_at(n, dm_thin::Errno::ENOMEM);
            let result = rig.open(options(&rig, source.clone()));
            if let Ok(tree) = result {
                drop(tree);
                break;
            }
            rig.kernel.heal();
            let tree = rig.open(options(&rig, source.clone()));
            tree.unwrap_or_else(|error| panic!("call {n}: {error}")).close().unwrap();
        }
    }
}

#[test]
fn a_data_device_in_use_is_refused() {
    let rig = disks();
    let other = DeviceNumber { major: 254, minor: 48 };
    rig.kernel.set_disk(Path::new("/dev/vdd"), other, Bytes(SIZE).sectors()).unwrap();
    let tree = rig.open(options(&rig, two())).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let source = PoolSource::Devices { data: DATA.into(), metadata: "/dev/vdd".into() };
    let second = rig.directory.path().join("second");
    for force in [false, true] {
        let options = options(&rig, source.clone()).force_device(force);
        let error = SnapshotTree::open(&second, options).unwrap_err();
        assert!(matches!(&error, Error::Open { path, .. } if path == Path::new(DATA)), "{error}");
        assert!(error.is_busy(), "{error}");
        assert!(!second.exists());
    }
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

const OTHER_DATA: &str = "/dev/vdd";
const OTHER_METADATA: &str = "/dev/vde";

/// The minor numbers of four disks with serial numbers, under these names.
fn name_disks(rig: &Rig, names: [&str; 4]) {
    for (name, minor) in names.into_iter().zip([16, 32, 48, 64]) {
        let number = DeviceNumber { major: 254, minor };
        rig.kernel.set_disk(Path::new(name), number, Bytes(SIZE).sectors()).unwrap();
        rig.kernel.set_disk_serial(number, &format!("disk-{minor}")).unwrap();
    }
}

#[test]
fn open_finds_devices_by_their_stable_ids() {
    let rig = Rig::new();
    name_disks(&rig, [DATA, METADATA, OTHER_DATA, OTHER_METADATA]);
    let trees = [rig.directory.path().join("a"), rig.directory.path().join("b")];
    let others = PoolSource::Devices { data: OTHER_DATA.into(), metadata: OTHER_METADATA.into() };
    let open = |root: &Path, source: PoolSource| SnapshotTree::open(root, options(&rig, source));
    for (root, source) in trees.iter().zip([two(), others.clone()]) {
        let tree = open(root, source).unwrap();
        tree.add(root.file_name().unwrap().to_str().unwrap(), Parent::Base).unwrap();
        tree.close().unwrap();
    }
    // The trees' names are exchanged, data and metadata are, and some are nobody's.
    for names in [
        [OTHER_DATA, OTHER_METADATA, DATA, METADATA],
        [METADATA, DATA, OTHER_METADATA, OTHER_DATA],
        ["/dev/sdb", "/dev/sdc", DATA, OTHER_DATA],
    ] {
        name_disks(&rig, names);
        let opened: Vec<_> =
            trees.iter().zip([two(), others.clone()]).map(|(root, source)| open(root, source)).collect();
        for (tree, name) in opened.into_iter().zip(["a", "b"]) {
            let tree = tree.unwrap();
            assert!(tree.contains(name) && tree.list().len() == 1);
            assert_eq!(tree.check().unwrap(), []);
            tree.close().unwrap();
        }
    }
}

#[test]
fn a_copied_root_is_refused_while_its_devices_are_in_use() {
    let rig = disks();
    let tree = rig.open(options(&rig, two())).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let copy = rig.directory.path().join("copy");
    fs::create_dir(&copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o700)).unwrap();
    for file in fs::read_dir(rig.root()).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    tree.add("b", Parent::Base).unwrap();
    let pool = tree.pool().name().to_string();
    let before = rig.kernel.thin_devices(&pool).unwrap();
    let refused = || {
        let error = SnapshotTree::open(&copy, options(&rig, two())).unwrap_err();
        assert_eq!(rig.kernel.thin_devices(&pool).unwrap(), before);
        error
    };
    let error = refused();
    assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    // Its manager was killed.
    drop(tree);
    let error = refused();
    assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    let tree = rig.open(options(&rig, two())).unwrap();
    assert!(tree.contains("b"));
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    drop(tree);
    // The copy is older than the pool by now.
    let error = SnapshotTree::open(&copy, options(&rig, two())).unwrap_err();
    assert!(matches!(error, Error::StateOlderThanPool { .. }), "{error}");
    let tree = rig.open(options(&rig, two())).unwrap();
    assert_eq!(tree.list().len(), 2);
    tree.close().unwrap();
}

#[test]
fn open_refuses_a_device_with_other_ids() {
    let rig = Rig::new();
    name_disks(&rig, [DATA, METADATA, OTHER_DATA, OTHER_METADATA]);
    rig.open(options(&rig, two())).unwrap().close().unwrap();
    let refused = |reason: &str| {
        let error = rig.open(options(&rig, two())).unwrap_err();
        assert_eq!(error.to_string(), format!("{DATA}: {reason}"));
        assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    };
    let data = DeviceNumber { major: 254, minor: 16 };
    // Another disk is in its place.
    rig.kernel.set_disk_serial(data, "new").unwrap();
    refused("is not the pool's device, which was not found");
    // Copies of it are at other places.
    for minor in [48, 64] {
        rig.kernel.set_disk_serial(DeviceNumber { major: 254, minor }, "disk-16").unwrap();
    }
    refused("is not the pool's device, and several others have its ids; have it lead to the right one");
    rig.kernel.set_disk_serial(data, "disk-16").unwrap();
    rig.open(options(&rig, two())).unwrap().close().unwrap();
}

#[test]
fn open_refuses_a_device_written_to_since_an_interrupted_creation() {
    for call in 1.. {
        let mut rig = disks();
        rig.kernel.unwind_at_cut(true);
        rig.kernel.cut_after(call);
        let opened = catch_unwind(AssertUnwindSafe(|| rig.open(options(&rig, two()))));
        let survived = opened.is_ok();
        drop(catch_unwind(AssertUnwindSafe(|| drop(opened))));
        rig.kernel = Arc::new(rig.kernel.power_cut());
        let state = fs::read_to_string(rig.root().join("state.json")).unwrap_or_default();
        if !state.contains("\"made\": false") {
            if survived {
                return;
            }
            continue;
        }
        // The administrator gave it up. Where the kernel has formatted, the model reads what it wrote.
        let is_formatted = read(&rig, METADATA, 0, 8) != [0; 8];
        let places: &[_] = if is_formatted {
            &[(DATA, 1080)]
        } else {
            &[(DATA, 1080), (METADATA, 1080), (METADATA, SIZE - 4096)]
        };
        for &(device, at) in places {
            let before = read(&rig, device, at, 2);
            write(&rig, device, at, &[0x53, 0xef]);
            let error = rig.open(options(&rig, two())).unwrap_err();
            assert!(
                matches!(&error, Error::Thin(thin::Error::DeviceInUse { device: found, .. }) if found == Path::new(device)),
                "{error}"
            );
            assert_eq!(read(&rig, device, at, 2), [0x53, 0xef], "call {call}");
            write(&rig, device, at, &before);
        }
        let tree = rig.open(options(&rig, two()));
        tree.unwrap_or_else(|error| panic!("call {call}: {error}")).close().unwrap();
    }
}

#[test]
fn a_labelled_device_in_use_is_refused() {
    let rig = disks();
    let labelled = || PoolSource::Device { path: DATA.into() };
    rig.open(options(&rig, labelled())).unwrap().close().unwrap();
    let dm = DeviceMapper::with_kernel(rig.kernel.clone(), UdevPolicy::None).unwrap();
    let linear = Linear { device: DeviceNumber { major: 254, minor: 16 }, start: Sectors(0) };
    let line = linear.over(Sectors(0), Sectors(8));
    let name: DmName = "theirs".parse().unwrap();
    dm.create_active(&name, &"THEIRS".parse().unwrap(), &[line], DmFlags::empty()).unwrap();
    let error = rig.open(options(&rig, labelled())).unwrap_err();
    assert!(error.is_busy() && error.to_string().contains(DATA), "{error}");
    dm.remove(&name).unwrap();
    let tree = rig.open(options(&rig, labelled())).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

/// Docker's options for a device of its own: half of it at first, the rest as it is needed.
fn direct(rig: &Rig) -> Options {
    let device = format!("dm.directlvm_device={DATA}");
    let words = ["dm.thinp_percent=50", "dm.thinp_metapercent=4", "dm.basesize=1G"];
    let grow = ["dm.thinp_autoextend_threshold=60", "dm.thinp_autoextend_percent=50"];
    let options = Options::from_storage_opts([&[&*device][..], &words, &grow].concat()).unwrap();
    options.kernel(rig.kernel.clone()).udev(UdevPolicy::None).filesystem(Filesystem::None)
}

fn fill(rig: &Rig, tree: &SnapshotTree, blocks: std::ops::Range<u64>) {
    let device = tree.activate("full").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), blocks).unwrap();
}

fn data_size(tree: &SnapshotTree) -> Bytes {
    tree.pool().table().unwrap().1.bytes()
}

#[test]
fn a_labelled_device_is_extended_into_what_was_left() {
    let rig = disks();
    let tree = rig.open(direct(&rig)).unwrap();
    // Of 64 MiB without the label's one.
    let half = Bytes(504 * 65_536);
    assert_eq!(data_size(&tree), half);
    tree.add("full", Parent::Base).unwrap();
    fill(&rig, &tree, 0..320);
    let to = Extension::To(Bytes(half.0 / 2 * 3).sectors());
    assert_eq!(tree.extend_pool().unwrap().data, to);
    fill(&rig, &tree, 320..700);
    // All that the device has beside label and metadata.
    let Extension::To(size) = tree.extend_pool().unwrap().data else { panic!("not extended") };
    assert!(size.bytes() > Bytes::mib(58) && size.bytes() < Bytes(SIZE), "{}", size.bytes());
    assert_eq!(tree.extend_pool().unwrap().data, Extension::Exhausted);
    let more = tree.grow_pool(Bytes(SIZE)).unwrap_err();
    assert!(more.to_string().contains("more than is free on the device"), "{more}");
    tree.deactivate("full").unwrap();
    tree.close().unwrap();
    drop(tree);
    let tree = rig.open(direct(&rig)).unwrap();
    assert_eq!((data_size(&tree), tree.check().unwrap()), (size.bytes(), vec![]));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn extending_a_labelled_device_is_atomic_across_crashes() {
    let (before, after) = (Bytes(504 * 65_536), Bytes(756 * 65_536));
    let crashes = Cell::new(0);
    crash_at_each_call(
        |rig| {
            set_disks(rig);
            let tree = rig.open(direct(rig)).unwrap();
            tree.add("full", Parent::Base).unwrap();
            fill(rig, &tree, 0..320);
            tree
        },
        |_, tree| {
            let done = tree.extend_pool()?;
            assert_eq!(done.data, Extension::To(after.sectors()));
            Ok(())
        },
        |rig, call| {
            crashes.set(crashes.get() + 1);
            // Opening extends it, too, and finds what the label says already.
            let tree = rig.open(direct(rig)).unwrap_or_else(|error| panic!("{call}: {error}"));
            // A power cut takes what was written and not committed, and with it the need.
            assert!(data_size(&tree) >= before, "{call}");
            if !call.ends_with("power cut: true") {
                assert!(data_size(&tree) >= after, "{call}");
            }
            assert_eq!(tree.check().unwrap(), [], "{call}");
            tree.deactivate("full").unwrap();
            tree.close().unwrap();
        },
    );
    assert!(crashes.get() > 10, "{}", crashes.get());
}

#[test]
fn shares_of_a_device_that_cannot_be_are_refused() {
    let rig = disks();
    for (data, metadata) in [(0, 1), (100, 1), (255, 255)] {
        let shares = DeviceShares { data, metadata };
        let device = PoolSource::Device { path: DATA.into() };
        let error = rig.open(options(&rig, device).device_shares(shares)).unwrap_err();
        assert!(error.to_string().contains("more than 100 percent"), "{error}");
    }
    let shares = DeviceShares { data: 50, metadata: 1 };
    let error = rig.open(options(&rig, two()).device_shares(shares)).unwrap_err();
    assert!(error.to_string().contains("not on a labelled device"), "{error}");
    assert!(rig.kernel.is_clean());
}

#[test]
fn concurrent_opens_do_not_share_a_data_device() {
    let rig = Rig::new();
    name_disks(&rig, [DATA, METADATA, OTHER_DATA, OTHER_METADATA]);
    let other = PoolSource::Devices { data: DATA.into(), metadata: OTHER_METADATA.into() };
    let roots = [(rig.directory.path().join("a"), two()), (rig.directory.path().join("b"), other)];
    for (root, source) in &roots {
        SnapshotTree::open(root, options(&rig, source.clone()).force_device(true)).unwrap().close().unwrap();
    }
    for round in 0..100 {
        let begin = Barrier::new(2);
        let opened: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = roots
                .iter()
                .map(|(root, source)| {
                    let (rig, begin) = (&rig, &begin);
                    scope.spawn(move || {
                        begin.wait();
                        SnapshotTree::open(root, options(rig, source.clone()))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(opened.iter().filter(|tree| tree.is_ok()).count() <= 1, "round {round}: both have it");
        for tree in opened {
            match tree {
                Ok(tree) => tree.close().unwrap(),
                Err(error) => assert!(error.is_busy(), "round {round}: {error}"),
            }
        }
    }
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

/// Makes a device of a piece of a disk.
fn piece(dm: &DeviceMapper, name: &str, disk: u32, start: Bytes, size: Bytes) -> String {
    let linear = Linear { device: DeviceNumber { major: 254, minor: disk }, start: start.sectors() };
    let line = linear.over(Sectors(0), size.sectors());
    let name: DmName = name.parse().unwrap();
    dm.create_active(&name, &format!("LVM-{name}").parse().unwrap(), &[line], DmFlags::empty()).unwrap();
    dm.node_path(&name).to_str().unwrap().to_owned()
}

#[test]
fn a_pool_lies_on_pieces_of_disks() {
    let rig = disks();
    let dm = DeviceMapper::with_kernel(rig.kernel.clone(), UdevPolicy::None).unwrap();
    // Both at an offset of one disk.
    let data = piece(&dm, "vg-data", 16, Bytes::mib(8), Bytes::mib(32));
    let metadata = piece(&dm, "vg-metadata", 16, Bytes::mib(4), Bytes::mib(4));
    let source = PoolSource::Devices { data: data.clone().into(), metadata: metadata.clone().into() };
    let tree = SnapshotTree::open(rig.root(), options(&rig, source)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    write(&rig, device.to_str().unwrap(), 0, &[7; 4096]);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    drop(tree);
    // What lies beside the pieces is untouched, and what is in them is there.
    let nothing = |from: Bytes, size: Bytes| {
        let found = read(&rig, DATA, from.0, usize::try_from(size.0).unwrap());
        assert!(found.iter().all(|byte| *byte == 0));
    };
    nothing(Bytes(0), Bytes::mib(4));
    nothing(Bytes::mib(40), Bytes::mib(24));
    let options = Options::new().kernel(rig.kernel.clone()).udev(UdevPolicy::None);
    let tree = SnapshotTree::open(rig.root(), options).unwrap();
    let device = tree.activate("a").unwrap();
    assert_eq!(read(&rig, device.to_str().unwrap(), 0, 4096), [7; 4096]);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    for name in ["vg-data", "vg-metadata"] {
        dm.remove(&name.parse::<DmName>().unwrap()).unwrap();
    }
}

/// Targets that the model does not have are refused as by a kernel without their modules.
#[test]
fn the_model_says_which_targets_it_lacks() {
    let rig = disks();
    let dm = DeviceMapper::with_kernel(rig.kernel.clone(), UdevPolicy::None).unwrap();
    for (name, parameters) in [
        ("crypt", "aes-xts-plain64 00000000000000000000000000000000 0 254:16 0"),
        ("flakey", "254:16 0 60 5"),
    ] {
        let line = TargetSpec {
            start: Sectors(0),
            length: Sectors(8),
            target_type: name.parse().unwrap(),
            parameters: &parameters,
        };
        let (name, uuid) = ("secret".parse().unwrap(), "CRYPT-secret".parse().unwrap());
        let refused = dm.create_active(&name, &uuid, &[line], DmFlags::empty()).unwrap_err();
        assert_eq!(refused.errno(), Some(dm_thin::Errno::EINVAL), "{refused}");
        assert!(dm.find(&name).unwrap().is_none(), "nothing is left");
        assert!(dm.target_version(line.target_type).is_err());
    }
}
