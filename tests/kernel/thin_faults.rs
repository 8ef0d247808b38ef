//! Devices that fail under the pool: what is told, by which call, and the way back.

use std::fs::File;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::thin::tools::CheckPolicy;
use dm_thin::thin::{Origin, PoolEvent, PoolFeatures, PoolMode, TransactionId, tools};
use dm_thin::tree::{Filesystem, Finding, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::{Blocks, Bytes};
use dm_thin::{thin, tree};

use crate::bench::{Bench, dm, small};
use crate::rig::{BLOCK, Disk, Rig, holds, id, write};
use crate::spy::Spy;

const SIZE: Bytes = Bytes::mib(8);

fn mode_of(error: &thin::Error) -> PoolMode {
    match error {
        thin::Error::PoolMode { mode, .. } => *mode,
        error => panic!("{error}"),
    }
}

/// A pool that can be written to again: `needs_check` is cleared if the metadata is sound.
fn repair_in_place(rig: &mut Rig) {
    rig.deactivate();
    tools::thin_check(&rig.metadata.node()).unwrap();
    tools::clear_needs_check(&rig.metadata.node()).unwrap();
    rig.activate(PoolFeatures::default());
    assert_eq!(rig.mode(), PoolMode::ReadWrite);
    assert!(!rig.usage().needs_check);
}

#[test]
fn a_message_reports_a_pool_that_became_read_only() {
    let bench = Bench::new();
    let (kernel, mapper) = Spy::mapper();
    let mut rig = Rig::with(&bench, mapper, Bytes::mib(32), Bytes::mib(4), PoolFeatures::default());
    kernel.ioctls();
    for n in 0..20 {
        rig.pool().create_thin(id(n)).unwrap();
    }
    assert_eq!(kernel.ioctls(), ["DM_TARGET_MSG"; 20], "a success costs one ioctl");

    rig.metadata.fail_writes();
    kernel.ioctls();
    let error = rig.pool().create_thin(id(20)).unwrap_err();
    println!("the very call: {error}; {}", rig.pool().status().unwrap());
    assert_eq!(mode_of(&error), PoolMode::ReadOnly);
    assert_eq!(&kernel.ioctls()[..2], ["DM_TARGET_MSG", "DM_TABLE_STATUS"], "the status only names it");
    let error = rig.pool().create_snap(id(21), &Origin::Inactive(id(0))).unwrap_err();
    let hint = "once it is deactivated, thin::tools::clear_needs_check may heal it";
    assert_eq!(error.to_string(), format!("pool dm-thin-pool is ro: the message was refused; {hint}"));
    assert!(rig.usage().needs_check);

    rig.metadata.heal();
    // A device that works again is not enough: growing is refused, too, and says so.
    rig.data.grow(Bytes::mib(64));
    let error = rig.pool().grow_data(Bytes::mib(64).sectors()).unwrap_err();
    assert_eq!(mode_of(&error), PoolMode::ReadOnly);
    repair_in_place(&mut rig);
    assert_eq!(rig.usage().total_data, Blocks(1024));
    // What succeeded is there, what did not is not.
    for n in 0..20 {
        rig.pool().delete(id(n)).unwrap();
    }
    assert_eq!(rig.pool().delete(id(20)).unwrap_err().errno(), Some(Errno::ENODATA));
    rig.pool().create_thin(id(20)).unwrap();
}

#[test]
fn every_message_succeeds_durably_or_says_the_mode() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    // The metadata fails at another message of the row each time.
    for (round, failing) in [0u32, 1, 2, 5, 9].into_iter().enumerate() {
        let first = 1000 * u32::try_from(round).unwrap();
        let mut there = Vec::new();
        let volume = rig.volume(first, SIZE);
        there.push(first);
        write(&volume.path(), 0, 16, 1).unwrap();
        for n in 1..12 {
            if n == failing + 1 {
                if round % 2 == 0 { rig.metadata.fail_writes() } else { rig.metadata.fail() }
            }
            let new = first + n;
            let result = volume.suspend().and_then(|suspended| {
                let made = rig.pool().create_snap(id(new), &Origin::Suspended(&suspended));
                suspended.resume().and(made)
            });
            match result {
                Ok(()) => there.push(new),
                Err(error) => {
                    assert!(n > failing, "{error}");
                    // Without a commit the kernel does not know yet: then the error is the message's own.
                    let refused = matches!(error.errno(), Some(Errno::EINVAL | Errno::EIO));
                    assert!(refused || !mode_of(&error).is_sound(), "{error}");
                }
            }
        }
        println!("failing at {failing}: {} made, then {}", there.len(), rig.pool().status().unwrap());
        volume.deactivate().unwrap();
        rig.metadata.heal();
        repair_in_place(&mut rig);
        for &n in &there {
            let volume = rig.activated(n, SIZE);
            assert!(holds(&volume.path(), 0, 16, 1), "{n}");
            volume.deactivate().unwrap();
        }
        // Nothing but those: deleting the rest finds nothing.
        for n in (0..12).map(|n| first + n) {
            let deleted = rig.pool().delete(id(n));
            assert_eq!(deleted.is_ok(), there.contains(&n), "{n}: {deleted:?}");
        }
    }
    rig.deactivate();
    tools::thin_check(&rig.metadata.node()).unwrap();
    rig.activate(PoolFeatures::default());
}

