//! The real kernel, which counts what it is asked.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::kernel::{Access, Arg, DeviceFile, DeviceNumber, Kernel, RealKernel};

#[derive(Debug, Default)]
pub struct Counting(Mutex<Vec<&'static str>>);

impl Counting {
    pub fn mapper() -> (Arc<Self>, Arc<DeviceMapper>) {
        let kernel = Arc::new(Self::default());
        let dm = DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::default()).unwrap();
        (kernel, Arc::new(dm))
    }

    /// The ioctls since this was last asked.
    pub fn ioctls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Kernel for Counting {
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        RealKernel.open(path, access)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        self.0.lock().unwrap().push(request.name());
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
        RealKernel.block_device_names()
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
