//! The seam between this crate and the kernel: requests go through as bytes.
//!
//! Everything above is the same whether a [`RealKernel`] or a model answers. What crosses the seam is
//! what the kernel itself would see: an open device, a request code and a buffer.

#![allow(clippy::disallowed_methods)] // here they are called

mod counting;
mod device;
mod directory;
mod error;
mod files;
mod number;
mod proc;
mod process;
mod program;
mod real;
mod real_files;
mod semaphore;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nix::errno::Errno;

pub(crate) use self::counting::CountingKernel;
pub use self::device::{Access, AlignedBlock, DeviceFile};
pub use self::directory::{Directory, Links, MountId};
pub(crate) use self::error::{Condition, floor_error, is_permission};
pub use self::error::{IoctlError, MountError};
pub use self::files::{Entry, FileLock, FileStatus, Files};
pub use self::number::{DeviceNumber, ParseDeviceNumberError};
pub use self::proc::{ProcessInfo, ProcessName, UsedFile};
pub(crate) use self::process::Process;
pub use self::real::RealKernel;
pub use crate::abi::DeviceKind;
use crate::abi::Ioctl;
use crate::abi::mount::{MountFlags, UnmountFlags};
pub use crate::sys::{Arg, Semaphore};

/// The answer of the kernel below, if there is one.
macro_rules! below {
    ($self:ident.$method:ident($($argument:ident),*)) => {
        $self.below().map_or(Err(Errno::ENOSYS), |below| below.$method($($argument),*))
    };
}

/// What this crate asks of the operating system below it.
///
/// [`RealKernel`] passes each call on unchanged. Another implementation can count calls, make them
/// fail, or answer them itself: what it does not implement goes to the kernel [below](Self::below) it. Errors are bare
/// errnos, as the kernel gives them; the callers add what was done to which device.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use dm_thin::Errno;
/// use dm_thin::abi::Ioctl;
/// use dm_thin::kernel::{Arg, DeviceFile, Files, Kernel, RealKernel};
///
/// /// Counts ioctls.
/// #[derive(Debug, Default)]
/// struct Counting(AtomicU64);
///
/// impl Kernel for Counting {
///     fn below(&self) -> Option<&dyn Kernel> {
///         Some(&RealKernel)
///     }
///
///     fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         RealKernel.ioctl(file, request, argument)
///     }
///
///     fn files(&self) -> &dyn Files {
///         &RealKernel
///     }
/// }
/// ```
pub trait Kernel: fmt::Debug + Send + Sync {
    /// The kernel that answers what this one does not implement. Without one that is ENOSYS.
    fn below(&self) -> Option<&dyn Kernel> {
        None
    }

