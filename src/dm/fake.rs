//! A kernel for tests whose answers a closure gives.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::{DeviceMapper, UdevPolicy};
use crate::abi::Ioctl;
use crate::abi::dm::{DM_VERSION, dm_ioctl};
use crate::kernel::{
    Access, Arg, DeviceFile, DeviceKind, DeviceNumber, Files, Kernel, RealKernel, Semaphore,
};

type Answer = Box<dyn FnMut(Ioctl, &mut [u8]) -> Result<u32, Errno> + Send>;

/// A device mapper of the given interface version. It answers VERSION by itself, and the closure
/// everything else.
pub(super) struct Fake {
    minor: u32,
    answer: Mutex<Answer>,
    opened: Mutex<Vec<OwnedFd>>,
    /// The requests so far, VERSION left out: name and bytes.
    pub(super) requests: Mutex<Vec<(&'static str, Vec<u8>)>>,
    /// The nodes that were removed.
    pub(super) removed: Mutex<Vec<PathBuf>>,
}

impl Fake {
    pub(super) fn new(
        minor: u32,
        answer: impl FnMut(Ioctl, &mut [u8]) -> Result<u32, Errno> + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            minor,
            answer: Mutex::new(Box::new(answer)),
            opened: Mutex::default(),
            requests: Mutex::default(),
            removed: Mutex::default(),
        })
    }

    /// Takes these files, one after the other, for the devices that are opened; then `/dev/null`.
    pub(super) fn opens(&self, files: impl IntoIterator<Item = OwnedFd>) {
        self.opened.lock().unwrap().extend(files);
    }

    pub(super) fn mapper(self: &Arc<Self>) -> DeviceMapper {
        DeviceMapper::with_kernel(self.clone(), UdevPolicy::None).unwrap()
    }

    /// The names of the requests so far.
    pub(super) fn log(&self) -> Vec<&'static str> {
        self.requests.lock().unwrap().iter().map(|(name, _)| *name).collect()
    }

    /// The bytes of the last request.
    pub(super) fn last(&self) -> Vec<u8> {
        self.requests.lock().unwrap().last().unwrap().1.clone()
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

/// Put a u32 where a field is.
pub(super) fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Answer with a payload, as the kernel does: it fits, or BUFFER_FULL.
pub(super) fn answer(bytes: &mut [u8], payload: &[u8]) {
    match bytes.get_mut(312..312 + payload.len()) {
        Some(room) => {
            room.copy_from_slice(payload);
            put(bytes, 12, u32::try_from(312 + payload.len()).unwrap());
        }
        None => {
            put(bytes, 12, 305);
            let flags = u32::from_ne_bytes(bytes[28..32].try_into().unwrap());
            put(bytes, 28, flags | 1 << 8);
        }
    }
}

impl Kernel for Fake {
    fn open(&self, path: &Path, _: Access) -> Result<DeviceFile, Errno> {
        let mut opened = self.opened.lock().unwrap();
        let fd = if opened.is_empty() { File::open("/dev/null").unwrap().into() } else { opened.remove(0) };
        let kind = if path.ends_with("control") { DeviceKind::MapperControl } else { DeviceKind::Block };
        Ok(DeviceFile::simulated(fd, kind, DeviceNumber { major: 10, minor: 236 }))
    }

    fn ioctl(&self, _: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        let mut none = [];
        let bytes = if let Arg::Bytes(bytes) = argument { bytes } else { &mut none[..] };
        if request != DM_VERSION {
            self.requests.lock().unwrap().push((request.name(), bytes.to_vec()));
        }
        if bytes.len() >= size_of::<dm_ioctl>() {
            let asked = u32::from_ne_bytes(bytes[4..8].try_into().unwrap());
            put(bytes, 4, self.minor);
            if asked > self.minor {
                return Err(Errno::EINVAL);
            }
        }
        if request == DM_VERSION {
            return Ok(0);
        }
        // A test that failed inside the closure is not to be hidden by the poison.
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)(request, bytes)
    }

    fn block_device(&self, _: &Path) -> Result<DeviceNumber, Errno> {
        Err(Errno::ENOENT)
    }

    fn make_node(&self, _: &Path, _: DeviceNumber) -> Result<(), Errno> {
        Ok(())
    }

    fn remove_node(&self, path: &Path) -> Result<(), Errno> {
        self.removed.lock().unwrap().push(path.into());
        Ok(())
    }

    fn block_device_names(&self) -> Result<Vec<std::ffi::OsString>, Errno> {
        Ok(Vec::new())
    }

    fn mapper_node_names(&self) -> Result<Vec<std::ffi::OsString>, Errno> {
        Ok(Vec::new())
    }

    fn create_semaphore(&self, _: u32) -> Result<Semaphore, Errno> {
        Ok(Semaphore::of_id(0))
    }

    /// udevd is stopped.
    fn is_semaphore_zero(&self, _: Semaphore) -> Result<bool, Errno> {
        Ok(false)
    }

    fn files(&self) -> &dyn Files {
        &RealKernel
    }

    fn poll(&self, file: &DeviceFile, timeout: Option<Duration>) -> Result<bool, Errno> {
        RealKernel.poll(file, timeout)
    }
}
