//! Differences between state and system: found, explained, and healed where that is safe.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::{DeviceMapper, DmFlags, DmName, UdevPolicy};
use dm_thin::kernel::{DeviceNumber, Kernel};
use dm_thin::model::Mode;
use dm_thin::thin;
use dm_thin::thin::ThinId;
use dm_thin::thin::tools::CheckPolicy;
use dm_thin::tree::Error;
use dm_thin::tree::{DeviceProblem, Finding, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::rig::Rig;

fn dm(rig: &Rig) -> DeviceMapper {
    DeviceMapper::with_kernel(rig.kernel.clone(), UdevPolicy::None).unwrap()
}

fn name(path: &Path) -> DmName {
    DmName::new(path.file_name().unwrap().to_str().unwrap()).unwrap()
}

/// What is found is this, and after a repair it is gone, or still there.
fn finds(tree: &SnapshotTree, expected: &[Finding], healed: bool) {
    assert_eq!(tree.check().unwrap(), expected);
    expected.iter().for_each(|finding| println!("{finding}"));
    let repair = tree.repair().unwrap();
    let (gone, left) = if healed { (expected, &[][..]) } else { (&[][..], expected) };
    assert_eq!((&repair.healed[..], &repair.left[..]), (gone, left));
}

#[test]
fn check_of_a_healthy_tree_finds_nothing() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    tree.activate("b").unwrap();
    tree.remove("a").unwrap();
    rig.kernel.clear_log();
    finds(&tree, &[], true);
    tree.deactivate("b").unwrap();
    tree.close().unwrap();
}

#[test]
fn check_allocates_nothing_and_takes_few_ioctls() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().base_size(Bytes::mib(128))).unwrap();
    let calls = || {
        rig.kernel.clear_log();
        assert_eq!((tree.check().unwrap(), tree.repair().unwrap().left), (vec![], vec![]));
        rig.kernel.log().len()
    };
    // Of three checks.
    let empty = calls();
    assert!(empty < 150, "{empty} calls");
    for index in 0..200 {
        tree.add(index.to_string(), Parent::Base).unwrap();
    }
    // Blocks of the metadata are read, and no volume is asked for.
    let many = calls();
    assert!(many < empty + 30, "{many} calls with 200 snapshots");
    // Nothing is left of the data; a snapshot is refused long before.
    let device = tree.activate("0").unwrap();
    rig.kernel.fill(device.file_name().unwrap().to_str().unwrap(), 0).unwrap();
    tree.deactivate("0").unwrap();
    assert!(tree.add("more", Parent::Base).unwrap_err().is_out_of_space());
    let full = calls();
    assert!(full < empty + 30, "{full} calls in a full pool");
    tree.close().unwrap();
}

#[test]
fn repair_removes_a_device_without_a_table() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    // Made, though the caller is told that it was not: there is nothing to undo.
    let device = name(&tree.activate("a").unwrap());
    let uuid = dm(&rig).status(&device).unwrap().uuid.unwrap();
    tree.deactivate("a").unwrap();
    dm(&rig).create(&device, Some(&uuid)).unwrap();
    let (id, problem) = (tree.get("a").unwrap().id, DeviceProblem::Table { found: String::new() });
    finds(&tree, &[Finding::WrongDevice { id, device, problem }], true);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn volumes() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let thin_id = ThinId::new(9).unwrap();
    tree.pool().create_thin(thin_id).unwrap();
    finds(&tree, &[Finding::UnknownVolume { thin_id, own: true }], true);
    let info = tree.get("a").unwrap();
    tree.pool().delete(info.thin_id).unwrap();
    finds(&tree, &[Finding::MissingVolume { id: Some(info.id), thin_id: info.thin_id }], false);
    tree.close().unwrap();
}

