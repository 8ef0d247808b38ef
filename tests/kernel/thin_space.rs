//! Space that runs out: the guard before it, the events on the way, growing out of it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dm_thin::Errno;
use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::thin::Error;
use dm_thin::thin::{
    AutoExtend, ExtendRule, Extended, Extension, LoopFile, MinFree, NoSpace, PoolEvent, PoolFeatures,
    PoolMode, PoolTable, PoolWatcher, Space, SpaceGuard, ThinPool,
};
use dm_thin::units::{Blocks, Bytes};

use crate::bench::{Bench, dm};
use crate::rig::{BLOCK, Rig, TakeDown, drop_caches, holds, id, name, uuid, write};
use crate::spy::Spy;

const SOON: Duration = Duration::from_secs(20);

fn next(watcher: &mut PoolWatcher<&ThinPool>) -> PoolEvent {
    watcher.next_within(SOON).unwrap().expect("an event")
}

fn nothing(watcher: &mut PoolWatcher<&ThinPool>) {
    assert_eq!(watcher.next_within(Duration::from_millis(100)).unwrap(), None);
}

#[test]
fn writes_fail_with_enospc_until_the_pool_grows() {
    let bench = Bench::new();
    let features = PoolFeatures { no_space: NoSpace::Error, ..Default::default() };
    let rig = Rig::new(&bench, Bytes::mib(16), features);
    let volume = rig.volume(1, Bytes::mib(64));
    let mut watcher = rig.pool().watch().unwrap();
    nothing(&mut watcher);
    write(&volume.path(), 0, 240, 1).unwrap();
    nothing(&mut watcher);
    write(&volume.path(), 240, 1, 1).unwrap();
    assert_eq!(next(&mut watcher), PoolEvent::LowWater { free: Blocks(15) });
    nothing(&mut watcher);
    let full = write(&volume.path(), 240, 32, 2).unwrap_err();
    println!("write to the full pool: {full}");
    assert_eq!(next(&mut watcher), PoolEvent::OutOfDataSpace);
    assert_eq!(rig.mode(), PoolMode::OutOfDataSpace);
    // The metadata still works: room can be made.
    rig.pool().create_thin(id(2)).unwrap();
    assert!(holds(&volume.path(), 0, 240, 1));
    rig.data.grow(Bytes::mib(32));
    rig.pool().grow_data(Bytes::mib(32).sectors()).unwrap();
    assert_eq!(next(&mut watcher), PoolEvent::Recovered);
    write(&volume.path(), 240, 32, 2).unwrap();
    drop_caches();
    assert!(holds(&volume.path(), 0, 240, 1) && holds(&volume.path(), 240, 32, 2));
}

#[test]
fn a_wakeup_of_the_watcher_costs_two_ioctls() {
    let bench = Bench::new();
    let (kernel, mapper) = Spy::mapper();
    let rig = Rig::with(&bench, mapper, Bytes::mib(16), Bytes::mib(4), PoolFeatures::default());
    let volume = rig.volume(1, Bytes::mib(64));
    let mut watcher = rig.pool().watch().unwrap();
    nothing(&mut watcher);
    let (plain, others) = (dm(), (0..100).map(|n| name(&format!("v-other-{n}"))).collect::<Vec<_>>());
    let mut wake = |other| {
        plain.create(other, None).unwrap();
        kernel.ioctls();
        kernel.bytes();
        assert_eq!(watcher.next_within(Duration::ZERO).unwrap(), None);
        (kernel.ioctls(), kernel.bytes())
    };
    let costs: Vec<_> = others.iter().map(&mut wake).collect();
    println!("{:?}", costs[99]);
    assert_eq!(costs[0].0, ["DM_DEV_ARM_POLL", "DM_TABLE_STATUS"]);
    assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
    // Its own event is seen among theirs, and so is its end.
    write(&volume.path(), 0, 241, 1).unwrap();
    plain.remove(&others[0]).unwrap();
    assert_eq!(next(&mut watcher), PoolEvent::LowWater { free: Blocks(15) });
    nothing(&mut watcher);
    volume.deactivate().unwrap();
    rig.pool().deactivate().unwrap();
    // Another device has its name by the time of the next look.
    plain.rename(&others[1], &name("pool")).unwrap();
    assert_eq!(next(&mut watcher), PoolEvent::Removed);
    assert_eq!(watcher.next_within(SOON).unwrap(), None);
}

