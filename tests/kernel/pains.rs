//! What hurt the users of others: one test for each, named after it, here or where it belongs.
//!
//! | pain | shown by |
//! |---|---|
//! | 1 device is busy | here; `trouble::close_refuses_open_devices` |
//! | 2 mounts in other namespaces | here |
//! | 3 nodes missing or stale | here |
//! | 4 semaphores exhausted, waits without end | `dm::udev` (bounded, removed on drop); every `Bench` counts them |
//! | 5 missing udev | here; the whole suite runs without |
//! | 6 deferred removal races with activation | here; `tests/tree`: `removal::activate_cancels_a_deferred_deactivation` |
//! | 7 pool full | here |
//! | 8 metadata exhausted | here |
//! | 9 an active origin not suspended | here |
//! | 10 ids leaked after a crash | here; `tests/tree/life.rs`, `tests/sim`: at every call |
//! | 11 a stray or truncated file | here |
//! | 12 no room to free room | `tests/sim`: `on_a_full_disk_everything_can_be_removed_and_nothing_added` |
//! | 13 the wrong pool, one device twice, two managers | here; `sources` |
//! | 14 not a thin-pool | here |
//! | 15 loop devices leaked, or cleared by a loser | `loopdev`; every `Bench` counts them |
//! | 16 space not returned | `filesystems::removing_gives_the_loop_files_space_back` |
//! | 17 discarded, yet listed | `tests/tree`: `removal::remove_discards_after_the_record_is_durable` |
//! | 18 a mutated retry, slow lists | `dm::wire` tests (a request is an immutable value); no list on the hot path |
//! | 19 two databases, texts parsed for meaning | cannot be: one journal; errnos are numbers |
//! | 20 udev scans snapshots | `dm::udev::UdevFlags::NODE_ONLY` on every device; the suite runs with `--udev`, too |
//! | 21 a changed block size | here |
//! | 22 xfs on a full pool | here; `filesystems::xfs_nospace_max_retries_is_applied` |

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use dm_thin::dm::DmName;
use dm_thin::kernel::{DeviceNumber, Kernel, RealKernel};
use dm_thin::thin;
use dm_thin::thin::{MinFree, PoolFeatures, PoolStatus, Space, ThinId, ThinPool};
use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Filesystem, Finding, Holder, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::{Bench, dm, small};
use crate::rig::{Rig, uuid};

fn impatient() -> Options {
    small().busy_timeout(Duration::from_millis(50))
}

#[test]
fn pain_01_device_is_busy_says_who() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), impatient()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    assert_eq!(tree.holders("a").unwrap(), []);
    let file = fs::File::open(&device).unwrap();
    assert!(matches!(tree.remove("a"), Err(Error::Busy { open_count: 1, .. })));
    let pid = std::process::id();
    let holders = tree.holders("a").unwrap();
    assert!(matches!(&holders[..], [Holder::Process(it)] if it.pid == pid), "{holders:?}");
    drop(file);
    tree.mount("a", bench.path().join("target")).unwrap();
    let holders = tree.holders("a").unwrap();
    assert!(matches!(&holders[..], [Holder::Mount { .. }]), "{holders:?}");
    tree.unmount("a").unwrap();
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

