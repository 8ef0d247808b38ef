//! A pool that changes while it is in use: larger, other features; and what cannot change.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::kernel::{DeviceNumber, RealKernel};
use dm_thin::loopdev::LoopControl;
use dm_thin::thin::Error;
use dm_thin::thin::{
    Backing, Discards, LoopFile, NoSpace, Origin, PoolFeatures, PoolTable, ThinPool, ThinUsage, TransactionId,
};
use dm_thin::units::{Blocks, Bytes, Sectors};

use crate::bench::{Bench, dm};
use crate::rig::{BLOCK, Rig, drop_caches, holds, id, name, uuid, write};

#[test]
fn data_grows_tenfold_and_metadata_with_it_under_load() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let volume = rig.volume(1, Bytes::mib(256));
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut block = 0;
            while !done.load(Ordering::Relaxed) {
                write(&volume.path(), block, 8, (block / 8 % 251) as u8).unwrap();
                block += 8;
                written.store(block, Ordering::Relaxed);
            }
            block
        });
        for (next, mib) in (100..).zip([64, 128, 320]) {
            // The writer is well under way each time; a pool that is grown when full is another test.
            while written.load(Ordering::Relaxed) < mib * 4 {
                thread::sleep(Duration::from_millis(1));
            }
            rig.data.grow(Bytes::mib(mib));
            rig.pool().grow_data(Bytes::mib(mib).sectors()).unwrap();
            assert_eq!(rig.usage().total_data, Blocks(mib * 16));
            rig.metadata.grow(Bytes::mib(4 + mib / 16));
            rig.pool().grow_metadata().unwrap();
            assert_eq!(rig.usage().total_metadata, Blocks((4 + mib / 16) * 256));
            rig.pool().create_thin(id(next)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let blocks = writer.join().unwrap();
        drop_caches();
        for block in (0..blocks).step_by(8) {
            assert!(holds(&volume.path(), block, 8, (block / 8 % 251) as u8), "block {block}");
        }
        println!("{blocks} blocks written meanwhile");
    });
}

#[test]
fn a_pool_on_loop_files_alone() {
    let bench = Bench::new();
    let control = || LoopControl::open().unwrap();
    let attach = |what: &str, size: Bytes| {
        let path = bench.path().join(what);
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.unwrap();
        file.set_len(size.0).unwrap();
        let options = dm_thin::loopdev::AttachOptions::new().autoclear(true);
        (control().attach(&file, &path, &options).unwrap(), path)
    };
    let (metadata, metadata_path) = attach("metadata", Bytes::mib(2));
    let (data, data_path) = attach("data", Bytes::mib(32));
    let table = PoolTable::on(&RealKernel, &metadata.path(), &data.path(), BLOCK).unwrap();
    let size = Bytes::mib(32).sectors();
    let pool = ThinPool::create(dm(), &name("pool"), &uuid("pool"), &table, size).unwrap();
    drop((metadata, data));

    let data = LoopFile::find(control(), &data_path).unwrap();
    assert_eq!((data.number(), data.size().unwrap()), (table.data, size));
    data.extend(Bytes::mib(64).sectors()).unwrap();
    pool.grow_data(data.size().unwrap()).unwrap();
    let metadata = LoopFile::find(control(), &metadata_path).unwrap();
    metadata.extend(Bytes::mib(8).sectors()).unwrap();
    pool.grow_metadata().unwrap();
    let status = pool.status().unwrap().to_string();
    assert!(status.contains("/2048 0/1024 "), "{status}");
    // Nothing more to take over.
    let error = pool.grow_metadata().unwrap_err();
    assert!(matches!(error, Error::PoolMode { .. }), "{error}");
    // The kernel says EINVAL to more than there is, and the pool goes on as it was.
    let error = pool.grow_data(Bytes::mib(128).sectors()).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
    pool.create_thin(id(1)).unwrap();
    // Sparse files: what the file system has is what there is.
    let available = data.below().unwrap().unwrap().free;
    assert!(available > Bytes::mib(64) && available < Bytes::gib(16), "{available}");
    pool.deactivate().unwrap();
    bench.audit();
    let error = LoopFile::find(control(), &data_path).unwrap_err();
    assert!(matches!(error, Error::BackingFile { .. }), "{error}");
}

#[test]
fn features_change_where_the_kernel_allows() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let _volume = rig.volume(1, Bytes::mib(8));
    for no_space in [NoSpace::Error, NoSpace::Queue] {
        rig.pool().set_no_space(no_space).unwrap();
        assert_eq!(rig.usage().no_space, Some(no_space));
    }
    rig.pool().set_low_water_mark(Blocks(99)).unwrap();
    let (table, size) = rig.pool().table().unwrap();
    assert_eq!(table.low_water_mark, Blocks(99));
    let with = |change: fn(&mut PoolTable)| {
        let mut table = table;
        change(&mut table);
        rig.pool().reload(&table, size)
    };
    with(|table| table.features.discards = Discards::NoPassdown).unwrap();
    assert_eq!(rig.usage().discards, Discards::NoPassdown);
    with(|table| table.features.skip_block_zeroing = true).unwrap();
    assert!(rig.pool().table().unwrap().0.features.skip_block_zeroing);
    with(|table| table.features.read_only = true).unwrap();
    let error = rig.pool().create_thin(id(2)).unwrap_err();
    assert_eq!(error.to_string(), "pool dm-thin-pool is ro: the message was refused");
    with(|_| {}).unwrap();
    rig.pool().create_thin(id(2)).unwrap();
}