#[test]
fn a_queued_writer_continues_when_the_pool_grows() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(16), PoolFeatures::default());
    let volume = rig.volume(1, Bytes::mib(64));
    let mut watcher = rig.pool().watch().unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&volume.path(), 0, 512, 3));
        assert!(matches!(next(&mut watcher), PoolEvent::LowWater { .. }));
        assert_eq!(next(&mut watcher), PoolEvent::OutOfDataSpace);
        thread::sleep(Duration::from_millis(300));
        assert!(!writer.is_finished());
        rig.data.grow(Bytes::mib(64));
        rig.pool().grow_data(Bytes::mib(64).sectors()).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(next(&mut watcher), PoolEvent::Recovered);
    drop_caches();
    assert!(holds(&volume.path(), 0, 512, 3), "no write was lost");
}

#[test]
fn deleting_a_snapshot_frees_space_for_the_guard() {
    let bench = Bench::new();
    let features = PoolFeatures { no_space: NoSpace::Error, ..Default::default() };
    let rig = Rig::new(&bench, Bytes::mib(16), features);
    let (old, volume) = (rig.volume(1, Bytes::mib(64)), rig.volume(2, Bytes::mib(64)));
    write(&old.path(), 0, 128, 1).unwrap();
    write(&volume.path(), 0, 200, 2).unwrap_err();
    assert_eq!(rig.mode(), PoolMode::OutOfDataSpace);
    old.deactivate().unwrap();
    rig.pool().delete(id(1)).unwrap();
    let end = Instant::now() + SOON;
    while write(&volume.path(), 0, 200, 2).is_err() {
        assert!(Instant::now() < end, "{}", rig.pool().status().unwrap());
        thread::sleep(Duration::from_millis(50));
    }
    assert!(holds(&volume.path(), 0, 200, 2));
}

#[test]
fn metadata_runs_out_and_grows_again() {
    let bench = Bench::new();
    let features = PoolFeatures { skip_block_zeroing: true, no_space: NoSpace::Error, ..Default::default() };
    let rig = Rig::with(&bench, dm(), Bytes::gib(8), Bytes::mib(2), features);
    let mut watcher = rig.pool().watch().unwrap();
    assert!(rig.usage().metadata_low_water.is_some());
    let volume = rig.volume(1_000_000, Bytes::gib(4));
    write(&volume.path(), 0, 16, 1).unwrap();
    // Each thin device has a block of metadata of its own.
    let mut made = 0;
    let refused = loop {
        match rig.pool().create_thin(id(made)) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
    };
    println!("{made} made, then: {refused}; {}", rig.pool().status().unwrap());
    // Widely scattered writes need new blocks of metadata.
    let mut at = 1000;
    while write(&volume.path(), at, 1, 2).is_ok() {
        at += 500;
        assert!(at < 65_536, "{}", rig.pool().status().unwrap());
    }
    let refused = rig.pool().create_thin(id(made)).unwrap_err();
    println!("{refused}; {}", rig.pool().status().unwrap());
    assert!(matches!(refused, Error::PoolMode { mode: PoolMode::ReadOnly, .. }), "{refused}");
    assert!(matches!(next(&mut watcher), PoolEvent::LowMetadata { .. }));
    let out = next(&mut watcher);
    assert!(matches!(out, PoolEvent::OutOfMetadata), "{out}: {}", rig.pool().status().unwrap());
    rig.metadata.grow(Bytes::mib(16));
    rig.pool().grow_metadata().unwrap();
    assert_eq!(next(&mut watcher), PoolEvent::Recovered);
    write(&volume.path(), at, 64, 4).unwrap();
    drop_caches();
    assert!(holds(&volume.path(), 0, 16, 1) && holds(&volume.path(), at, 64, 4));
    assert!((1000..at).step_by(500).all(|block| holds(&volume.path(), block, 1, 2)));
    for n in 0..made {
        rig.pool().delete(id(n)).unwrap();
    }
}