/// A process in a mount namespace of its own, which holds a copy of every mount.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let arguments = ["--mount", "--propagation", "private", "sleep", "1000"];
        let child = Command::new("unshare").args(arguments).spawn().unwrap();
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let is_apart = || {
            let namespace = fs::read_link(format!("/proc/{}/ns/mnt", child.id()));
            let command = fs::read_to_string(format!("/proc/{}/comm", child.id()));
            namespace.is_ok_and(|it| it != own) && command.is_ok_and(|it| it.trim() == "sleep")
        };
        while !is_apart() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn pain_02_a_mount_copied_into_another_namespace() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), impatient()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let target = bench.path().join("target");
    // In a directory of the tree's, the copy ends with it.
    tree.mount("a", &target).unwrap();
    let namespace = Namespace::new();
    assert_eq!(tree.holders("a").unwrap().len(), 2);
    tree.unmount("a").unwrap();
    assert_eq!(tree.get("a").unwrap().device, None);
    drop(namespace);
    // In a directory that stays, it is named.
    fs::create_dir(&target).unwrap();
    tree.mount("a", &target).unwrap();
    let namespace = Namespace::new();
    assert!(tree.unmount("a").unwrap_err().is_busy());
    let holders = tree.holders("a").unwrap();
    let pid = namespace.0.id();
    assert!(matches!(&holders[..], [Holder::Mount { process, .. }] if process.pid == pid), "{holders:?}");
    drop(namespace);
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn pain_03_nodes_are_judged_by_their_number() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let right = RealKernel.block_device(&device).unwrap();
    tree.deactivate("a").unwrap();
    RealKernel.make_node(&device, DeviceNumber { major: 1, minor: 0 }).unwrap();
    tree.activate("a").unwrap();
    assert_eq!(RealKernel.block_device(&device).unwrap().major, right.major);
    // Missing when the next manager comes, too.
    fs::remove_file(&device).unwrap();
    let tree = bench.reopen(tree);
    tree.mount("a", bench.path().join("target")).unwrap();
    tree.unmount("a").unwrap();
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn pain_05_missing_udev_is_no_error() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let node = tree.activate("a").unwrap();
    let name = DmName::new(node.file_name().unwrap().to_str().unwrap()).unwrap();
    assert_eq!(RealKernel.block_device(&node).unwrap(), dm().status(&name).unwrap().number);
    tree.remove("a").unwrap();
    assert!(!node.exists());
    tree.close().unwrap();
}

#[test]
fn pain_06_deferred_removal_races_with_activation() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    for round in 0..20 {
        let file = fs::File::open(tree.activate("a").unwrap()).unwrap();
        let _ = tree.deactivate_deferred("a").unwrap();
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 300));
            drop(file);
        });
        let device = tree.activate("a").unwrap();
        closer.join().unwrap();
        fs::File::open(device).unwrap();
    }
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn pain_07_a_full_pool_refuses_snapshots_before_it_is_full() {
    let bench = Bench::new();
    let options = small().data_size(Bytes::mib(64)).filesystem(Filesystem::None);
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let file = fs::OpenOptions::new().write(true).open(device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 60 << 20], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // The answer to the first message after tells that the low water mark was crossed, if not the clock.
    let _ = tree.add("first", Parent::Snapshot("a"));
    let error = tree.add("b", Parent::Snapshot("a")).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    tree.remove("a").unwrap();
    let _ = tree.remove("first");
    tree.add("b", Parent::Base).unwrap();
    tree.close().unwrap();
}

#[test]
fn pain_08_metadata_runs_low() {
    let bench = Bench::new();
    let options = small().filesystem(Filesystem::None).min_free_metadata(MinFree::Bytes(Bytes::mib(8)));
    let tree = SnapshotTree::open(bench.root(), options).map(drop).unwrap_err();
    // Not even the base is made.
    assert!(matches!(&tree, Error::Thin(thin::Error::LowSpace { space: Space::Metadata, .. })), "{tree}");
    assert!(!bench.root().exists());
}

#[test]
fn pain_09_an_active_origin_is_suspended() {
    let bench = Bench::new();
    let tree = bench.tree();
    let target = bench.path().join("target");
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", &target).unwrap();
    fs::write(target.join("file"), vec![7; 1 << 20]).unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    let device = tree.activate("b").unwrap();
    let checked = Command::new("e2fsck").args(["-fn"]).arg(device).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    tree.unmount("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn pain_10_leaked_ids_are_found() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    for id in [9, 1000] {
        tree.pool().create_thin(ThinId::new(id).unwrap()).unwrap();
    }
    // Ids that this tree never used, too.
    let found = tree.check().unwrap();
    let unknown = |own, id| Finding::UnknownVolume { thin_id: ThinId::new(id).unwrap(), own };
    assert_eq!(found, [unknown(true, 9), unknown(false, 1000)]);
    let repair = tree.repair().unwrap();
    assert_eq!((repair.healed.len(), repair.left.len()), (1, 1));
    // The metadata snapshot was let go.
    let PoolStatus::Usage(usage) = tree.pool().status().unwrap() else { panic!() };
    assert_eq!(usage.held_metadata_root, None);
    // While another program holds it, which is a finding, the volumes are not compared.
    tree.pool().reserve_metadata_snap().unwrap();
    tree.pool().create_thin(ThinId::new(9).unwrap()).unwrap();
    tree.pool().delete(tree.get("a").unwrap().thin_id).unwrap();
    assert_eq!(tree.check().unwrap(), [Finding::MetadataSnapHeld]);
    tree.pool().release_metadata_snap().unwrap();
    assert_eq!(tree.check().unwrap().len(), 3);
    tree.close().unwrap();
}