#[test]
fn devices() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let path = tree.activate("a").unwrap();
    let (id, device) = (tree.get("a").unwrap().id, name(&path));
    let wrong = |device: &DmName, problem| Finding::WrongDevice { id: id.clone(), device: *device, problem };
    // The same without the lock.
    let options = rig.options();
    let seen = || SnapshotTree::open_read_only(rig.root(), &options).unwrap().check().unwrap();
    assert_eq!(seen(), []);
    dm(&rig).suspend(&device, DmFlags::empty()).unwrap();
    assert_eq!(seen(), [wrong(&device, DeviceProblem::Suspended)]);
    finds(&tree, &[wrong(&device, DeviceProblem::Suspended)], true);
    dm(&rig).remove(&device).unwrap();
    finds(&tree, &[Finding::DeviceGone { id: id.clone() }], true);
    assert_eq!(tree.get("a").unwrap().device, None);

    // As a process that died before its first record leaves it.
    let uuid = format!("DMTHIN-{}-17", tree.uuid().simple());
    // What its name says to a reader is the name of another device, which is not to be harmed.
    let stray = DmName::from_bytes(b"stray\xe9").unwrap();
    let namesake = DmName::new(&stray.to_string()).unwrap();
    dm(&rig).create(&namesake, None).unwrap();
    dm(&rig).create(&stray, Some(&uuid.parse().unwrap())).unwrap();
    let thin_id = ThinId::new(17).unwrap();
    assert_eq!(seen(), [Finding::UnknownDevice { device: stray, thin_id }]);
    finds(&tree, &[Finding::UnknownDevice { device: stray, thin_id }], true);
    dm(&rig).remove(&namesake).unwrap();

    let node = format!("{}stale", device.to_str().unwrap().strip_suffix('a').unwrap());
    let make = |name: &str| {
        let number = DeviceNumber { major: 253, minor: 99 };
        rig.kernel.make_node(&Path::new("/dev/mapper").join(name), number).unwrap();
    };
    make(&node);
    // What no device can have had is somebody else's.
    let long = node.clone() + &"x".repeat(120);
    make(&long);
    finds(&tree, &[Finding::StaleNode { name: node.parse().unwrap() }], true);
    rig.kernel.remove_node(&Path::new("/dev/mapper").join(long)).unwrap();
    tree.close().unwrap();
    assert!(rig.kernel.is_clean());
}

#[test]
fn repair_deletes_volumes_of_a_failed_undo() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("first", Parent::Base).unwrap();
    rig.kernel.clear_log();
    tree.add("a", Parent::Base).unwrap();
    let message = rig.kernel.log().iter().position(|call| call.name == "DM_TARGET_MSG").unwrap() as u64 + 1;
    // The pool made it, and did not delete it.
    rig.kernel.lose_answer_at(message, Errno::EIO);
    rig.kernel.fail_at(message + 2, Errno::EIO);
    tree.add("b", Parent::Base).unwrap_err();
    let thin_id = tree.get("a").unwrap().thin_id.get() + 1;
    let thin_id = ThinId::new(thin_id).unwrap();
    tree.add("b", Parent::Base).unwrap();
    finds(&tree, &[Finding::UnknownVolume { thin_id, own: true }], true);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean());
}

#[test]
fn mounts() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let target: PathBuf = rig.directory.path().canonicalize().unwrap().join("target");
    std::fs::create_dir(&target).unwrap();
    rig.kernel.run("mkfs.ext4", &[device.as_os_str()]).unwrap();
    rig.kernel.mount(Some(&device), &target, Some("ext4"), MountFlags::empty(), "").unwrap();
    let id = tree.get("a").unwrap().id;
    finds(&tree, &[Finding::AlsoMounted { id: id.clone(), target: target.clone() }], false);
    // It is theirs for the next manager, too.
    drop(tree);
    let tree = rig.tree();
    finds(&tree, &[Finding::AlsoMounted { id: id.clone(), target: target.clone() }], false);
    rig.kernel.unmount(&target, UnmountFlags::empty()).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn the_pool_and_its_files() {
    let rig = Rig::new();
    let tree = rig.tree();
    let pool = tree.pool().name().to_string();
    let (file, away) = (rig.root().join("pool/data"), rig.root().join("pool/data.away"));
    std::fs::rename(&file, &away).unwrap();
    finds(&tree, &[Finding::NotBound { path: file.clone() }], false);
    std::fs::rename(&away, &file).unwrap();
    let (size, expected) = (Bytes::mib(8), Bytes::mib(64));
    let set_len = |len: Bytes| File::options().write(true).open(&file).unwrap().set_len(len.0).unwrap();
    set_len(size);
    finds(&tree, &[Finding::Truncated { path: file.clone(), size, expected }], false);
    set_len(expected);
    rig.kernel.set_mode(&pool, Mode::OutOfDataSpace).unwrap();
    let findings = tree.check().unwrap();
    assert!(matches!(findings[..], [Finding::Pool { needs_check: false, .. }]), "{findings:?}");
    rig.kernel.set_needs_check(&pool, true).unwrap();
    for mode in [Mode::ReadOnly, Mode::Fail] {
        rig.kernel.set_mode(&pool, mode).unwrap();
        let findings = tree.check().unwrap();
        let needs_check = mode == Mode::ReadOnly;
        assert!(
            matches!(findings[..], [Finding::Pool { needs_check: it, .. }] if it == needs_check),
            "{findings:?}"
        );
    }
    drop(tree);
}

