//! Loop devices.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dm_thin::Errno;
use dm_thin::abi::loopdev::LOOP_CONFIGURE;
use dm_thin::kernel::{Access, Kernel, RealKernel};
use dm_thin::loopdev::Error;
use dm_thin::loopdev::{AttachOptions, LoopControl, LoopFlags};
use dm_thin::units::Bytes;

use crate::bench::Bench;
use crate::spy::Spy;

fn backing(bench: &Bench, name: &str, size: Bytes) -> (File, PathBuf) {
    let path = bench.path().join(name);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    file.set_len(size.0).unwrap();
    (file, path)
}

#[test]
fn attach_find_grow_detach() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let (file, path) = backing(&bench, "file", Bytes::mib(1));
    assert!(control.find(&file).unwrap().is_none());

    let device = control.attach(&file, &path, &AttachOptions::new()).unwrap();
    assert_eq!(device.size().unwrap(), Bytes::mib(1));
    let found = control.find(&file).unwrap().expect("attached");
    assert_eq!(found.index(), device.index());
    assert_eq!(device.status().unwrap().flags, LoopFlags::empty());
    fs::write(device.path(), "through the device").unwrap();

    file.set_len(Bytes::mib(2).0).unwrap();
    device.set_capacity().unwrap();
    assert_eq!(device.size().unwrap(), Bytes::mib(2));

    let index = device.index();
    drop(found);
    device.detach().unwrap();
    // udev may have it open a moment longer.
    let end = Instant::now() + Duration::from_secs(10);
    let status = || control.device(index, Access::READ).unwrap().status();
    while status().is_ok() && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(status().unwrap_err().errno(), Some(Errno::ENXIO));
    assert!(fs::read(&path).unwrap().starts_with(b"through the device"));
}

#[test]
fn autoclear_ends_with_the_last_close() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let (file, path) = backing(&bench, "file", Bytes::mib(1));
    let device = control.attach(&file, &path, &AttachOptions::new().autoclear(true)).unwrap();
    assert!(device.status().unwrap().flags.contains(LoopFlags::AUTOCLEAR));
    drop(device);
    bench.audit();
}

#[test]
fn part_of_a_file_read_only() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let (_, path) = backing(&bench, "file", Bytes::mib(1));
    fs::write(&path, [vec![1; 4096], vec![2; 8192]].concat()).unwrap();
    let options =
        AttachOptions::new().autoclear(true).read_only(true).offset(Bytes::kib(4)).size_limit(Bytes::kib(4));
    let device = control.attach(&File::open(&path).unwrap(), &path, &options).unwrap();
    assert_eq!(fs::read(device.path()).unwrap(), [2; 4096]);
    assert!(fs::write(device.path(), "x").is_err());
    let status = device.status().unwrap();
    assert_eq!((status.offset, status.size_limit), (Bytes::kib(4), Some(Bytes::kib(4))));
}

#[test]
fn concurrent_attaches_get_distinct_devices() {
    let bench = Bench::new();
    thread::scope(|scope| {
        for thread in 0..16 {
            let bench = &bench;
            scope.spawn(move || {
                let control = LoopControl::open().unwrap();
                let (file, path) = backing(bench, &thread.to_string(), Bytes::mib(1));
                fs::write(&path, vec![thread; 1 << 20]).unwrap();
                let device = control.attach(&file, &path, &AttachOptions::new().autoclear(true)).unwrap();
                assert!(fs::read(device.path()).unwrap().iter().all(|&byte| byte == thread));
            });
        }
    });
}

#[test]
fn attach_refuses_unsuitable_files() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let directory = File::open(bench.path()).unwrap();
    let error = control.attach(&directory, bench.path(), &AttachOptions::new()).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
}

#[test]
fn status_both_forms() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let (file, path) = backing(&bench, "file", Bytes::gib(3));
    let device = control.attach(&file, &path, &AttachOptions::new()).unwrap();
    let bound = device.status().unwrap();
    let label = &path.as_os_str().as_encoded_bytes()[..path.as_os_str().len().min(63)];
    assert_eq!(bound.file_name.as_os_str().as_encoded_bytes(), label);
    assert_eq!(device.status_old().unwrap(), bound);

    let mut status = bound.clone();
    (status.offset, status.size_limit) = (Bytes::mib(1), Some(Bytes::mib(2)));
    (status.flags, status.file_name) = (LoopFlags::AUTOCLEAR, "a name".into());
    device.set_status(&status).unwrap();
    assert_eq!(device.status().unwrap(), status);
    assert_eq!(device.size().unwrap(), Bytes::mib(2));

    // The old form has no limit: it is neither told nor kept, and never dropped without a word.
    assert!(matches!(device.set_status_old(&status), Err(Error::InvalidOption { .. })));
    status.size_limit = None;
    assert_eq!(device.status_old().unwrap(), status);
    (status.offset, status.file_name) = (Bytes::gib(2) - Bytes::mib(1), "another".into());
    device.set_status_old(&status).unwrap();
    assert_eq!((device.status().unwrap(), device.status_old().unwrap()), (status.clone(), status.clone()));
    assert_eq!(device.size().unwrap(), Bytes::gib(1) + Bytes::mib(1));

    status.offset = Bytes::gib(2);
    assert!(matches!(device.set_status_old(&status), Err(Error::InvalidOption { .. })));
    device.set_status(&status).unwrap();
    assert_eq!(device.status_old().unwrap_err().errno(), Some(Errno::EOVERFLOW));
    device.detach().unwrap();
}

#[test]
fn another_file_under_a_read_only_device() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let (first, second) = (bench.path().join("first"), bench.path().join("second"));
    fs::write(&first, [1; 4096]).unwrap();
    fs::write(&second, [2; 4096]).unwrap();
    let options = AttachOptions::new().autoclear(true).read_only(true);
    let device = control.attach(&File::open(&first).unwrap(), &first, &options).unwrap();
    assert_eq!(fs::read(device.path()).unwrap(), [1; 4096]);
    device.change_file(&File::open(&second).unwrap()).unwrap();
    assert_eq!(fs::read(device.path()).unwrap(), [2; 4096]);
    assert_eq!(device.status().unwrap().file_name.file_name(), first.file_name());

    let (longer, _) = backing(&bench, "longer", Bytes::kib(8));
    assert_eq!(device.change_file(&longer).unwrap_err().errno(), Some(Errno::EINVAL));
}

#[test]
fn attach_skips_free_devices_opened_exclusively() {
    let bench = Bench::new();
    let control = LoopControl::open().unwrap();
    let (file, path) = backing(&bench, "file", Bytes::mib(1));
    let index = control.find_free().unwrap();
    let free = control.device(index, Access::READ).unwrap();
    let claim = RealKernel.open(&free.path(), Access::READ.exclusive()).unwrap();
    let device = control.attach(&file, &path, &AttachOptions::new()).unwrap();
    assert_ne!(device.index(), index);
    drop(claim);
    device.detach().unwrap();
}

#[test]
fn a_device_is_read_only_without_loop_configure() {
    let bench = Bench::new();
    let spy = Spy { unknown: &[LOOP_CONFIGURE], errno: Errno::EINVAL, ..Default::default() };
    let control = LoopControl::with_kernel(Arc::new(spy)).unwrap();
    let (file, path) = backing(&bench, "file", Bytes::mib(1));
    let device = control.attach(&file, &path, &AttachOptions::new().read_only(true)).unwrap();
    assert!(device.status().unwrap().flags.contains(LoopFlags::READ_ONLY));
    assert!(fs::write(device.path(), "refused").is_err());
    device.detach().unwrap();
}
