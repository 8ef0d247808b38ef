//! `/dev/mapper/control`: the driver's handle, and how a request gets its answer. The commands are in
//! `devices.rs` and `tables.rs`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use nix::errno::Errno;
use zeroize::Zeroize;

use super::udev::{self, Cookie, UdevFlags, UdevPolicy};
use super::wire::request::SECRET;
use super::wire::{Command, EncodeError, Request, Response};
use super::{DmFlags, DmVersion, claims};
use crate::abi::Ioctl;
use crate::dm::{Error, Result};
use crate::kernel::{Access, Arg, DeviceFile, Kernel, RealKernel};
use crate::kernel::{IoctlError, is_permission};

/// Room for a request and its answer on the stack: enough for every message and table of this crate,
/// and less than a page's worth of copying each way.
pub(super) const SMALL: usize = 480;
/// First room for an answer that is a list or a table; doubled as long as the kernel asks.
const LARGE: usize = 16 << 10;
/// No honest answer is larger: some 300,000 devices.
pub(super) const LARGEST: usize = 64 << 20;

/// The device-mapper driver. Cheap to share between threads behind an [`Arc`]; each method is one
/// ioctl, plus, when devices come, go or change their name, what it takes until the node under
/// `/dev/mapper` shows that.
///
/// ```
/// use dm_thin::abi::dm::DmFlags;
/// use dm_thin::dm::targets::{Target, Zero};
/// use dm_thin::dm::{DeviceMapper, DmName, DmUuid, TableKind};
/// use dm_thin::units::Sectors;
///
/// # #[cfg(not(feature = "model"))]
/// # fn main() {}
/// # #[cfg(feature = "model")]
/// # fn main() -> dm_thin::dm::Result<()> {
/// # let kernel = std::sync::Arc::new(dm_thin::model::ModelKernel::new());
/// # let _ = || // on the model, and not on this machine
/// # -> dm_thin::dm::Result<_> {
/// let dm = DeviceMapper::open()?;
/// # Ok(dm) };
/// # let dm = DeviceMapper::with_kernel(kernel, dm_thin::dm::UdevPolicy::None)?;
/// let (name, uuid) = (DmName::new("zeroes")?, DmUuid::new("EXAMPLE-zeroes")?);
/// let table = [Zero.over(Sectors(0), Sectors(2048))];
/// let device = dm.create_active(&name, &uuid, &table, DmFlags::empty())?;
/// println!("{} is {}", dm.node_path(&name).display(), device.number);
///
/// let table = dm.table(&name, TableKind::Live)?;
/// assert_eq!(table[0].to_string(), "0 2048 zero ");
/// // A device that is not there is an error with ENXIO; `find` answers `None`.
/// dm.remove(&name)?;
/// assert_eq!(dm.status(&name).unwrap_err().errno(), Some(dm_thin::Errno::ENXIO));
/// assert!(dm.find(&name)?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DeviceMapper {
    kernel: Arc<dyn Kernel>,
    pub(super) control: DeviceFile,
    version: DmVersion,
    udev: UdevPolicy,
    /// udev did not answer once: it is stopped, and waiting for it again would cost as long for each change.
    udev_is_silent: AtomicBool,
    /// Semaphores of processes that were killed were looked for.
    swept: Once,
}

impl DeviceMapper {
    /// Opens `/dev/mapper/control` of the running kernel.
    ///
    /// # Errors
    /// [`Error::NoDeviceMapper`], [`Error::NotPermitted`]; EINVAL if the interface is not version 4.
    pub fn open() -> Result<Self> {
        Self::with_kernel(Arc::new(RealKernel), UdevPolicy::default())
    }