#[test]
fn unchangeable_properties_are_refused_by_name() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let (table, size) = rig.pool().table().unwrap();
    let with = |change: fn(&mut PoolTable)| {
        let mut table = table;
        change(&mut table);
        rig.pool().reload(&table, size).unwrap_err()
    };
    let what = |error: Error| match error {
        Error::Unchangeable { what, .. } => what,
        error => panic!("{error}"),
    };
    assert_eq!(
        with(|table| table.block_size = Sectors(256)).to_string(),
        "block size of dm-thin-pool is 64 KiB; it cannot become 128 KiB"
    );
    let elsewhere = DeviceNumber { major: 254, minor: 16 };
    assert_eq!(
        what(with(|table| table.metadata = DeviceNumber { major: 254, minor: 16 })),
        "metadata device"
    );
    assert_eq!(what(with(|table| table.data = DeviceNumber { major: 254, minor: 16 })), "data device");
    assert_eq!(what(with(|table| table.features.discards = Discards::Ignore)), "discards");
    assert!(matches!(with(|table| table.block_size = Sectors(100)), Error::InvalidOption { .. }));
    assert!(matches!(with(|table| table.data = table.metadata), Error::InvalidOption { .. }));
    let error = rig.pool().reload(&table, Bytes::mib(16).sectors()).unwrap_err();
    assert_eq!(error.to_string(), "data size: 32768 sectors: smaller than the pool is");
    assert_eq!(rig.pool().table().unwrap(), (table, size));

    // A device is told by its number, whatever its path.
    let other = Path::new("/dev").join(format!("dm-{}", rig.data.number.minor));
    let error = PoolTable::on(&RealKernel, &rig.data.node(), &other, BLOCK).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "data device", .. }), "{error}");
    let error = PoolTable::on(&RealKernel, Path::new("/no/such"), &other, BLOCK).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let error = PoolTable::on(&RealKernel, &rig.data.path, &other, BLOCK).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOTBLK), "{error}");
    // Held by this pool, the metadata is not for another one.
    let free = PoolTable { data: elsewhere, ..table };
    let error = ThinPool::create(dm(), &name("pool2"), &uuid("pool2"), &free, size).unwrap_err();
    assert!(error.is_busy(), "{error}");
}

#[test]
fn the_metadata_snapshot_is_reserved_and_released() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    rig.pool().reserve_metadata_snap().unwrap();
    assert!(rig.usage().held_metadata_root.is_some());
    assert!(rig.pool().reserve_metadata_snap().unwrap_err().is_busy());
    rig.pool().release_metadata_snap().unwrap();
    assert_eq!(rig.usage().held_metadata_root, None);
    assert_eq!(rig.pool().release_metadata_snap().unwrap_err().errno(), Some(Errno::EINVAL));
    // Any message, as text.
    rig.pool().message("create_thin 5".parse().unwrap()).unwrap();
    rig.pool().message("set_transaction_id 0 7".parse().unwrap()).unwrap();
    assert_eq!(rig.usage().transaction_id, TransactionId(7));
}

#[test]
fn deleting_frees_what_is_exclusive() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let volume = rig.volume(1, Bytes::mib(8));
    write(&volume.path(), 0, 16, 1).unwrap();
    let suspended = volume.suspend().unwrap();
    rig.pool().create_snap(id(2), &Origin::Suspended(&suspended)).unwrap();
    suspended.resume().unwrap();
    let snapshot = rig.activated(2, Bytes::mib(8));
    write(&snapshot.path(), 12, 10, 2).unwrap();
    snapshot.deactivate().unwrap();
    let [mapped, shared] = [16, 12].map(Blocks);
    let one = ThinUsage { id: id(1), mapped, exclusive: Blocks(4), shared };
    let two = ThinUsage { id: id(2), mapped: Blocks(22), exclusive: Blocks(10), shared };
    assert_eq!(rig.pool().thin_devices().unwrap(), [one, two]);
    assert_eq!(rig.pool().thin_ids().unwrap(), [id(1), id(2)]);
    let used = rig.usage().used_data;
    rig.pool().delete(id(2)).unwrap();
    assert_eq!(used - rig.usage().used_data, two.exclusive);
    let alone = ThinUsage { exclusive: mapped, shared: Blocks(0), ..one };
    assert_eq!(rig.pool().thin_devices().unwrap(), [alone]);
}

#[test]
fn the_metadata_snapshot_is_released_on_error_and_panic() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    let pool = rig.pool();
    let is_held = || rig.usage().held_metadata_root.is_some();
    assert!(pool.with_metadata_snap(|| Ok(is_held())).unwrap());
    assert!(!is_held());
    let failed = pool.with_metadata_snap(|| Err::<(), _>(Error::NoLabel { device: "none".into() }));
    assert!(matches!(failed, Err(Error::NoLabel { .. })));
    assert!(!is_held());
    let panic = std::panic::AssertUnwindSafe(|| {
        pool.with_metadata_snap(|| -> Result<(), _> { panic!("on purpose") })
    });
    std::panic::catch_unwind(panic).unwrap_err();
    assert!(!is_held());
    // Two at a time take turns; another holder is told of, and left alone.
    std::thread::scope(|scope| {
        let one = || (0..5).for_each(|_| assert_eq!(pool.thin_ids().unwrap(), []));
        scope.spawn(one);
        scope.spawn(one);
    });
    pool.reserve_metadata_snap().unwrap();
    let error = pool.thin_devices().unwrap_err();
    assert!(matches!(error, Error::MetadataSnapHeld { .. }) && error.is_busy(), "{error}");
    assert!(is_held());
    pool.release_metadata_snap().unwrap();
}
