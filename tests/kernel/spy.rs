//! The real kernel, watched, or as if it were older.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::kernel::{Access, Arg, DeviceFile, DeviceKind, Files, Kernel, RealKernel};

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
    fn below(&self) -> Option<&dyn Kernel> {
        Some(&RealKernel)
    }

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

    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        if self.without_loop { Ok(Vec::new()) } else { RealKernel.block_device_names() }
    }

    fn files(&self) -> &dyn Files {
        &RealKernel
    }
}

/// The field of that name in `struct dm_ioctl`: what the kernel copies.
fn data_size(buffer: &[u8]) -> u64 {
    u64::from(u32::from_ne_bytes(buffer[12..16].try_into().unwrap()))
}
