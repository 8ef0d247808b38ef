//! The real kernel, watched, or as if it were older.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::kernel::{
    Access, Arg, DeviceFile, DeviceKind, DeviceNumber, FileLock, Files, Kernel, ProcessInfo, RealKernel,
    Semaphore,
};

use crate::dying::Life;

/// Passes everything on, except what it is told to refuse, and remembers the ioctls.
#[derive(Debug)]
pub struct Spy {
    /// Requests that it does not know.
    pub unknown: &'static [Ioctl],
    /// How it says so.
    pub errno: Errno,
    /// Whether there is nothing at all of loop devices.
    pub without_loop: bool,
    /// Device-mapper ioctls so far.
    pub dm_ioctls: Mutex<Vec<&'static str>>,
    /// Bytes that these carried, there and back.
    pub dm_bytes: Mutex<u64>,
    /// When the process dies, counted in ioctls.
    pub life: Option<Life>,
}

impl Default for Spy {
    fn default() -> Self {
        let (dm_ioctls, dm_bytes) = Default::default();
        let (unknown, errno) = (&[][..], Errno::ENOTTY);
        Self { unknown, errno, without_loop: false, dm_ioctls, dm_bytes, life: None }
    }
}

impl Spy {
    /// A device mapper that is watched.
    pub fn mapper() -> (Arc<Self>, Arc<DeviceMapper>) {
        let spy = Arc::new(Self::default());
        let dm = DeviceMapper::with_kernel(spy.clone(), UdevPolicy::default()).unwrap();
        (spy, Arc::new(dm))
    }

    /// The device-mapper ioctls since this was last asked.
    pub fn ioctls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.dm_ioctls.lock().unwrap())
    }

    /// How many bytes device-mapper ioctls carried since this was last asked.
    pub fn bytes(&self) -> u64 {
        std::mem::take(&mut self.dm_bytes.lock().unwrap())
    }

    /// The device-mapper ioctls of `work`.
    pub fn during(&self, work: impl FnOnce()) -> Vec<&'static str> {
        self.ioctls();
        work();
        self.ioctls()
    }

    fn watched(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        if request.device() == DeviceKind::MapperControl {
            self.dm_ioctls.lock().unwrap().push(request.name());
        }
        if self.unknown.contains(&request) {
            return Err(self.errno);
        }
        match argument {
            Arg::Bytes(buffer) if request.device() == DeviceKind::MapperControl => {
                let sent = data_size(buffer);
                let answer = RealKernel.ioctl(file, request, Arg::Bytes(&mut *buffer));
                *self.dm_bytes.lock().unwrap() += sent + data_size(buffer);
                answer
            }
            argument => RealKernel.ioctl(file, request, argument),
        }
    }
}

impl Kernel for Spy {
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        if self.without_loop && path.to_string_lossy().starts_with("/dev/loop") {
            return Err(Errno::ENOENT);
        }
        RealKernel.open(path, access)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        match &self.life {
            Some(life) => life.call(|| self.watched(file, request, argument)),
            None => self.watched(file, request, argument),
        }
    }

    fn read_at(&self, file: &DeviceFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        RealKernel.read_at(file, offset, buffer)
    }

    fn write_at(&self, file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        RealKernel.write_at(file, offset, bytes)
    }

    fn sync(&self, file: &DeviceFile) -> Result<(), Errno> {
        RealKernel.sync(file)
    }

    fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        RealKernel.block_device(path)
    }

    fn device_node(&self, number: DeviceNumber) -> Result<PathBuf, Errno> {
        RealKernel.device_node(number)
    }

    fn make_node(&self, path: &Path, number: DeviceNumber) -> Result<(), Errno> {
        RealKernel.make_node(path, number)
    }

    fn remove_node(&self, path: &Path) -> Result<(), Errno> {
        RealKernel.remove_node(path)
    }

    fn lock_device(&self, file: &DeviceFile) -> Result<FileLock, Errno> {
        RealKernel.lock_device(file)
    }

    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        if self.without_loop { Ok(Vec::new()) } else { RealKernel.block_device_names() }
    }

    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        RealKernel.block_attribute(device, attribute)
    }

    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno> {
        RealKernel.mapper_node_names()
    }

    fn udev_runs(&self) -> bool {
        RealKernel.udev_runs()
    }

    fn create_semaphore(&self, key: u32) -> Result<Semaphore, Errno> {
        RealKernel.create_semaphore(key)
    }

    fn is_semaphore_zero(&self, semaphore: Semaphore) -> Result<bool, Errno> {
        RealKernel.is_semaphore_zero(semaphore)
    }

    fn remove_semaphore(&self, semaphore: Semaphore) -> Result<(), Errno> {
        RealKernel.remove_semaphore(semaphore)
    }

    fn abandoned_semaphores(&self, key: u16) -> Result<Vec<Semaphore>, Errno> {
        RealKernel.abandoned_semaphores(key)
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

    fn set_filesystem_attribute(
        &self,
        filesystem: &str,
        device: DeviceNumber,
        attribute: &str,
        value: &str,
    ) -> Result<(), Errno> {
        RealKernel.set_filesystem_attribute(filesystem, device, attribute, value)
    }

    fn process_ids(&self) -> Result<Vec<u32>, Errno> {
        RealKernel.process_ids()
    }

    fn process_info(&self, pid: u32) -> Result<ProcessInfo, Errno> {
        RealKernel.process_info(pid)
    }

    fn proc_text(&self, path: &str) -> Result<Vec<u8>, Errno> {
        RealKernel.proc_text(path)
    }

    fn device_holders(&self, number: DeviceNumber) -> Result<Vec<OsString>, Errno> {
        RealKernel.device_holders(number)
    }

    fn find_program(&self, program: &str) -> Result<PathBuf, Errno> {
        RealKernel.find_program(program)
    }

    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        RealKernel.run(program, arguments)
    }

    fn files(&self) -> &dyn Files {
        &RealKernel
    }

    fn poll(&self, file: &DeviceFile, timeout: Option<Duration>) -> Result<bool, Errno> {
        RealKernel.poll(file, timeout)
    }
}

/// The field of that name in `struct dm_ioctl`: what the kernel copies.
fn data_size(buffer: &[u8]) -> u64 {
    u64::from(u32::from_ne_bytes(buffer[12..16].try_into().unwrap()))
}
