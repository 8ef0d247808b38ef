//! Devices that change under those who use them: renamed, removed, made again, by others and by themselves.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dm_thin::Errno;
use dm_thin::dm::targets::{Target, Zero};
use dm_thin::dm::{DeviceMapper, DmFlags, UdevPolicy};
use dm_thin::kernel::{Kernel, RealKernel};
use dm_thin::thin::{
    ActivateOptions, MinFree, NoSpace, Origin, PoolEvent, PoolFeatures, SpaceGuard, ThinPool,
};
use dm_thin::units::{Blocks, Bytes, Sectors};

use crate::bench::{Bench, dm};
use crate::rig::{Rig, TakeDown, holds, id, name, uuid, write};
use crate::threads::amount;

fn zero(dm: &DeviceMapper, device: &str) -> dm_thin::dm::Result<()> {
    let line = Zero.over(Sectors(0), Sectors(8));
    dm.create_active(&name(device), &uuid(device), &[line], DmFlags::empty()).map(drop)
}

#[test]
fn renames_beside_reloads_do_not_crash_the_kernel() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    zero(&dm, "v1").unwrap();
    let done = AtomicBool::new(false);
    let rounds = amount("DM_THIN_OPERATIONS", 300);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                let (from, to) = if round % 2 == 0 { ("v1", "v2") } else { ("v2", "v1") };
                dm.rename(&name(from), &name(to)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let id = uuid("v1");
            dm.load_table(&id, &[Zero.over(Sectors(0), Sectors(8))], DmFlags::empty()).unwrap();
            dm.resume(&id).unwrap();
        }
    });
    dm.remove(&uuid("v1")).unwrap();
}

#[test]
fn concurrent_creations_keep_the_node() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    for _ in 0..amount("DM_THIN_OPERATIONS", 100) {
        zero(&dm, "v1").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| dm.remove(&name("v1")).unwrap());
            while zero(&dm, "v1").is_err() {}
        });
        assert!(fs::exists(dm.node_path(&name("v1"))).unwrap());
        dm.remove(&name("v1")).unwrap();
    }
}

/// Makes and removes one device, in competition with another process; how many nodes were not there.
fn make_in_turns(rounds: usize) -> usize {
    let dm = dm();
    let path = dm.node_path(&name("v1"));
    let mut vanished = 0;
    for _ in 0..rounds {
        while zero(&dm, "v1").is_err() {}
        vanished += usize::from(!fs::exists(&path).unwrap());
        dm.remove(&name("v1")).unwrap();
    }
    vanished
}

#[test]
fn concurrent_creations_by_processes_keep_the_node() {
    const RIVAL: &str = "DM_THIN_TEST_RIVAL";
    let rounds = amount("DM_THIN_OPERATIONS", 50);
    if std::env::var_os(RIVAL).is_some() {
        std::process::exit(i32::from(make_in_turns(rounds) > 0));
    }
    let _bench = Bench::new();
    let _down = TakeDown;
    let this = "identity::concurrent_creations_by_processes_keep_the_node";
    let mut rival = std::process::Command::new(std::env::current_exe().unwrap());
    let mut rival = rival.args(["--exact", this]).env(RIVAL, "1").spawn().unwrap();
    let vanished = make_in_turns(rounds);
    assert!(rival.wait().unwrap().success());
    assert_eq!(vanished, 0, "of {rounds}");
}

#[test]
fn a_regular_file_at_a_nodes_path_is_kept() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = DeviceMapper::with_kernel(Arc::new(RealKernel), UdevPolicy::None).unwrap();
    let path = dm.node_path(&name("v1"));
    fs::write(&path, "kept").unwrap();
    assert_eq!(zero(&dm, "v1").unwrap_err().errno(), Some(Errno::EEXIST));
    zero(&dm, "v2").unwrap();
    assert_eq!(dm.rename(&name("v2"), &name("v1")).unwrap_err().errno(), Some(Errno::EEXIST));
    dm.remove_node(&name("v1")).unwrap();
    dm.remove(&name("v2")).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    fs::remove_file(&path).unwrap();
}