    /// Opens a device node.
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        below!(self.open(path, access))
    }

    /// `ioctl(2)` on an open device; the result is its non-negative return value.
    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        below!(self.ioctl(file, request, argument))
    }

    /// `poll(2)` for input, until the timeout or without one: whether there is some. An interruption by a signal ends
    /// it early.
    fn poll(&self, file: &DeviceFile, timeout: Option<Duration>) -> Result<bool, Errno> {
        below!(self.poll(file, timeout))
    }

    /// `pread(2)`: the number of bytes read, 0 at the end of the device.
    fn read_at(&self, file: &DeviceFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        below!(self.read_at(file, offset, buffer))
    }

    /// `pwrite(2)`: the number of bytes written.
    fn write_at(&self, file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        below!(self.write_at(file, offset, bytes))
    }

    /// `fdatasync(2)`: what was written to the device is durable.
    fn sync(&self, file: &DeviceFile) -> Result<(), Errno> {
        below!(self.sync(file))
    }

    /// `stat(2)`: the number of the block device behind `path`; ENOTBLK if it is something else.
    fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        below!(self.block_device(path))
    }

    /// The node that the kernel itself gives a block device, such as `/dev/dm-3`.
    fn device_node(&self, number: DeviceNumber) -> Result<PathBuf, Errno> {
        below!(self.device_node(number))
    }

    /// `mknod(2)`: make a block device node, mode 0600.
    fn make_node(&self, path: &Path, number: DeviceNumber) -> Result<(), Errno> {
        below!(self.make_node(path, number))
    }

    /// `unlink(2)`.
    fn remove_node(&self, path: &Path) -> Result<(), Errno> {
        below!(self.remove_node(path))
    }

    /// `fchown(2)`: gives the node that a device was opened by to a user and a group.
    fn set_node_owner(&self, file: &DeviceFile, user: u32, group: u32) -> Result<(), Errno> {
        below!(self.set_node_owner(file, user, group))
    }

    /// `fchmod(2)`: sets the permissions of the node that a device was opened by.
    fn set_node_mode(&self, file: &DeviceFile, mode: u32) -> Result<(), Errno> {
        below!(self.set_node_mode(file, mode))
    }

    /// Locks a block device, whichever of its nodes led to it, waiting while it is locked.
    fn lock_device(&self, file: &DeviceFile) -> Result<FileLock, Errno> {
        below!(self.lock_device(file))
    }

    /// The names in `/sys/class/block`, of disks and of partitions, in no particular order.
    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        below!(self.block_device_names())
    }

    /// A text below `/sys/class/block/<device>`, such as `dm/uuid`, without the newline at its end. Whoever asks has
    /// another way to know.
    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        below!(self.block_attribute(device, attribute))
    }

    /// The names in `/dev/mapper`, in no particular order.
    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno> {
        below!(self.mapper_node_names())
    }

    /// Whether udevd runs, which makes device nodes: `/run/udev/control` is there.
    fn udev_runs(&self) -> bool {
        self.below().is_some_and(Kernel::udev_runs)
    }

    /// Makes a semaphore set of this crate with that key, and counts it up to 1: `semget(2)`, `semop(2)`. EEXIST if the
    /// key is taken. Without udev nobody asks for one.
    fn create_semaphore(&self, key: u32) -> Result<Semaphore, Errno> {
        below!(self.create_semaphore(key))
    }

    /// Whether the semaphore is 0, without waiting.
    fn is_semaphore_zero(&self, semaphore: Semaphore) -> Result<bool, Errno> {
        below!(self.is_semaphore_zero(semaphore))
    }

    /// `semctl(2)` with IPC_RMID.
    fn remove_semaphore(&self, semaphore: Semaphore) -> Result<(), Errno> {
        below!(self.remove_semaphore(semaphore))
    }

    /// The semaphore sets that this crate made with such a key, in its upper 16 bits, and whose process is gone. A
    /// process number may be given anew, and a process of another pid namespace is not seen: such sets are not listed.
    fn abandoned_semaphores(&self, key: u16) -> Result<Vec<Semaphore>, Errno> {
        below!(self.abandoned_semaphores(key))
    }

    /// `mount(2)`; without `source` and `filesystem` it changes the propagation of `target`.
    fn mount(
        &self,
        source: Option<&Path>,
        target: &Path,
        filesystem: Option<&str>,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Errno> {
        below!(self.mount(source, target, filesystem, flags, options))
    }

    /// `umount2(2)`.
    fn unmount(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        below!(self.unmount(target, flags))
    }

    /// The text of `/proc/self/mountinfo`.
    fn mount_table(&self) -> Result<Vec<u8>, Errno> {
        below!(self.mount_table())
    }

    /// Writes an attribute of a mounted file system, a file below `/sys/fs/<filesystem>/<device>`, such as
    /// `error/metadata/ENOSPC/max_retries`.
    fn set_filesystem_attribute(
        &self,
        filesystem: &str,
        device: DeviceNumber,
        attribute: &str,
        value: &str,
    ) -> Result<(), Errno> {
        below!(self.set_filesystem_attribute(filesystem, device, attribute, value))
    }

    /// A text of `/sys/kernel`, such as `rcu_expedited`, without the newline at its end. Whoever asks does without it, too.
    fn kernel_attribute(&self, attribute: &str) -> Result<Vec<u8>, Errno> {
        below!(self.kernel_attribute(attribute))
    }

    /// The ids of the processes, in no particular order. If this fails, or one of the next three, nobody is named who has
    /// something open.
    fn process_ids(&self) -> Result<Vec<u32>, Errno> {
        below!(self.process_ids())
    }

    /// What `/proc/<pid>` shows of a process.
    fn process_info(&self, pid: u32) -> Result<ProcessInfo, Errno> {
        below!(self.process_info(pid))
    }

    /// A text below `/proc`, such as `locks` or `233/mountinfo`.
    fn proc_text(&self, path: &str) -> Result<Vec<u8>, Errno> {
        below!(self.proc_text(path))
    }

    /// The names in `/sys/dev/block/<number>/holders`, in no particular order.
    fn device_holders(&self, number: DeviceNumber) -> Result<Vec<OsString>, Errno> {
        below!(self.device_holders(number))
    }

    /// Where a program is: in PATH, or where such programs are when PATH is a user's. ENOENT if it is not installed;
    ///
    fn find_program(&self, program: &str) -> Result<PathBuf, Errno> {
        below!(self.find_program(program))
    }

    /// Runs a program to its end, in the C locale and without input. ENOENT if it is not installed.
    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        below!(self.run(program, arguments))
    }

    /// Its files and directories.
    fn files(&self) -> &dyn Files;
}

/// The index of a loop device's name, `loop7`.
pub(crate) fn loop_index(name: &OsStr) -> Option<u32> {
    std::str::from_utf8(name.as_bytes().strip_prefix(b"loop")?).ok()?.parse().ok()
}
