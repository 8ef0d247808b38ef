//! Devices that change under those who use them: renamed, removed, made again, by others and by themselves.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::dm::targets::{Target, Zero};
use dm_thin::dm::{DeviceMapper, DmFlags, UdevPolicy};
use dm_thin::kernel::RealKernel;
use dm_thin::thin::{ActivateOptions, NoSpace, Origin, PoolEvent, PoolFeatures, ThinPool};
use dm_thin::units::{Blocks, Bytes, Sectors};

use crate::bench::{Bench, dm};
use crate::rig::{Rig, TakeDown, holds, id, name, uuid, write};

fn zero(dm: &DeviceMapper, device: &str) -> dm_thin::Result<()> {
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
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300 {
                let (from, to) = if round % 2 == 0 { ("v1", "v2") } else { ("v2", "v1") };
                dm.rename(&name(from), &name(to)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let id = uuid("v1");
            dm.load_table((&id).into(), &[Zero.over(Sectors(0), Sectors(8))], DmFlags::empty()).unwrap();
            dm.resume(&id).unwrap();
        }
    });
    dm.remove(&uuid("v1")).unwrap();
}

#[test]
fn a_node_is_there_whoever_made_the_device_last() {
    let _bench = Bench::new();
    let _down = TakeDown;
    let dm = dm();
    for _ in 0..100 {
        zero(&dm, "v1").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| dm.remove(&name("v1")).unwrap());
            while zero(&dm, "v1").is_err() {}
        });
        assert!(fs::exists(dm.node_path(&name("v1"))).unwrap());
        dm.remove(&name("v1")).unwrap();
    }
}

#[test]
fn a_file_where_a_node_belongs_is_left_alone() {
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
fn a_pool_that_is_made_again_is_an_event() {
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
fn a_handle_leaves_the_device_alone_that_has_its_name_or_number() {
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
fn suspensions_are_counted() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let volume = rig.volume(1, Bytes::mib(8));
    let snapshots = AtomicU32::new(2);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
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
fn changes_of_a_pool_are_one_after_the_other() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let again = ThinPool::open(dm(), &name("pool")).unwrap();
    for round in 0..20 {
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
fn equals_reactivate_a_volume() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    rig.pool().create_thin(id(1)).unwrap();
    for _ in 0..10 {
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
fn a_rename_is_done_when_dev_is_read_only() {
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
    let number = dm.status((&name("v2")).into()).unwrap().number;
    dm.ensure_node(&name("v2"), number).unwrap();
    dm.remove_node(&name("v1")).unwrap();
    dm.remove(&name("v2")).unwrap();
}
