//! `/dev/loop-control`, and what stands in for it where there is none.

use std::ffi::OsString;
use std::fs::File; // open ones, which `kernel::Files` or a caller gives out
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;

use super::index::{device_path, refused};
use super::{LoopDevice, LoopIndex};
use crate::abi::Ioctl;
use crate::abi::loopdev::{LOOP_CTL_ADD, LOOP_CTL_GET_FREE, LOOP_CTL_REMOVE};
use crate::kernel::is_permission;
use crate::kernel::{Access, Arg, DeviceFile, DeviceNumber, FileStatus, Kernel, RealKernel, loop_index};
use crate::loopdev::{Error, Result};

/// Races lost before giving up. With as many rivals at once, one of them wins each round.
pub(super) const TRIES: u32 = 64;

const PATH: &str = "/dev/loop-control";
const LOOP_MAJOR: u32 = 7;

/// The loop driver.
///
/// ```no_run
/// use std::fs::File;
/// use std::path::Path;
///
/// use dm_thin::loopdev::{AttachOptions, LoopControl};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let path = Path::new("/var/lib/disk.img");
/// let file = File::options().read(true).write(true).open(path)?;
/// // The kernel detaches an autoclear device when nobody has it open any more.
/// let options = AttachOptions::new().direct_io(true).autoclear(true);
/// let device = LoopControl::open()?.attach(&file, path, &options)?;
/// println!("{} has {}", device.path().display(), device.size()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LoopControl {
    pub(super) kernel: Arc<dyn Kernel>,
    /// `None`: an old kernel, or a `/dev` without the node. Free devices are then found by a scan.
    control: Option<DeviceFile>,
    /// Set once LOOP_CONFIGURE failed where LOOP_SET_FD worked: the kernel is older than 5.8.
    pub(super) without_configure: AtomicBool,
}

impl LoopControl {
    /// Opens `/dev/loop-control` of the running kernel; kernels before 3.1 have none.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], or [`Error::Open`] if it is there but cannot be opened.
    pub fn open() -> Result<Self> {
        Self::with_kernel(Arc::new(RealKernel))
    }

    /// The same with another [`Kernel`].
    pub fn with_kernel(kernel: Arc<dyn Kernel>) -> Result<Self> {
        let control = match kernel.open(PATH.as_ref(), Access::READ_WRITE) {
            Ok(control) => Some(control),
            Err(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => None,
            Err(errno) if is_permission(errno) => {
                return Err(Error::NotPermitted { what: format!("open {PATH}") });
            }
            Err(errno) => return Err(Error::Open { path: PATH.into(), errno }),
        };
        Ok(Self { kernel, control, without_configure: AtomicBool::new(false) })
    }

    /// The kernel behind it.
    pub(crate) fn kernel(&self) -> &Arc<dyn Kernel> {
        &self.kernel
    }

    /// The index of a device that is free now: LOOP_CTL_GET_FREE, or a scan where the kernel does not
    /// have it. Nothing is reserved: another process can take it first.
    ///
    /// # Errors
    /// [`Error::NoFreeLoopDevice`], and [`Error::NoLoopDevices`] if there is not even one that is taken.
    #[doc(alias = "LOOP_CTL_GET_FREE")]
    pub fn find_free(&self) -> Result<LoopIndex> {
        match self.control(LOOP_CTL_GET_FREE, 0) {
            // Before 3.1, headers had no such number (EINVAL) and the driver no such node (ENOTTY, None).
            None | Some(Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS)) => self.scan_for_free(&[]),
            Some(Ok(index)) => Ok(LoopIndex(index)),
            Some(Err(errno)) => Err(refused(LOOP_CTL_GET_FREE, PATH, errno)),
        }
    }

    /// The same, leaving out devices that are free and cannot be bound: LOOP_CTL_GET_FREE says the same one again.
    /// Where there is no other, one is added.
    pub(super) fn find_free_except(&self, unusable: &[LoopIndex]) -> Result<LoopIndex> {
        let index = self.find_free()?;
        if !unusable.contains(&index) {
            return Ok(index);
        }
        match self.scan_for_free(unusable) {
            Err(Error::NoFreeLoopDevice { .. }) if self.control.is_some() => self.add_another(),
            result => result,
        }
    }

    /// Adds a device where there is none. Without an index, kernels before 5.14 say EEXIST as long as there is any that is
    /// free.
    fn add_another(&self) -> Result<LoopIndex> {
        let there = self.indices()?;
        let absent = (0..).map(LoopIndex).filter(|index| there.binary_search(index).is_err());
        let added = absent.take(TRIES as usize).find_map(|index| match self.add(index) {
            // Another process was faster.
            Err(error) if error.is_exists() => None,
            result => Some(result.map(|()| index)),
        });
        added.unwrap_or(Err(Error::NoFreeLoopDevice { tried: TRIES }))
    }

    /// Makes the loop device with this index.
    ///
    /// # Errors
    /// EEXIST if it is there ([`Error::is_exists`]); [`Error::NoLoopDevices`] without `/dev/loop-control`.
    #[doc(alias = "LOOP_CTL_ADD")]
    pub fn add(&self, index: LoopIndex) -> Result<()> {
        self.demand(LOOP_CTL_ADD, index)
    }

    /// Removes the loop device with this index.
    ///
    /// # Errors
    /// EBUSY if it is bound or open, ENODEV if it is not there.
    #[doc(alias = "LOOP_CTL_REMOVE")]
    pub fn remove(&self, index: LoopIndex) -> Result<()> {
        self.demand(LOOP_CTL_REMOVE, index)
    }

