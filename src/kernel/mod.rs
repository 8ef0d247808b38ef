//! The seam between this crate and the kernel: requests go through as bytes.
//!
//! Everything above is the same whether a [`RealKernel`] or a model answers. What crosses the seam is
//! what the kernel itself would see: an open device, a request code and a buffer.

#![allow(clippy::disallowed_methods)] // here they are called

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

/// What this crate asks of the operating system below it.
///
/// [`RealKernel`] passes each call on unchanged. Another implementation can count calls, make them
/// fail, or answer them itself. Errors are bare errnos, as the kernel gives them; the callers add what
/// was done to which device.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Opens a device node.
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno>;

    /// `ioctl(2)` on an open device; the result is its non-negative return value.
    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno>;

    /// `poll(2)` for input, until the timeout or without one: whether there is some. An interruption by a signal ends
    /// it early. ENOSYS unless implemented.
    fn poll(&self, file: &DeviceFile, timeout: Option<Duration>) -> Result<bool, Errno> {
        let _ = (file, timeout);
        Err(Errno::ENOSYS)
    }

    /// `pread(2)`: the number of bytes read, 0 at the end of the device. ENOSYS unless implemented.
    fn read_at(&self, file: &DeviceFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let _ = (file, offset, buffer);
        Err(Errno::ENOSYS)
    }

    /// `pwrite(2)`: the number of bytes written. ENOSYS unless implemented.
    fn write_at(&self, file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let _ = (file, offset, bytes);
        Err(Errno::ENOSYS)
    }

    /// `fdatasync(2)`: what was written to the device is durable. ENOSYS unless implemented.
    fn sync(&self, file: &DeviceFile) -> Result<(), Errno> {
        let _ = file;
        Err(Errno::ENOSYS)
    }

    /// `stat(2)`: the number of the block device behind `path`; ENOTBLK if it is something else.
    fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno>;

    /// The node that the kernel itself gives a block device, such as `/dev/dm-3`. ENOSYS unless implemented.
    fn device_node(&self, number: DeviceNumber) -> Result<PathBuf, Errno> {
        let _ = number;
        Err(Errno::ENOSYS)
    }

    /// `mknod(2)`: make a block device node, mode 0600.
    fn make_node(&self, path: &Path, number: DeviceNumber) -> Result<(), Errno>;

    /// `unlink(2)`.
    fn remove_node(&self, path: &Path) -> Result<(), Errno>;

    /// Locks a block device, whichever of its nodes led to it, waiting while it is locked. ENOSYS unless
    /// implemented.
    fn lock_device(&self, file: &DeviceFile) -> Result<FileLock, Errno> {
        let _ = file;
        Err(Errno::ENOSYS)
    }

    /// The names in `/sys/class/block`, of disks and of partitions, in no particular order.
    fn block_device_names(&self) -> Result<Vec<OsString>, Errno>;

    /// A text below `/sys/class/block/<device>`, such as `dm/uuid`, without the newline at its end. ENOSYS unless
    /// implemented: whoever asks has another way to know.
    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        let _ = (device, attribute);
        Err(Errno::ENOSYS)
    }

    /// The names in `/dev/mapper`, in no particular order.
    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno>;

    /// Whether udevd runs, which makes device nodes: `/run/udev/control` is there.
    fn udev_runs(&self) -> bool;

    /// Makes a semaphore set of this crate with that key, and counts it up to 1: `semget(2)`, `semop(2)`. EEXIST if the
    /// key is taken; ENOSYS unless implemented, as for the next three: who has no udev needs none.
    fn create_semaphore(&self, key: u32) -> Result<Semaphore, Errno> {
        let _ = key;
        Err(Errno::ENOSYS)
    }

    /// Whether the semaphore is 0, without waiting.
    fn is_semaphore_zero(&self, semaphore: Semaphore) -> Result<bool, Errno> {
        let _ = semaphore;
        Err(Errno::ENOSYS)
    }

    /// `semctl(2)` with IPC_RMID.
    fn remove_semaphore(&self, semaphore: Semaphore) -> Result<(), Errno> {
        let _ = semaphore;
        Err(Errno::ENOSYS)
    }

    /// The semaphore sets that this crate made with such a key, in its upper 16 bits, and whose process is gone. A
    /// process number may be given anew, and a process of another pid namespace is not seen: such sets are not listed.
    fn abandoned_semaphores(&self, key: u16) -> Result<Vec<Semaphore>, Errno> {
        let _ = key;
        Err(Errno::ENOSYS)
    }

    /// `mount(2)`; without `source` and `filesystem` it changes the propagation of `target`.
    fn mount(
        &self,
        source: Option<&Path>,
        target: &Path,
        filesystem: Option<&str>,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Errno>;

    /// `umount2(2)`.
    fn unmount(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno>;

    /// The text of `/proc/self/mountinfo`.
    fn mount_table(&self) -> Result<Vec<u8>, Errno>;

    /// Writes an attribute of a mounted file system, a file below `/sys/fs/<filesystem>/<device>`, such as
    /// `error/metadata/ENOSPC/max_retries`. ENOSYS unless implemented.
    fn set_filesystem_attribute(
        &self,
        filesystem: &str,
        device: DeviceNumber,
        attribute: &str,
        value: &str,
    ) -> Result<(), Errno> {
        let _ = (filesystem, device, attribute, value);
        Err(Errno::ENOSYS)
    }

    /// The ids of the processes, in no particular order. ENOSYS unless implemented, as for the next three: then nobody
    /// is named who has something open.
    fn process_ids(&self) -> Result<Vec<u32>, Errno> {
        Err(Errno::ENOSYS)
    }

    /// What `/proc/<pid>` shows of a process.
    fn process_info(&self, pid: u32) -> Result<ProcessInfo, Errno> {
        let _ = pid;
        Err(Errno::ENOSYS)
    }

    /// A text below `/proc`, such as `locks` or `233/mountinfo`.
    fn proc_text(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// The names in `/sys/dev/block/<number>/holders`, in no particular order.
    fn device_holders(&self, number: DeviceNumber) -> Result<Vec<OsString>, Errno> {
        let _ = number;
        Err(Errno::ENOSYS)
    }

    /// Where a program is: in PATH, or where such programs are when PATH is a user's. ENOENT if it is not installed;
    /// ENOSYS unless implemented.
    fn find_program(&self, program: &str) -> Result<PathBuf, Errno> {
        let _ = program;
        Err(Errno::ENOSYS)
    }

    /// Runs a program to its end, in the C locale and without input. ENOENT if it is not installed; ENOSYS unless
    /// implemented.
    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        let _ = (program, arguments);
        Err(Errno::ENOSYS)
    }

    /// Its files and directories.
    fn files(&self) -> &dyn Files;
}

/// The index of a loop device's name, `loop7`.
pub(crate) fn loop_index(name: &OsStr) -> Option<u32> {
    std::str::from_utf8(name.as_bytes().strip_prefix(b"loop")?).ok()?.parse().ok()
}
