//! Nodes and names on the model, where udev does not run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;

use super::targets::{Target, Zero};
use super::*;
use crate::dm::{Error, Result};
use crate::kernel::{DeviceNumber, Kernel};
use crate::model::ModelKernel;
use crate::units::Sectors;

fn name(text: &str) -> DmName {
    DmName::new(text).unwrap()
}

fn uuid(text: &str) -> DmUuid {
    DmUuid::new(text).unwrap()
}

fn model() -> (Arc<ModelKernel>, DeviceMapper) {
    let kernel = Arc::new(ModelKernel::new());
    let dm = DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::None).unwrap();
    (kernel, dm)
}

fn zero(dm: &DeviceMapper, device: &str) -> Result<DeviceStatus> {
    dm.create_active(&name(device), &uuid(device), &[Zero.over(Sectors(0), Sectors(8))], DmFlags::empty())
}

fn node(device: &str) -> PathBuf {
    Path::new("/dev/mapper").join(device)
}

#[test]
fn remove_keeps_the_node_of_the_next_device_with_that_name() {
    let (kernel, dm) = model();
    for round in 0..300 {
        let number = zero(&dm, "a").unwrap().number;
        thread::scope(|scope| {
            scope.spawn(|| match round % 2 {
                0 => dm.remove(&name("a")).unwrap(),
                _ => dm.remove(&uuid("a")).unwrap(),
            });
            while zero(&dm, "a").is_err() {}
        });
        assert_eq!(kernel.block_device(&node("a")), Ok(number), "round {round}");
        dm.remove(&name("a")).unwrap();
    }
    assert!(kernel.is_clean());
}

#[test]
fn a_node_with_another_number_is_not_removed() {
    let (kernel, dm) = model();
    let number = zero(&dm, "a").unwrap().number;
    let other = DeviceNumber { major: number.major, minor: 77 };
    // Another process, which has the name as soon as the device is gone.
    kernel.remove_node(&node("a")).unwrap();
    kernel.make_node(&node("a"), other).unwrap();
    dm.remove(number).unwrap();
    assert_eq!(kernel.block_device(&node("a")), Ok(other));
    // Now it is nobody's.
    dm.remove_node(&name("a")).unwrap();
    assert!(kernel.is_clean());
}

#[test]
fn the_node_of_an_existing_device_is_not_removed() {
    let (kernel, dm) = model();
    zero(&dm, "a").unwrap();
    dm.remove_node(&name("a")).unwrap();
    assert!(kernel.block_device(&node("a")).is_ok());
}

#[test]
fn a_device_is_renamed_and_removed_by_its_uuid() {
    let (kernel, dm) = model();
    let number = zero(&dm, "a").unwrap().number;
    dm.rename(&uuid("a"), &name("b")).unwrap();
    assert_eq!(kernel.block_device(&node("b")), Ok(number));
    assert_eq!(kernel.block_device(&node("a")), Err(Errno::ENOENT));
    dm.resume(&uuid("a")).unwrap();
    dm.remove(&uuid("a")).unwrap();
    assert!(kernel.is_clean());
    assert_eq!(dm.remove(&uuid("a")).unwrap_err().errno(), Some(Errno::ENXIO));
}

#[test]
fn a_deferred_removal_removes_the_node_and_its_cancellation_restores_it() {
    let (kernel, dm) = model();
    let number = zero(&dm, "a").unwrap().number;
    let open = kernel.open(&node("a"), crate::kernel::Access::READ).unwrap();
    assert_eq!(dm.remove_deferred(&name("a")).unwrap(), Removal::Deferred);
    assert_eq!(kernel.block_device(&node("a")), Err(Errno::ENOENT));
    dm.cancel_deferred_remove(&uuid("a")).unwrap();
    assert_eq!(kernel.block_device(&node("a")), Ok(number));
    assert_eq!(dm.remove_deferred(&name("a")).unwrap(), Removal::Deferred);
    drop(open);
    // The number is another device's now: nothing of that name leads there.
    assert_eq!(zero(&dm, "b").unwrap().number, number);
    assert_eq!(kernel.block_device(&node("a")), Err(Errno::ENOENT));
    dm.remove(&name("b")).unwrap();
    assert!(kernel.is_clean());
}

#[test]
fn operations_on_one_device_exclude_each_other() {
    let (_, dm) = model();
    let status = zero(&dm, "a").unwrap();
    let table = [Zero.over(Sectors(0), Sectors(8))];
    // Loaded and resumed under one claim, by uuid; nobody renames it in between, by name.
    let held = dm.exclusive(&uuid("a"));
    let (sent, renamed) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            dm.rename(&name("a"), &name("b")).unwrap();
            sent.send(()).unwrap();
        });
        dm.load_held(&held, status.number.into(), &table, DmFlags::empty()).unwrap();
        assert!(renamed.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "renamed meanwhile");
        dm.resume_held(&held, status.number.into()).unwrap();
        drop(held);
        renamed.recv().unwrap();
    });
    assert_eq!(dm.status(&uuid("a")).unwrap().name, name("b"));
    // Another device is not waited for.
    let held = dm.exclusive(&uuid("a"));
    zero(&dm, "c").unwrap();
    dm.rename(&name("c"), &name("d")).unwrap();
    drop(held);
}

#[test]
fn remove_all_waits_for_operations_on_any_device() {
    let (_, dm) = model();
    zero(&dm, "a").unwrap();
    let held = dm.exclusive(&uuid("a"));
    let (sent, removed) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| sent.send(dm.remove_all(DmFlags::empty()).unwrap()).unwrap());
        assert!(removed.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "removed meanwhile");
        assert!(dm.find(&name("a")).unwrap().is_some());
        drop(held);
        assert_eq!(removed.recv().unwrap(), []);
    });
}

#[test]
fn rename_succeeds_when_its_nodes_cannot_be_changed() {
    let (kernel, dm) = model();
    zero(&dm, "a").unwrap();
    // A look at the new path, the ioctl; then whatever is tried on a read-only /dev.
    (3..9).for_each(|call| kernel.fail_at(call, Errno::EROFS));
    dm.rename(&name("a"), &name("b")).unwrap();
    kernel.heal();
    assert_eq!(dm.status(&uuid("a")).unwrap().name, name("b"));
    assert!(dm.rename(&name("a"), &name("c")).unwrap_err().is_not_found());
}

#[test]
fn a_regular_file_at_a_nodes_path_is_an_error_and_kept() {
    let (_, dm) = model();
    zero(&dm, "a").unwrap();
    // What the model has at that path is no block device.
    let control = DmName::of_kernel(b"control").unwrap();
    assert!(node::is_foreign(&**dm.kernel(), &control));
    let renamed = dm.rename(&name("a"), &control);
    assert!(matches!(renamed, Err(Error::Io { .. })), "{renamed:?}");
    assert!(dm.find(&name("a")).unwrap().is_some());
}