#[test]
fn data_that_cannot_be_written_does_not_harm_the_metadata() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let volume = rig.volume(1, SIZE);
    write(&volume.path(), 0, 16, 1).unwrap();
    rig.data.fail_writes();
    write(&volume.path(), 0, 16, 2).unwrap_err();
    write(&volume.path(), 16, 16, 2).unwrap_err();
    rig.data.heal();
    println!("{}", rig.pool().status().unwrap());
    volume.deactivate().unwrap();
    if rig.mode() == PoolMode::ReadWrite {
        rig.deactivate();
        rig.activate(PoolFeatures::default());
    } else {
        repair_in_place(&mut rig);
    }
    let volume = rig.activated(1, SIZE);
    write(&volume.path(), 0, 32, 3).unwrap();
    assert!(holds(&volume.path(), 0, 32, 3));
}

#[test]
fn events_tell_of_a_fault() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let mut watcher = rig.pool().watch().unwrap();
    assert_eq!(watcher.next_within(Duration::ZERO).unwrap(), None);
    rig.metadata.fail_writes();
    rig.pool().create_thin(id(1)).unwrap_err();
    let soon = Duration::from_secs(10);
    assert_eq!(watcher.next_within(soon).unwrap(), Some(PoolEvent::ReadOnly));
    assert_eq!(watcher.next_within(soon).unwrap(), Some(PoolEvent::NeedsCheck));
    // A watch that begins late misses nothing.
    let mut late = rig.pool().watch().unwrap();
    assert_eq!(late.next().unwrap().unwrap(), PoolEvent::ReadOnly);
    drop(late);
    rig.metadata.heal();
    drop(watcher);
    repair_in_place(&mut rig);
    let pool = rig.pool.take().unwrap();
    let mut watcher = pool.watch().unwrap();
    assert_eq!(watcher.next_within(Duration::ZERO).unwrap(), None);
    pool.deactivate().unwrap();
    assert_eq!(watcher.next().unwrap().unwrap(), PoolEvent::Removed);
    assert!(watcher.next().is_none());
}

#[test]
fn damaged_metadata_is_repaired_into_a_spare() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let volume = rig.volume(1, SIZE);
    write(&volume.path(), 0, 32, 8).unwrap();
    volume.deactivate().unwrap();
    rig.deactivate();
    // The superblock's checksum.
    use std::os::unix::fs::FileExt;
    let node = File::options().write(true).open(rig.metadata.node()).unwrap();
    node.write_all_at(&[0xff; 4], 0).unwrap();
    node.sync_all().unwrap();
    drop(node);
    let error = tools::thin_check(&rig.metadata.node()).unwrap_err();
    assert!(matches!(&error, thin::Error::Tool { program: "thin_check", .. }), "{error}");
    println!("{error}");

    let spare = Disk::new(&bench, &dm(), "metadata-spare", Bytes::mib(4));
    let error = tools::thin_repair(&rig.metadata.node(), &rig.metadata.node(), None).unwrap_err();
    assert!(matches!(error, thin::Error::InvalidOption { option: "spare metadata", .. }), "{error}");
    // What the superblock said has to come from elsewhere.
    let error = tools::thin_repair(&rig.metadata.node(), &spare.node(), None).unwrap_err();
    assert!(matches!(&error, thin::Error::Tool { program: "thin_repair", .. }), "{error}");
    let facts = tools::SuperblockOverrides {
        transaction_id: TransactionId(0),
        block_size: BLOCK,
        data_blocks: Blocks(512),
    };
    tools::thin_repair(&rig.metadata.node(), &spare.node(), Some(&facts)).unwrap();
    tools::thin_check(&spare.node()).unwrap();
    let damaged = std::mem::replace(&mut rig.metadata, spare);
    rig.activate(PoolFeatures::default());
    let volume = rig.activated(1, SIZE);
    assert!(holds(&volume.path(), 0, 32, 8));
    drop(rig);
    drop(damaged);
}

