//! Devices that change under those who use them: renamed, removed, made again, by others and by themselves.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dm_thin::Errno;
use dm_thin::dm::targets::{Target, Zero};
use dm_thin::dm::{DeviceMapper, DmFlags};
use dm_thin::units::Sectors;

use crate::bench::{Bench, dm};
use crate::rig::{TakeDown, name, uuid};

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
    let dm = dm();
    let path = dm.node_path(&name("v1"));
    fs::write(&path, "kept").unwrap();
    if !dm.waits_for_udev() {
        assert_eq!(zero(&dm, "v1").unwrap_err().errno(), Some(Errno::EEXIST));
    }
    zero(&dm, "v2").unwrap();
    assert_eq!(dm.rename(&name("v2"), &name("v1")).unwrap_err().errno(), Some(Errno::EEXIST));
    dm.remove_node(&name("v1")).unwrap();
    dm.remove(&name("v2")).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    fs::remove_file(&path).unwrap();
}
