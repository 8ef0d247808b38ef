//! The examples that need a kernel; those on trees are in `engine`, `story` and `trouble`.

use std::path::Path;
use std::process::Command;

use crate::bench::{Bench, small, wipe};
use crate::network_disk::raw_disk;
use crate::{device_mapper, loop_devices, network_disk, ready_example};

#[test]
fn loop_devices_run() {
    let bench = Bench::new();
    loop_devices::run(&bench.path().join("loop.img")).unwrap();
}

#[test]
fn device_mapper_runs() {
    let bench = Bench::new();
    assert!(Command::new("modprobe").arg("dm-crypt").status().unwrap().success());
    device_mapper::run(&bench.path().join("device.img")).unwrap();
}

#[test]
fn machines_take_ready_snapshots() {
    let bench = Bench::new();
    ready_example::run(&bench.root(), small()).unwrap();
    assert!(!bench.root().exists());
}

#[test]
fn a_tree_has_a_whole_disk() {
    let bench = Bench::new();
    let disk = Path::new("/dev/vdb");
    wipe(disk);
    raw_disk::run(disk, &bench.root()).unwrap();
    wipe(disk);
}

#[test]
fn a_tree_has_a_disk_of_another_machine() {
    let bench = Bench::new();
    assert!(Command::new("modprobe").arg("nbd").status().unwrap().success());
    network_disk::run(Path::new("/dev/nbd0"), &bench.path().join("network")).unwrap();
}