    /// The same with another [`Kernel`], and a choice about udev.
    pub fn with_kernel(kernel: Arc<dyn Kernel>, udev: UdevPolicy) -> Result<Self> {
        let path = Path::new("/dev/mapper/control");
        let control = kernel.open(path, Access::READ_WRITE).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::ENOTDIR => {
                Error::NoDeviceMapper { path: path.into(), errno }
            }
            errno if is_permission(errno) => Error::NotPermitted { what: format!("open {}", path.display()) },
            errno => Error::Open { path: path.into(), errno },
        })?;
        claims::reserve();
        let version = DmVersion { major: crate::abi::dm::DM_VERSION_MAJOR, minor: 0, patch: 0 };
        let (udev_is_silent, swept) = (AtomicBool::new(false), Once::new());
        let mut dm = Self { kernel, control, version, udev, udev_is_silent, swept };
        dm.version = dm.transact(&Request::new(Command::VERSION), |answer| Ok(answer.version()))?;
        Ok(dm)
    }

    /// The kernel behind it.
    pub fn kernel(&self) -> &Arc<dyn Kernel> {
        &self.kernel
    }

    /// Whether the running kernel answers, through whatever stands before it.
    pub(super) fn is_real(&self) -> bool {
        self.control.is_real()
    }

    /// The kernel's interface version, asked once when this was opened.
    #[doc(alias = "DM_VERSION")]
    pub fn version(&self) -> DmVersion {
        self.version
    }

    /// [`Error::TooOld`] if the kernel's interface is older than 4.`minor`.
    pub(super) fn needs(&self, ioctl: Ioctl, minor: u32) -> Result<()> {
        if minor > self.version.minor {
            return Err(Error::TooOld { ioctl: ioctl.name(), needed: minor, kernel: self.version });
        }
        Ok(())
    }

    /// Whether changes are waited for until udev has seen them. Not any more once it did not answer within 30 seconds:
    /// then nodes are made as where udev does not run.
    pub fn waits_for_udev(&self) -> bool {
        if self.udev_is_silent.load(Ordering::Relaxed) {
            return false;
        }
        match self.udev {
            UdevPolicy::None => false,
            UdevPolicy::Auto => self.kernel.udev_runs(),
            UdevPolicy::Cookie => true,
        }
    }

    /// Sends a request that makes the kernel tell udev, and waits until udev has done its part.
    pub(super) fn with_udev<T>(
        &self,
        request: Request<'_>,
        decode: impl FnOnce(&Response<'_>) -> Result<T>,
    ) -> Result<T> {
        // Without a semaphore (none left in the system, or not allowed) nobody waits for udev, which still reads the flags.
        let cookie = if self.waits_for_udev() {
            self.swept.call_once(|| udev::sweep(&*self.kernel));
            Cookie::new(&*self.kernel).ok()
        } else {
            None
        };
        let event_nr = UdevFlags::NODE_ONLY.event_nr(cookie.as_ref());
        let (announced, decoded) = self.transact(&request.event_nr(event_nr), |answer| {
            Ok((answer.flags().contains(DmFlags::UEVENT_GENERATED), decode(&answer)?))
        })?;
        if let Some(cookie) = cookie.filter(|_| announced)
            && cookie.wait() == Err(Errno::ETIMEDOUT)
        {
            // udev does not come. The caller's look at the node mends what it left; the next one does not wait.
            self.udev_is_silent.store(true, Ordering::Relaxed);
        }
        Ok(decoded)
    }

    /// Sends a request; a query grows its buffer until the answer fits.
    pub(super) fn transact<T>(
        &self,
        request: &Request<'_>,
        decode: impl FnOnce(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let capacity = if request.command().is_query() { LARGE } else { SMALL };
        self.transact_in(request, capacity, decode)
    }

    /// The same with room for an answer of a certain size from the start.
    pub(super) fn transact_in<T>(
        &self,
        request: &Request<'_>,
        capacity: usize,
        decode: impl FnOnce(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let ioctl = request.command().ioctl;
        self.needs(ioctl, request.minor())?;
        let mut buffer = Buffer::new(request.is_secure());
        let mut capacity = capacity;
        loop {
            let buffer = buffer.of(capacity);
            let fits = match request.encode(buffer) {
                Ok(()) => true,
                Err(EncodeError::BufferTooSmall) => false,
                Err(EncodeError::NulInText) => return Err(unfit(request, "a NUL byte inside")),
                Err(EncodeError::NumberTooLarge) => return Err(unfit(request, "device number too large")),
            };
            if fits {
                let answered = self.kernel.ioctl(&self.control, ioctl, Arg::Bytes(buffer));
                match answered.map_err(|errno| refused(request, errno))? {
                    0 => {}
                    // No command answers more, and what does has copied nothing back.
                    _ => return Err(refused(request, Errno::ENXIO)),
                }
                let answer = Response::decode(buffer)?;
                if !answer.flags().contains(DmFlags::BUFFER_FULL) {
                    return decode(answer).map_err(|error| match error {
                        Error::Malformed { what, .. } if request.is_secure() => {
                            Error::Malformed { what, raw: SECRET.to_owned() }
                        }
                        error => error,
                    });
                }
            }
            // What has had its effect must not have it twice.
            let sent = fits && !request.command().is_query();
            if sent || capacity >= LARGEST {
                let device = request.subject();
                return Err(Error::AnswerTooLarge { ioctl: ioctl.name(), device, capacity });
            }
            capacity = (capacity * 2).clamp(LARGE, LARGEST);
        }
    }
}

impl AsFd for DeviceMapper {
    /// The control file, to poll for events after [`arm_poll`](Self::arm_poll).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl AsRawFd for DeviceMapper {
    /// For event loops that register a number.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Room for a request and its answer: on the stack, or on the heap if it must be large. With secrets
/// in it, it is wiped before it is given back.
struct Buffer {
    stack: [u8; SMALL],
    heap: Vec<u8>,
    secure: bool,
}

impl Buffer {
    fn new(secure: bool) -> Self {
        Self { stack: [0; SMALL], heap: Vec::new(), secure }
    }

    fn of(&mut self, capacity: usize) -> &mut [u8] {
        if capacity <= SMALL {
            return &mut self.stack;
        }
        self.wipe();
        self.heap = vec![0; capacity];
        &mut self.heap
    }

    fn wipe(&mut self) {
        if self.secure {
            self.stack.zeroize();
            self.heap.as_mut_slice().zeroize();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cold]
fn unfit(request: &Request<'_>, reason: &'static str) -> Error {
    let value =
        request.detail().map_or_else(|| request.subject(), |detail| detail.escape_debug().to_string());
    Error::InvalidOption { option: request.command().ioctl.name(), value, reason }
}

#[cold]
fn refused(request: &Request<'_>, errno: Errno) -> Error {
    let error = IoctlError {
        ioctl: request.command().ioctl.name(),
        device: request.subject(),
        detail: request.detail(),
        errno,
    };
    // Without privilege every command is refused, this one first. Later, EACCES means a read-only device.
    if is_permission(errno) && request.command() == Command::VERSION {
        return Error::NotPermitted { what: error.to_string() };
    }
    Error::Ioctl(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_with_secrets_is_wiped_and_another_is_not() {
        for (secure, left) in [(true, 0), (false, b's')] {
            let mut buffer = Buffer::new(secure);
            buffer.of(SMALL).fill(b's');
            buffer.of(LARGE);
            assert_eq!(buffer.stack, [left; SMALL], "before it grows");
            buffer.of(LARGE).fill(b's');
            buffer.wipe();
            assert_eq!((buffer.heap[0], buffer.heap[LARGE - 1]), (left, left));
        }
    }
}
