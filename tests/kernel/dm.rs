//! Device mapper itself, without a thin pool.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use dm_thin::Errno;
use dm_thin::dm::{DeviceMapper, DmFlags, DmName, DmUuid, Removal, TableKind, TargetSpec, TargetType};
use dm_thin::kernel::{DeviceNumber, Kernel, RealKernel};
use dm_thin::units::Sectors;

use crate::bench::{Bench, dm};

fn name(name: &str) -> DmName {
    DmName::new(name).unwrap()
}

fn zero(dm: &DeviceMapper, name: &DmName) {
    let uuid = DmUuid::format(format_args!("DMTHIN-TEST-{name}")).unwrap();
    dm.create_active(name, &uuid, &[line("zero", &"")], DmFlags::empty()).unwrap();
}

fn line<'a>(target: &str, parameters: &'a (dyn std::fmt::Display + Sync)) -> TargetSpec<'a> {
    let target_type = TargetType::new(target).unwrap();
    TargetSpec { start: Sectors(0), length: Sectors(8), target_type, parameters }
}

#[test]
fn a_device_from_creation_to_removal() {
    let _bench = Bench::new();
    let dm = dm();
    let name = name("dm-thin-test");
    zero(&dm, &name);
    let path = dm.node_path(&name);
    assert!(fs::metadata(&path).unwrap().file_type().is_block_device());
    assert_eq!(fs::read(&path).unwrap(), [0; 4096]);

    let status = dm.status(&name).unwrap();
    assert!(status.has_live_table() && !status.is_suspended());
    assert_eq!(dm.table(&name, TableKind::Live).unwrap()[0].to_string(), "0 8 zero ");
    assert!(dm.list().unwrap().iter().any(|device| device.name == name && device.number == status.number));

    let again = dm.create(&name, None).unwrap_err();
    assert!(again.is_busy(), "{again}");
    dm.remove(&name).unwrap();
    assert!(fs::symlink_metadata(&path).is_err());
    let gone = dm.status(&name).unwrap_err();
    assert!(gone.is_not_found());
    assert_eq!(gone.to_string(), "DM_DEV_STATUS on dm-thin-test: ENXIO: No such device or address");
}

#[test]
fn the_node_moves_along_with_the_name() {
    let _bench = Bench::new();
    let dm = dm();
    let (old, new) = (name("dm-thin-old"), name("dm-thin-new"));
    zero(&dm, &old);
    let number = fs::metadata(dm.node_path(&old)).unwrap().rdev();
    dm.rename(&old, &new).unwrap();
    assert!(fs::symlink_metadata(dm.node_path(&old)).is_err());
    assert_eq!(fs::metadata(dm.node_path(&new)).unwrap().rdev(), number);
    dm.remove(&new).unwrap();
}

#[test]
fn a_stale_node_is_replaced() {
    let _bench = Bench::new();
    let dm = dm();
    let name = name("dm-thin-stale");
    let other = DeviceNumber { major: 7, minor: 4000 };
    RealKernel.make_node(&dm.node_path(&name), other).unwrap();
    zero(&dm, &name);
    assert_eq!(fs::read(dm.node_path(&name)).unwrap(), [0; 4096]);
    dm.remove(&name).unwrap();
}

#[test]
fn an_open_device_is_removed_later() {
    let _bench = Bench::new();
    let dm = dm();
    let name = name("dm-thin-open");
    zero(&dm, &name);
    let file = fs::File::open(dm.node_path(&name)).unwrap();
    assert!(dm.remove(&name).unwrap_err().is_busy());
    assert_eq!(dm.remove_deferred(&name).unwrap(), Removal::Deferred);
    dm.cancel_deferred_remove(&name).unwrap();
    // Nothing pending is no error.
    dm.cancel_deferred_remove(&name).unwrap();
    drop(file);
    assert!(dm.find(&name).unwrap().is_some());
    assert_eq!(dm.remove_deferred(&name).unwrap(), Removal::Removed);
    assert_eq!(dm.cancel_deferred_remove(&name).unwrap_err().errno(), Some(Errno::ENXIO));
}

#[test]
fn an_inactive_table_can_be_cleared() {
    let _bench = Bench::new();
    let dm = dm();
    let name = name("dm-thin-suspend");
    zero(&dm, &name);
    assert!(dm.suspend(&name, DmFlags::empty()).unwrap().is_suspended());
    dm.load_table(&name, &[line("error", &"")], DmFlags::empty()).unwrap();
    assert_eq!(dm.table(&name, TableKind::Inactive).unwrap()[0].target_type.as_str(), "error");
    dm.clear_table(&name).unwrap();
    dm.resume(&name).unwrap();
    let (status, lines) = dm.table_status(&name, DmFlags::empty()).unwrap();
    assert!(!status.is_suspended());
    assert_eq!(lines[0].target_type.as_str(), "zero");
    dm.remove(&name).unwrap();
}

#[test]
fn a_failed_table_load_removes_the_device() {
    let _bench = Bench::new();
    let dm = dm();
    let name = name("dm-thin-fails");
    let uuid = DmUuid::new("DMTHIN-TEST-fails").unwrap();
    let error = dm.create_active(&name, &uuid, &[line("linear", &"nonsense")], DmFlags::empty());
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        "DM_TABLE_LOAD on ".to_owned()
            + error.split(' ').nth(2).unwrap()
            + " (0 8 linear nonsense): EINVAL: Invalid argument"
    );
    assert!(dm.find(&name).unwrap().is_none());
}

#[test]
fn a_query_grows_its_buffer() {
    let _bench = Bench::new();
    let dm = dm();
    let name = name("dm-thin-many");
    let uuid = DmUuid::new("DMTHIN-TEST-many").unwrap();
    let target_type = TargetType::new("zero").unwrap();
    let table: Vec<_> = (0..1000)
        .map(|i| TargetSpec { start: Sectors(i), length: Sectors(1), target_type, parameters: &"" })
        .collect();
    dm.create_active(&name, &uuid, &table, DmFlags::empty()).unwrap();
    let lines = dm.table(&name, TableKind::Live).unwrap();
    assert_eq!(lines.len(), 1000);
    assert_eq!(lines[999].start, Sectors(999));
    dm.remove(&name).unwrap();
}

#[test]
fn target_versions() {
    let _bench = Bench::new();
    let dm = dm();
    let thin_pool = TargetType::new("thin-pool").unwrap();
    let version = dm.target_version(thin_pool).unwrap();
    println!("device mapper {}, thin-pool {}", dm.version(), version.version);
    assert!(dm.target_versions().unwrap().contains(&version));
    let error = dm.target_version(TargetType::new("no-such-thing").unwrap()).unwrap_err();
    assert!(matches!(error, dm_thin::dm::Error::NoTarget { .. }), "{error}");
}