/// A tree whose pool has failed a commit. Its manager was killed, or the power went.
fn needs_check(power: bool) -> Rig {
    let mut rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let pool = tree.pool().name().to_string();
    rig.kernel.set_needs_check(&pool, true).unwrap();
    rig.kernel.set_mode(&pool, Mode::ReadOnly).unwrap();
    if power {
        rig.kernel = Arc::new(rig.kernel.power_cut());
    }
    drop(tree);
    rig.kernel.clear_log();
    rig
}

#[test]
fn open_clears_needs_check() {
    for power in [false, true] {
        let rig = needs_check(power);
        let tree = rig.tree();
        let log = rig.kernel.log();
        let runs: Vec<_> = log.iter().enumerate().filter(|(_, call)| call.name == "run").collect();
        let [(at, run)] = runs[..] else { panic!("{log:?}") };
        assert_eq!(run.subject, "thin_check");
        assert!(tree.contains("a"));
        tree.add("b", Parent::Base).unwrap();
        assert_eq!(tree.check().unwrap(), []);
        tree.close().unwrap();

        // It is not installed.
        let rig = needs_check(power);
        rig.kernel.fail_at(1 + at as u64, Errno::ENOENT);
        let error = rig.open(rig.options()).unwrap_err();
        assert!(
            matches!(error, Error::Thin(thin::Error::ToolMissing { program: "thin_check", .. })),
            "{error}"
        );
        assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
        rig.tree().close().unwrap();
    }
}

#[test]
fn open_does_not_format_metadata_whose_superblock_was_zeroed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.close().unwrap();
    drop(tree);
    let path = rig.root().join("pool/metadata");
    let metadata = File::options().read(true).write(true).open(&path).unwrap();
    let mut superblock = [0; 4096];
    metadata.read_exact_at(&mut superblock, 0).unwrap();
    metadata.write_all_at(&[0; 4096], 0).unwrap();
    for policy in [CheckPolicy::Never, CheckPolicy::IfPresent] {
        let error = rig.open(rig.options().check_metadata(policy)).unwrap_err();
        assert!(matches!(&error, Error::BackingFile { path: found, .. } if *found == path), "{error}");
        assert!(rig.kernel.is_clean());
    }
    metadata.write_all_at(&superblock, 0).unwrap();
    let tree = rig.tree();
    assert!(tree.contains("a"));
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn check_reports_a_metadata_snapshot_of_another_program_only() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.pool().reserve_metadata_snap().unwrap();
    assert_eq!(tree.check().unwrap(), [Finding::MetadataSnapHeld]);
    tree.pool().release_metadata_snap().unwrap();
    // A reader of this tree, as `usage` is one, is waited for.
    let (holds, held) = mpsc::channel();
    let read = || {
        holds.send(()).unwrap();
        thread::sleep(Duration::from_millis(200));
        Ok(())
    };
    thread::scope(|scope| {
        scope.spawn(|| tree.pool().with_metadata_snap(read).unwrap());
        held.recv().unwrap();
        assert_eq!(tree.check().unwrap(), []);
    });
    tree.close().unwrap();
}