#[test]
fn watch_reports_a_recreated_pool() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(16), PoolFeatures::default());
    let old = ThinPool::open(rig.dm.clone(), &name("pool")).unwrap();
    let mut watcher = old.watch().unwrap();
    while watcher.next_within(Duration::from_millis(100)).unwrap().is_some() {}
    rig.deactivate();
    rig.activate(PoolFeatures::default());
    assert_eq!(rig.pool().number(), old.number());
    assert_eq!(watcher.next_within(Duration::from_secs(20)).unwrap(), Some(PoolEvent::Removed));
}

#[test]
fn a_stale_handle_does_not_touch_the_device_with_its_name_or_number() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let old = rig.volume(1, Bytes::mib(8));
    old.clone().deactivate().unwrap();
    let other = rig.volume(2, Bytes::mib(8));
    assert_eq!(other.number(), old.number());
    write(&other.path(), 0, 16, 7).unwrap();
    assert!(old.discard_all().is_err());
    assert!(old.suspend().unwrap_err().is_not_found());
    // Under its own name, too, there is another one.
    rig.dm.rename(other.name(), &name("v1")).unwrap();
    assert!(old.discard_all().unwrap_err().is_not_found());
    assert!(old.deactivate().unwrap_err().is_not_found());
    assert!(holds(&rig.dm.node_path(&name("v1")), 0, 16, 7));
    // A handle finds its device under the new name.
    other.suspend().unwrap().resume().unwrap();
    other.deactivate().unwrap();
}

#[test]
fn a_stale_pool_handle_does_not_touch_the_new_pool() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    rig.pool().create_thin(id(1)).unwrap();
    let old = ThinPool::open(rig.dm.clone(), &name("pool")).unwrap();
    rig.deactivate();
    let (table, size) = (rig.table(PoolFeatures::default()), Bytes::mib(64).sectors());
    let new = ThinPool::create(rig.dm.clone(), &name("pool"), &uuid("other"), &table, size).unwrap();
    assert_eq!(new.number(), old.number());
    for refused in [
        old.create_thin(id(2)),
        old.delete(id(1)),
        old.activate(&name("v1"), &uuid("v1"), id(1), Bytes::mib(8).sectors()).map(drop),
        old.set_low_water_mark(Blocks(1)),
        old.deactivate(),
    ] {
        assert!(refused.as_ref().is_err_and(dm_thin::thin::Error::is_not_found), "{refused:?}");
    }
    assert!(new.create_thin(id(1)).unwrap_err().is_exists());
    new.create_thin(id(2)).unwrap();
    assert_eq!(new.table().unwrap().0, table);
}

#[test]
fn suspensions_are_counted() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let volume = rig.volume(1, Bytes::mib(8));
    let snapshots = AtomicU32::new(2);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..amount("DM_THIN_OPERATIONS", 10) {
                    let suspended = volume.suspend().unwrap();
                    assert!(volume.device_status().unwrap().is_suspended());
                    let taken = id(snapshots.fetch_add(1, Ordering::Relaxed));
                    rig.pool().create_snap(taken, &Origin::Suspended(&suspended)).unwrap();
                    assert!(volume.device_status().unwrap().is_suspended());
                    suspended.resume().unwrap();
                }
            });
        }
    });
    assert!(!volume.device_status().unwrap().is_suspended());
}

#[test]
fn reloads_of_a_pool_are_serialised() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let again = ThinPool::open(dm(), &name("pool")).unwrap();
    for round in 0..amount("DM_THIN_OPERATIONS", 20) as u64 {
        let no_space = if round % 2 == 0 { NoSpace::Error } else { NoSpace::Queue };
        thread::scope(|scope| {
            scope.spawn(|| rig.pool().set_low_water_mark(Blocks(round)).unwrap());
            scope.spawn(|| again.set_no_space(no_space).unwrap());
        });
        let (table, _) = again.table().unwrap();
        assert_eq!((table.low_water_mark, table.features.no_space), (Blocks(round), no_space));
    }
}

