//! A pool on one raw disk, and a restart of the machine: the disk has another number then, and is found by its label.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::tree::{Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

const ROOT: &str = "/var/lib/split";
const TARGET: &str = "/tmp/split";

/// Boot the guest twice, with the same disks.
pub fn drive(disk: &str) {
    for boot in ["first", "second"] {
        let mut run = Command::new("tests/vm/run");
        run.args(["--disk", disk, "--"]).arg(std::env::current_exe().unwrap()).args(["reboot", boot]);
        let status = run.status().unwrap();
        assert!(status.success(), "{boot} boot: {status}");
        println!("{boot} boot: ok");
    }
}

/// In the guest.
pub fn worker(boot: &str) {
    if boot == "first" { leave() } else { find() }
}

/// A loop device stands for a disk: it ends with the machine, its file does not.
fn disk(file: &str, size: Bytes) -> PathBuf {
    let disk = File::options().read(true).write(true).create(true).truncate(false).open(file).unwrap();
    disk.set_len(size.0).unwrap();
    LoopControl::open().unwrap().attach(&disk, Path::new(file), &AttachOptions::new()).unwrap().path()
}

fn pattern() -> Vec<u8> {
    (0..200_000u32).flat_map(u32::to_le_bytes).collect()
}

/// Everything is in use when the machine goes down.
fn leave() {
    let path = disk("/var/lib/raw", Bytes::mib(512));
    let options =
        Options::new().base_size(Bytes::mib(64)).pool_source(PoolSource::Device { path: path.clone() });
    let tree = SnapshotTree::open(ROOT, options).unwrap();
    fs::write("/var/lib/path", path.to_str().unwrap()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", TARGET).unwrap();
    let mut file = File::create(Path::new(TARGET).join("file")).unwrap();
    file.write_all(&pattern()).unwrap();
    file.sync_all().unwrap();
    File::open(TARGET).unwrap().sync_all().unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
}

fn find() {
    // Another disk has its place now.
    let there = fs::read_to_string("/var/lib/path").unwrap();
    assert_eq!(disk("/var/lib/other", Bytes::mib(64)), Path::new(&there));
    assert_ne!(disk("/var/lib/raw", Bytes::mib(512)), Path::new(&there));
    let tree = SnapshotTree::open(ROOT, Options::new()).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    for id in ["a", "b"] {
        assert_eq!(tree.get(id).unwrap().device, None);
        tree.mount(id, TARGET).unwrap();
        assert!(fs::read(Path::new(TARGET).join("file")).unwrap() == pattern(), "{id}");
        tree.unmount(id).unwrap();
    }
    tree.close().unwrap();
}
