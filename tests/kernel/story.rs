//! The quickstart, also on kernels that lack this or that.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::abi::loopdev::{LOOP_CONFIGURE, LOOP_CTL_GET_FREE};
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::kernel::{Access, Arg, DeviceFile, DeviceNumber, Kernel, RealKernel};

use crate::bench::{Bench, small};
use crate::quickstart;

/// The real kernel, as if it were older.
#[derive(Debug)]
pub struct OldKernel {
    /// Requests that it does not know.
    pub unknown: &'static [Ioctl],
    /// How it says so.
    pub errno: Errno,
    /// Whether there is nothing at all of loop devices.
    pub without_loop: bool,
}

impl Kernel for OldKernel {
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        if self.without_loop && path.to_string_lossy().starts_with("/dev/loop") {
            return Err(Errno::ENOENT);
        }
        RealKernel.open(path, access)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        if self.unknown.contains(&request) {
            return Err(self.errno);
        }
        RealKernel.ioctl(file, request, argument)
    }

    fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        RealKernel.block_device(path)
    }

    fn make_node(&self, path: &Path, number: DeviceNumber) -> Result<(), Errno> {
        RealKernel.make_node(path, number)
    }

    fn remove_node(&self, path: &Path) -> Result<(), Errno> {
        RealKernel.remove_node(path)
    }

    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        if self.without_loop { Ok(Vec::new()) } else { RealKernel.block_device_names() }
    }

    fn udev_runs(&self) -> bool {
        RealKernel.udev_runs()
    }

    fn mount(
        &self,
        source: Option<&Path>,
        target: &Path,
        filesystem: Option<&str>,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Errno> {
        RealKernel.mount(source, target, filesystem, flags, options)
    }

    fn unmount(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        RealKernel.unmount(target, flags)
    }

    fn mount_table(&self) -> Result<Vec<u8>, Errno> {
        RealKernel.mount_table()
    }
}

#[test]
fn runs_from_nothing() {
    let bench = Bench::new();
    quickstart::run(&bench.root(), small()).unwrap();
    assert!(!bench.root().exists());
}

#[test]
fn runs_without_loop_control() {
    let bench = Bench::new();
    fs::rename("/dev/loop-control", "/dev/loop-control.away").unwrap();
    let result = quickstart::run(&bench.root(), small());
    fs::rename("/dev/loop-control.away", "/dev/loop-control").unwrap();
    result.unwrap();
}

#[test]
fn runs_on_a_kernel_without_configure_and_get_free() {
    let bench = Bench::new();
    let unknown = &[LOOP_CONFIGURE, LOOP_CTL_GET_FREE];
    for errno in [Errno::ENOTTY, Errno::EINVAL] {
        let kernel = OldKernel { unknown, errno, without_loop: false };
        quickstart::run(&bench.root(), small().kernel(Arc::new(kernel))).unwrap();
    }
}

#[test]
fn runs_with_each_of_them_missing() {
    let bench = Bench::new();
    for unknown in [&[LOOP_CONFIGURE][..], &[LOOP_CTL_GET_FREE]] {
        let kernel = OldKernel { unknown, errno: Errno::EINVAL, without_loop: false };
        quickstart::run(&bench.root(), small().kernel(Arc::new(kernel))).unwrap();
    }
}