/// A pool on loop files without anything between.
fn loop_pool(bench: &Bench, data: Bytes) -> (ThinPool, impl Fn() -> (LoopFile, LoopFile), TakeDown) {
    let control = LoopControl::open().unwrap();
    let paths = ["metadata", "data"].map(|what| bench.path().join(what));
    let attach = |n: usize, size: Bytes| {
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&paths[n]).unwrap();
        file.set_len(size.0).unwrap();
        control.attach(&file, &paths[n], &AttachOptions::new().autoclear(true)).unwrap()
    };
    let devices = [attach(0, Bytes::mib(2)), attach(1, data)];
    let [metadata, data_device] = [devices[0].number(), devices[1].number()];
    let features = PoolFeatures::default();
    let table =
        PoolTable { metadata, data: data_device, block_size: BLOCK, low_water_mark: Blocks(0), features };
    let pool = ThinPool::create(dm(), &name("pool"), &uuid("pool"), &table, data.sectors()).unwrap();
    let backings = move || {
        let find = |n: usize| LoopFile::find(LoopControl::open().unwrap(), &paths[n]).unwrap();
        (find(1), find(0))
    };
    (pool, backings, TakeDown)
}

#[test]
fn it_extends_itself_while_a_writer_fills_it() {
    let bench = Bench::new();
    let (pool, backings, _down) = loop_pool(&bench, Bytes::mib(64));
    let (data, metadata) = backings();
    let policy = AutoExtend::new()
        .data(ExtendRule { threshold: 50, step: 50, maximum: Bytes::mib(256) }, data)
        .unwrap()
        .metadata(ExtendRule { threshold: 70, step: 50, maximum: Bytes::mib(64) }, metadata)
        .unwrap();
    assert_eq!(policy.apply(&pool).unwrap(), Extended::default());
    assert_eq!(pool.table().unwrap().0.low_water_mark, Blocks(512));
    pool.create_thin(id(1)).unwrap();
    let volume = pool.activate(&name("v1"), &uuid("v1"), id(1), Bytes::mib(192).sectors()).unwrap();
    let mut extended = Vec::new();
    thread::scope(|scope| {
        // In steps: a pool that fills up in the very moment in which it is suspended would wait for 60 s.
        let writer = scope.spawn(|| (0..192).try_for_each(|mib| write(&volume.path(), mib << 4, 16, 6)));
        let mut watcher = pool.watch().unwrap();
        while !writer.is_finished() {
            if let Some(event) = watcher.next_within(Duration::from_millis(100)).unwrap() {
                println!("{event}");
                extended.extend(policy.apply(&pool).map(|done| done.data));
            }
        }
        writer.join().unwrap().unwrap();
    });
    println!("{extended:?} {}", pool.status().unwrap());
    assert!(extended.iter().filter(|extension| matches!(extension, Extension::To(_))).count() >= 2);
    drop_caches();
    assert!(holds(&volume.path(), 0, 192 << 4, 6));
    // The maximum is the end: 256 MiB, of which 192 are above the threshold.
    while let Extension::To(_) = policy.apply(&pool).unwrap().data {}
    assert_eq!(policy.apply(&pool).unwrap().data, Extension::Exhausted);
    assert_eq!(pool.table().unwrap().1, Bytes::mib(256).sectors());
    volume.deactivate().unwrap();
    pool.deactivate().unwrap();
}

#[test]
fn a_policy_for_other_devices_is_refused() {
    let bench = Bench::new();
    let (pool, backings, _down) = loop_pool(&bench, Bytes::mib(16));
    let (_, metadata) = backings();
    let rule = ExtendRule { threshold: 80, step: 20, maximum: Bytes::gib(1) };
    let error = AutoExtend::new().data(rule, metadata).unwrap().apply(&pool).unwrap_err();
    assert!(matches!(error, Error::Unchangeable { what: "data device", .. }), "{error}");
    let (data, _) = backings();
    let error = AutoExtend::new().data(ExtendRule { threshold: 0, ..rule }, data).unwrap_err();
    assert_eq!(error.to_string(), "extension threshold: 0: not from 1 to 99 percent");
    pool.deactivate().unwrap();
}