#[test]
fn concurrent_reactivations_all_succeed() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    rig.pool().create_thin(id(1)).unwrap();
    for _ in 0..amount("DM_THIN_OPERATIONS", 10) {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (options, patience) = (ActivateOptions::new(), Duration::from_secs(60));
                    let size = Bytes::mib(8).sectors();
                    let volume =
                        rig.pool().reactivate(&name("v1"), &uuid("v1"), id(1), size, &options, patience);
                    assert!(fs::exists(volume.unwrap().path()).unwrap());
                });
            }
        });
        rig.pool().active_volume(&name("v1")).unwrap().deactivate().unwrap();
    }
}

#[test]
fn a_guard_notices_that_another_handle_lowered_the_low_water_mark() {
    let bench = Bench::new();
    let mut rig = Rig::new(&bench, Bytes::mib(32), PoolFeatures::default());
    // At the mark of 16 blocks: but for what this process knows, only the kernel's event would make it look.
    let guard = SpaceGuard::new().data(MinFree::Bytes(Bytes::mib(1))).max_age(Duration::from_secs(3600));
    rig.pool = Some(rig.pool.take().unwrap().with_guard(guard).unwrap());
    let volume = rig.volume(1, Bytes::mib(64));
    let other = ThinPool::open(dm(), &name("pool")).unwrap();
    other.set_low_water_mark(Blocks(1)).unwrap();
    write(&volume.path(), 0, 500, 1).unwrap();
    for n in 100..150 {
        assert!(rig.pool().create_thin(id(n)).unwrap_err().is_out_of_space());
    }
}

/// Every process of udevd, stopped as long as this lives; none where it does not run.
struct StoppedUdev(Vec<u32>);

impl StoppedUdev {
    fn new() -> Self {
        let is_udev = |pid: &u32| {
            let command = RealKernel.process_info(*pid).map(|process| process.command).unwrap_or_default();
            ["systemd-udevd", "(udev-worker)"].contains(&&*command)
        };
        let stopped = Self(RealKernel.process_ids().unwrap().into_iter().filter(is_udev).collect());
        stopped.signal("-STOP");
        stopped
    }

    fn signal(&self, signal: &str) {
        for pid in &self.0 {
            let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
            assert!(status.unwrap().success());
        }
    }
}

impl Drop for StoppedUdev {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[test]
fn a_stopped_udevd_is_waited_for_once() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let stopped = StoppedUdev::new();
    let dm = DeviceMapper::with_kernel(Arc::new(RealKernel), UdevPolicy::Cookie).unwrap();
    let started = Instant::now();
    zero(&dm, "v1").unwrap();
    let first = started.elapsed();
    assert!(first > Duration::from_secs(29) && !dm.waits_for_udev(), "{first:?}");
    for _ in 0..5 {
        dm.rename(&name("v1"), &name("v2")).unwrap();
        assert!(fs::exists(dm.node_path(&name("v2"))).unwrap());
        dm.remove(&name("v2")).unwrap();
        zero(&dm, "v1").unwrap();
        assert!(fs::exists(dm.node_path(&name("v1"))).unwrap());
    }
    assert!(started.elapsed() - first < Duration::from_secs(29));
    dm.remove(&name("v1")).unwrap();
    drop(stopped);
}

#[test]
fn rename_succeeds_on_a_read_only_dev() {
    let _bench = Bench::new();
    let _down = TakeDown;
    // Nodes are this process' to change.
    let dm = DeviceMapper::with_kernel(Arc::new(RealKernel), UdevPolicy::None).unwrap();
    zero(&dm, "v1").unwrap();
    let dev = |how| {
        let status = std::process::Command::new("mount").args(["-o", how, "/dev"]).status().unwrap();
        assert!(status.success());
    };
    dev("remount,bind,ro");
    let renamed = dm.rename(&name("v1"), &name("v2"));
    dev("remount,bind,rw");
    renamed.unwrap();
    let number = dm.status(&name("v2")).unwrap().number;
    dm.ensure_node(&name("v2"), number).unwrap();
    dm.remove_node(&name("v1")).unwrap();
    dm.remove(&name("v2")).unwrap();
}