/// In this system it is in PATH or in /usr/sbin: nothing is found where these are covered.
fn without<T>(tool: &str, work: impl FnOnce() -> T) -> T {
    use dm_thin::abi::mount::MountFlags;
    use dm_thin::kernel::{Kernel, RealKernel};
    let bind = MountFlags::from_bits_retain(4096);
    let paths: std::collections::BTreeSet<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .filter_map(|directory| directory.join(tool).canonicalize().ok())
        .collect();
    let null = std::path::Path::new("/dev/null");
    paths.iter().for_each(|path| RealKernel.mount(Some(null), path, None, bind, "").unwrap());
    let result = work();
    paths.iter().for_each(|path| RealKernel.unmount(path, Default::default()).unwrap());
    result
}

#[test]
fn a_tool_that_is_not_installed_is_named() {
    let bench = Bench::new();
    let error = without("thin_check", || tools::thin_check(&bench.path().join("metadata")));
    assert_eq!(
        error.unwrap_err().to_string(),
        "thin_check is not installed (package thin-provisioning-tools)"
    );
}

#[test]
fn a_tree_checks_its_metadata_before_it_activates_the_pool() {
    let bench = Bench::new();
    let path = bench.root().join("pool/metadata");
    let open = |policy| SnapshotTree::open(bench.root(), small().check_metadata(policy));
    // New metadata is blank, and passes.
    let tree = open(CheckPolicy::Required).unwrap();
    tree.add("a", Parent::Base).unwrap();
    // What is active is taken as it is.
    drop(tree);
    without("thin_check", || open(CheckPolicy::Required)).unwrap().close().unwrap();
    let missing = without("thin_check", || open(CheckPolicy::Required)).unwrap_err();
    assert!(
        matches!(missing, tree::Error::Thin(thin::Error::ToolMissing { program: "thin_check", .. })),
        "{missing}"
    );
    without("thin_check", || open(CheckPolicy::IfPresent)).unwrap().close().unwrap();
    open(CheckPolicy::IfPresent).unwrap().close().unwrap();

    // Everything but the superblock, where the kernel would not look yet.
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    for block in bad.chunks_mut(4096).skip(1).filter(|block| block.iter().any(|&byte| byte != 0)) {
        block[1000] ^= 1;
    }
    std::fs::write(&path, &bad).unwrap();
    for policy in [CheckPolicy::Required, CheckPolicy::IfPresent] {
        let error = open(policy).unwrap_err();
        println!("{error}");
        assert!(
            matches!(&error, tree::Error::Thin(thin::Error::Tool { program: "thin_check", .. })),
            "{error}"
        );
        bench.audit();
        assert!(std::fs::read(&path).unwrap() == bad, "not touched");
    }
    std::fs::write(&path, &good).unwrap();
    let tree = open(CheckPolicy::Required).unwrap();
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_tree_clears_needs_check_when_it_is_opened() {
    let bench = Bench::new();
    let data = Disk::new(&bench, &dm(), "data", Bytes::mib(64));
    let metadata = Disk::new(&bench, &dm(), "metadata", Bytes::mib(16));
    let open = || {
        let devices = PoolSource::Devices { data: data.node(), metadata: metadata.node() };
        let options = Options::new().pool_source(devices).base_size(Bytes::mib(16)).background_threads(false);
        SnapshotTree::open(bench.root(), options.filesystem(Filesystem::None))
    };
    let mut tree = open().unwrap();
    for (id, closes) in [("a", false), ("b", true)] {
        tree.add(id, Parent::Base).unwrap();
        metadata.fail_writes();
        let error = tree.add("lost", Parent::Base).unwrap_err();
        let tree::Error::Thin(error) = error else { panic!("{error}") };
        assert_eq!(mode_of(&error), PoolMode::ReadOnly);
        metadata.heal();
        // As long as somebody uses it the pool stays as it is: the tree opens for looking.
        tree.activate(id).unwrap();
        drop(tree);
        tree = open().unwrap();
        let needs_check = Finding::Pool { mode: PoolMode::ReadOnly, needs_check: true };
        assert!(tree.check().unwrap().contains(&needs_check));
        tree.deactivate(id).unwrap();
        if closes {
            tree.close().unwrap();
        }
        drop(tree);
        let missing = without("thin_check", open).unwrap_err();
        assert!(
            matches!(missing, tree::Error::Thin(thin::Error::ToolMissing { program: "thin_check", .. })),
            "{missing}"
        );
        tree = open().unwrap();
        assert!(tree.contains(id) && !tree.contains("lost"));
        assert_eq!(tree.check().unwrap(), []);
    }
    tree.close().unwrap();
    for disk in [data, metadata] {
        disk.dm.remove(&disk.name).unwrap();
    }
}