    /// The device of that index.
    ///
    /// # Errors
    /// [`Error::Open`]; [`Error::Replaced`] if the node leads to another device.
    pub fn device(&self, index: LoopIndex, access: Access) -> Result<LoopDevice> {
        // Before a file descriptor is taken: this takes one, too.
        let (path, expected) = (device_path(index), self.number(index));
        let file =
            self.kernel.open(&path, access).map_err(|errno| Error::Open { path: path.clone(), errno })?;
        let found = file.number();
        if found != expected {
            return Err(Error::Replaced { device: path.display().to_string(), expected, found });
        }
        Ok(LoopDevice::new(self.kernel.clone(), file, index))
    }

    /// The same; makes its node where udev does not.
    pub(super) fn device_with_node(&self, index: LoopIndex, access: Access) -> Result<LoopDevice> {
        match self.device(index, access) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                let path = device_path(index);
                match self.kernel.make_node(&path, self.number(index)) {
                    // Made, or another thread or process was faster.
                    Ok(()) | Err(Errno::EEXIST) => self.device(index, access),
                    Err(errno) => Err(Error::Open { path, errno }),
                }
            }
            opened => opened,
        }
    }

    /// The device number that belongs to an index. With partitions (the module's `max_part`) the minor numbers have
    /// gaps, of which sysfs knows.
    pub(super) fn number(&self, index: LoopIndex) -> DeviceNumber {
        let told = self.kernel.block_attribute(&format!("loop{index}"), "dev").ok();
        let told = told.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
        told.unwrap_or(DeviceNumber { major: LOOP_MAJOR, minor: index.0 })
    }

    /// The device that is bound to `file`, if there is one: by the file's device and inode number, since
    /// names say nothing.
    pub fn find(&self, file: &File) -> Result<Option<LoopDevice>> {
        let backing = self.kernel.files().file_status(file.as_fd());
        let backing = backing.map_err(|errno| Error::io("stat", "backing file")(errno))?;
        for index in self.indices()? {
            let is_missing = |error: &Error| error.errno() == Some(Errno::ENOENT);
            let found = match self.device(index, Access::READ) {
                // Bound, and without a node here.
                Err(error) if is_missing(&error) && self.backing_path(index)?.is_some() => {
                    self.device_with_node(index, Access::READ)
                }
                opened => opened,
            };
            match found.and_then(|found| found.status().map(|status| (found, status))) {
                Ok((found, status))
                    if status.backing_device == backing.device && status.backing_inode == backing.inode =>
                {
                    return Ok(Some(found));
                }
                // Another file's, or unbound.
                Ok(_) => {}
                Err(error) if error.errno() == Some(Errno::ENXIO) => {}
                // It may be the one.
                Err(error) if error.errno().is_some_and(is_shortage) => return Err(error),
                Err(error) => {
                    if let Some(path) = self.backing_path(index)?
                        && self.has_identity(&path, &backing)?
                    {
                        return Err(error);
                    }
                    // Gone since it was listed; of another container; on a file that does not answer.
                }
            }
        }
        Ok(None)
    }

    /// The path of the file that a device is bound to, as sysfs tells it.
    fn backing_path(&self, index: LoopIndex) -> Result<Option<PathBuf>> {
        match self.kernel.block_attribute(&format!("loop{index}"), "loop/backing_file") {
            Ok(path) => Ok(Some(OsString::from_vec(path).into())),
            Err(errno) if is_shortage(errno) => Err(Error::io("read", "loop/backing_file")(errno)),
            Err(_) => Ok(None),
        }
    }

    fn has_identity(&self, path: &Path, file: &FileStatus) -> Result<bool> {
        let files = self.kernel.files();
        match files.open_path(path).and_then(|found| files.file_status(found.as_fd())) {
            Ok(status) => Ok((status.device, status.inode) == (file.device, file.inode)),
            Err(errno) if is_shortage(errno) => Err(Error::io("open", path)(errno)),
            Err(_) => Ok(false),
        }
    }

    /// The indices of all loop devices, in order. There may be gaps.
    fn indices(&self) -> Result<Vec<LoopIndex>> {
        let names = self.kernel.block_device_names().map_err(Error::io("list", "/sys/class/block"))?;
        let mut indices: Vec<_> = names.iter().filter_map(|name| loop_index(name)).map(LoopIndex).collect();
        indices.sort_unstable();
        Ok(indices)
    }

    fn scan_for_free(&self, unusable: &[LoopIndex]) -> Result<LoopIndex> {
        let indices = self.indices()?;
        if indices.is_empty() {
            return Err(Error::NoLoopDevices);
        }
        let is_free = |&index: &LoopIndex| {
            let status = self.device_with_node(index, Access::READ).map(|device| device.status());
            matches!(status, Ok(Err(error)) if error.errno() == Some(Errno::ENXIO))
        };
        let tried = u32::try_from(indices.len()).unwrap_or(u32::MAX);
        indices
            .into_iter()
            .filter(|index| !unusable.contains(index))
            .find(is_free)
            .ok_or(Error::NoFreeLoopDevice { tried })
    }

    fn control(&self, request: Ioctl, index: i32) -> Option<Result<u32, Errno>> {
        let control = self.control.as_ref()?;
        Some(self.kernel.ioctl(control, request, Arg::Value(index)))
    }

    fn demand(&self, request: Ioctl, index: LoopIndex) -> Result<()> {
        let value = i32::try_from(index.0).map_err(|_| Error::InvalidOption {
            option: "loop device index",
            value: index.to_string(),
            reason: "too large",
        })?;
        match self.control(request, value) {
            None => Err(Error::NoLoopDevices),
            Some(Ok(_)) => Ok(()),
            Some(Err(errno)) => Err(refused(request, device_path(index).display(), errno)),
        }
    }
}

/// Whether this process lacks what it takes to look.
fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EINTR)
}