#[test]
fn the_guard_refuses_in_time_and_costs_little() {
    let bench = Bench::new();
    let (kernel, mapper) = Spy::mapper();
    let mut rig = Rig::with(&bench, mapper, Bytes::mib(32), Bytes::mib(16), PoolFeatures::default());
    // At the low water mark (16 blocks), and below the kernel's mark for metadata (a quarter).
    let guard = SpaceGuard::new().data(MinFree::Bytes(Bytes::mib(1))).metadata(MinFree::Percent(10));
    let guard = guard.max_age(Duration::from_secs(3600));
    rig.pool = Some(rig.pool.take().unwrap().with_guard(guard).unwrap());
    let volume = rig.volume(1, Bytes::mib(64));
    kernel.ioctls();
    for n in 100..400 {
        rig.pool().create_thin(id(n)).unwrap();
    }
    assert_eq!(kernel.ioctls().iter().filter(|&&ioctl| ioctl == "DM_TABLE_STATUS").count(), 2);
    // 497 of 512 blocks: the event is in the next answer, which is taken back, and from then on it is known.
    write(&volume.path(), 0, 497, 1).unwrap();
    assert!(rig.pool().create_thin(id(400)).unwrap_err().is_out_of_space());
    assert_eq!(kernel.ioctls(), ["DM_TARGET_MSG", "DM_TABLE_STATUS", "DM_TARGET_MSG"]);
    assert!(rig.pool().delete(id(400)).unwrap_err().is_not_found());
    kernel.ioctls();
    let error = rig.pool().create_thin(id(401)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool dm-thin-pool: 960 KiB of data space free, at least 1 MiB required (min_free_data); \
         remove snapshots or grow the pool"
    );
    assert!(error.is_out_of_space());
    assert_eq!(kernel.ioctls(), ["DM_TABLE_STATUS"], "nothing was sent");
    // What frees space is never refused, and then there is room again.
    rig.pool().delete(id(399)).unwrap();
    volume.discard_all().unwrap();
    rig.pool().create_thin(id(401)).unwrap();
    // The mark's event has come and will not come again before a reload: the status is read all the same.
    write(&volume.path(), 0, 497, 1).unwrap();
    kernel.ioctls();
    let refused = (500..800).find(|&n| rig.pool().create_thin(id(n)).is_err()).unwrap();
    assert!(refused <= 601, "{refused}");
}

#[test]
fn the_guard_counts_the_space_of_the_backing_file_system() {
    let bench = Bench::new();
    // A file system of 24 MiB, with a pool of 64 MiB.
    let tiny = bench.path().join("tiny");
    std::fs::create_dir(&tiny).unwrap();
    use dm_thin::kernel::{Kernel, RealKernel};
    let source = Some(std::path::Path::new("tiny"));
    RealKernel.mount(source, &tiny, Some("tmpfs"), Default::default(), "size=24m").unwrap();
    {
        let path = tiny.join("data");
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        let control = || LoopControl::open().unwrap();
        let options = AttachOptions::new().autoclear(true);
        let data = control().attach(&file, &path, &options).unwrap();
        let metadata = crate::rig::Disk::new(&bench, &dm(), "metadata", Bytes::mib(4));
        let features = PoolFeatures::default();
        let (mark, size) = (Blocks(16), Bytes::mib(64).sectors());
        let table = PoolTable {
            metadata: metadata.number,
            data: data.number(),
            block_size: BLOCK,
            low_water_mark: mark,
            features,
        };
        let pool = ThinPool::create(dm(), &name("pool"), &uuid("pool"), &table, size).unwrap();
        drop(data);
        let backing = Arc::new(LoopFile::find(control(), &path).unwrap());
        let guard = SpaceGuard::new().data(MinFree::Bytes(Bytes::mib(16))).backing(backing);
        let pool = pool.with_guard(guard).unwrap();
        pool.create_thin(id(1)).unwrap();
        // Somebody else takes the room.
        std::fs::write(tiny.join("other"), vec![1; 12 << 20]).unwrap();
        let error = pool.create_thin(id(2)).unwrap_err();
        assert!(matches!(error, Error::LowSpace { space: Space::Backing, .. }), "{error}");
        std::fs::remove_file(tiny.join("other")).unwrap();
        pool.create_thin(id(2)).unwrap();
        // What the file has, and the pool does not use, counts.
        let volume = pool.activate(&name("v1"), &uuid("v1"), id(1), Bytes::mib(64).sectors()).unwrap();
        write(&volume.path(), 0, 20 << 4, 1).unwrap();
        assert!(pool.create_thin(id(3)).unwrap_err().is_out_of_space());
        volume.discard_all().unwrap();
        pool.create_thin(id(3)).unwrap();
        volume.deactivate().unwrap();
        pool.deactivate().unwrap();
        metadata.dm.remove(&metadata.name).unwrap();
    }
    // The loop device lets go of the file a moment after the pool did.
    let end = Instant::now() + SOON;
    while RealKernel.unmount(&tiny, Default::default()) == Err(Errno::EBUSY) {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn guard_percentages_are_validated() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(16), PoolFeatures::default());
    let error = rig.pool.take().unwrap().with_guard(SpaceGuard::new().data(MinFree::Percent(101)));
    assert!(matches!(error, Err(Error::InvalidOption { option: "free space", .. })));
}