#[test]
fn pain_11_a_stray_or_truncated_file() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    drop(tree);
    let (root, journal) = (bench.root(), bench.root().join("journal.0"));
    fs::write(root.join("tmp123"), "stray").unwrap();
    fs::write(root.join("state.json.tmp"), "").unwrap();
    // A line that the power cut short, behind the last whole one.
    let bytes = fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    let file = fs::File::options().write(true).open(&journal).unwrap();
    file.write_all_at(&bytes[..end / 2], end as u64).unwrap();
    let tree = bench.tree();
    assert!(tree.contains("a"));
    tree.close().unwrap();
    drop(tree);
    assert_eq!(fs::read_to_string(root.join("tmp123")).unwrap(), "stray");
    // One that is cut off where a change was acknowledged is damage.
    let tree = bench.tree();
    tree.add("b", Parent::Base).unwrap();
    drop(tree);
    let whole = fs::read(&journal).unwrap();
    let end = whole.iter().rposition(|&byte| byte == b'\n').unwrap();
    fs::write(&journal, &whole[..end / 2]).unwrap();
    let error = SnapshotTree::open(&root, small()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if *path == journal), "{error}");
    fs::write(&journal, &whole).unwrap();
    let tree = bench.tree();
    assert!(tree.contains("b"));
    tree.close().unwrap();
}

#[test]
fn pain_13_the_wrong_pool_behind_the_right_name() {
    let bench = Bench::new();
    let mut rig = Rig::with(&bench, dm(), Bytes::gib(1), Bytes::mib(8), PoolFeatures::default());
    let (name, table) = (*rig.pool().name(), rig.table(PoolFeatures::default()));
    let guest = bench.path().join("guest");
    let source = PoolSource::Pool { name: name.to_string() };
    let tree =
        SnapshotTree::open(&guest, Options::new().base_size(Bytes::mib(64)).pool_source(source)).unwrap();
    tree.close().unwrap();
    drop(tree);
    rig.deactivate();
    let size = Bytes::gib(1).sectors();
    let other = ThinPool::create(dm(), &name, &uuid("other"), &table, size).unwrap();
    let error = SnapshotTree::open(&guest, Options::new()).unwrap_err();
    assert!(matches!(error, Error::OptionConflict { option: "pool uuid", .. }), "{error}");
    other.deactivate().unwrap();
}

#[test]
fn pain_14_a_device_that_is_not_a_thin_pool() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let name = DmName::new(device.file_name().unwrap().to_str().unwrap()).unwrap();
    let source = PoolSource::Pool { name: name.to_string() };
    let root = bench.path().join("guest");
    let error = SnapshotTree::open(&root, Options::new().pool_source(source)).unwrap_err();
    assert_eq!(error.to_string(), format!("{name} is a \"thin\" device, not \"thin-pool\""));
    assert!(!root.exists());
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn pain_21_the_block_size_stays() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), small().block_size(Bytes::kib(128))).unwrap();
    tree.close().unwrap();
    drop(tree);
    let tree = SnapshotTree::open(bench.root(), Options::new()).unwrap();
    assert_eq!(tree.status().unwrap().block_size, Bytes::kib(128));
    tree.close().unwrap();
}

#[test]
fn pain_22_xfs_on_a_full_pool_is_unmounted() {
    let bench = Bench::new();
    let features = dm_thin::thin::PoolFeatures {
        no_space: dm_thin::thin::NoSpace::Error,
        ..dm_thin::thin::PoolFeatures::default()
    };
    let options = small().data_size(Bytes::mib(128)).features(features).filesystem(Filesystem::Xfs);
    let options = options.base_size(Bytes::mib(320)).xfs_nospace_max_retries(0);
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    let target = bench.path().join("target");
    tree.add_with("a", Parent::Base, &AddOptions::new()).unwrap();
    tree.mount("a", &target).unwrap();
    let written = fs::File::create(target.join("file")).and_then(|mut file| {
        for _ in 0..200 {
            std::io::Write::write_all(&mut file, &vec![7; 1 << 20])?;
        }
        file.sync_all()
    });
    assert!(written.is_err());
    // It would wait for ever.
    tree.unmount("a").unwrap();
    tree.remove("a").unwrap();
    tree.close().unwrap();
}
