//! The seam between this crate and the kernel: requests go through as bytes.
//!
//! Everything above is the same whether a [`RealKernel`] or a model answers. What crosses the seam is
//! what the kernel itself would see: an open device, a request code and a buffer.

mod directory;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknod, stat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{UnlinkatFlags, fdatasync, unlinkat};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::Ioctl;
use crate::abi::mount::{MountFlags, UnmountFlags};

pub use self::directory::{Directory, MountId};

/// A block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// The number in the kernel's "huge" encoding, as `dm_ioctl.dev` and `loop_info64.lo_device` hold it.
    pub const fn to_huge(self) -> u64 {
        let (major, minor) = (self.major as u64, self.minor as u64);
        (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
    }

    /// The number from the kernel's "huge" encoding.
    #[allow(clippy::cast_possible_truncation)] // masked to 12 and 20 bits
    pub const fn from_huge(dev: u64) -> Self {
        Self { major: (dev >> 8 & 0xfff) as u32, minor: (dev & 0xff | dev >> 12 & 0xfff00) as u32 }
    }

    #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)] // kernel: 12 and 20 bits
    pub(crate) fn from_dev_t(dev: libc::dev_t) -> Self {
        use nix::sys::stat::{major, minor};
        Self { major: major(dev) as u32, minor: minor(dev) as u32 }
    }

    fn to_dev_t(self) -> libc::dev_t {
        #[allow(clippy::useless_conversion)] // the parameter types differ between C libraries
        nix::sys::stat::makedev(self.major.into(), self.minor.into())
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DeviceNumber {
    type Err = crate::Error;

    /// `major:minor`, as the kernel writes it in tables.
    fn from_str(text: &str) -> crate::Result<Self> {
        let number = text
            .split_once(':')
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }));
        let fits = number.filter(|number| Self::from_huge(number.to_huge()) == *number);
        fits.ok_or_else(|| crate::Error::Malformed { what: "device number", raw: text.to_owned() })
    }
}

/// The kinds of device that this crate talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// `/dev/mapper/control`.
    MapperControl,
    /// `/dev/loop-control`.
    LoopControl,
    /// A loop device, which is a block device too.
    Loop,
    /// Any other block device.
    Block,
}

// <linux/major.h>, <linux/miscdevice.h>
const MISC_MAJOR: u32 = 10;
const MAPPER_CTRL_MINOR: u32 = 236;
const LOOP_CTRL_MINOR: u32 = 237;
const LOOP_MAJOR: u32 = 7;

/// An open device of a known kind.
#[derive(Debug)]
pub struct DeviceFile {
    fd: OwnedFd,
    kind: DeviceKind,
    number: DeviceNumber,
    real: bool,
}

impl DeviceFile {
    /// Settles by fstat what was opened; ENOTBLK if it is nothing for this crate.
    fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&fd)?;
        let number = DeviceNumber::from_dev_t(stat.st_rdev);
        let format = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let kind = match (format, number) {
            (SFlag::S_IFCHR, DeviceNumber { major: MISC_MAJOR, minor: MAPPER_CTRL_MINOR }) => {
                DeviceKind::MapperControl
            }
            (SFlag::S_IFCHR, DeviceNumber { major: MISC_MAJOR, minor: LOOP_CTRL_MINOR }) => {
                DeviceKind::LoopControl
            }
            (SFlag::S_IFBLK, DeviceNumber { major: LOOP_MAJOR, .. }) => DeviceKind::Loop,
            (SFlag::S_IFBLK, _) => DeviceKind::Block,
            _ => return Err(Errno::ENOTBLK),
        };
        Ok(Self { fd, kind, number, real: true })
    }

    /// A device of a kernel that is not real: [`RealKernel`] refuses it.
    pub fn simulated(fd: OwnedFd, kind: DeviceKind, number: DeviceNumber) -> Self {
        Self { fd, kind, number, real: false }
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Whether the running kernel opened it.
    pub(crate) fn is_real(&self) -> bool {
        self.real
    }

    pub(crate) fn answers(&self, request: Ioctl) -> bool {
        let loop_as_block = self.kind == DeviceKind::Loop && request.device() == DeviceKind::Block;
        self.real && (self.kind == request.device() || loop_as_block)
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for DeviceFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// An ioctl's third argument.
#[derive(Debug)]
pub enum Arg<'a> {
    /// An integer.
    Value(i32),
    /// A file descriptor.
    Fd(BorrowedFd<'a>),
    /// Bytes that the kernel reads, writes or both.
    Bytes(&'a mut [u8]),
}

/// How a device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    write: bool,
    direct: bool,
    exclusive: bool,
}

impl Access {
    /// O_RDONLY.
    pub const READ: Self = Self { write: false, direct: false, exclusive: false };
    /// O_RDWR.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };

    /// Also O_DIRECT: reads and writes pass by the page cache. Offsets, lengths and buffers are whole
    /// [`AlignedBlock`]s.
    #[must_use]
    pub const fn direct(self) -> Self {
        Self { direct: true, ..self }
    }

    /// Also O_EXCL: claims the block device, EBUSY if a table, a mount or another exclusive opener has it.
    #[must_use]
    pub const fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }

    /// Whether it is opened for writing.
    pub const fn is_write(self) -> bool {
        self.write
    }

    /// Whether it is opened with O_DIRECT.
    pub const fn is_direct(self) -> bool {
        self.direct
    }

    /// Whether it is opened with O_EXCL.
    pub const fn is_exclusive(self) -> bool {
        self.exclusive
    }
}

/// A buffer that O_DIRECT accepts: 4 KiB, aligned to 4 KiB.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct AlignedBlock(pub [u8; 4096]);

impl AlignedBlock {
    /// `count` blocks of zeroes.
    pub fn zeroed(count: usize) -> Vec<Self> {
        vec![Self([0; 4096]); count]
    }
}

impl fmt::Debug for AlignedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AlignedBlock")
    }
}

/// What this crate asks of the operating system below it.
///
/// [`RealKernel`] passes each call on unchanged. Another implementation can count calls, make them
/// fail, or answer them itself. Errors are bare errnos, as the kernel gives them; the callers add what
/// was done to which device.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Open a device node.
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno>;

    /// `ioctl(2)` on an open device; the result is its non-negative return value.
    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno>;

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

    /// The names in `/sys/block`, in no particular order.
    fn block_device_names(&self) -> Result<Vec<OsString>, Errno>;

    /// A text below `/sys/block/<device>`, such as `dm/uuid`, without the newline at its end. ENOSYS unless
    /// implemented: whoever asks has another way to know.
    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        let _ = (device, attribute);
        Err(Errno::ENOSYS)
    }

    /// The names in `/dev/mapper`, in no particular order.
    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno>;

    /// Whether udevd runs, so that somebody else makes device nodes: `/run/udev/control` is there.
    fn udev_runs(&self) -> bool;

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

    /// Opens a directory as a place for mounts: see [`Directory::open`]. ENOSYS unless implemented.
    fn open_directory(&self, path: &Path) -> Result<Directory, Errno> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// Opens the directory `name` in another one: see [`Directory::enter`]. ENOSYS unless implemented.
    fn enter_directory(&self, above: &Directory, name: &OsStr) -> Result<Directory, Errno> {
        let _ = (above, name);
        Err(Errno::ENOSYS)
    }

    /// Writes an attribute, a file below `/sys`. ENOSYS unless implemented.
    fn write_attribute(&self, path: &Path, value: &str) -> Result<(), Errno> {
        let _ = (path, value);
        Err(Errno::ENOSYS)
    }

    /// `mkdirat(2)` with mode 0755. ENOSYS unless implemented.
    fn make_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        let _ = (above, name);
        Err(Errno::ENOSYS)
    }

    /// `unlinkat(2)` with AT_REMOVEDIR. ENOSYS unless implemented.
    fn remove_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        let _ = (above, name);
        Err(Errno::ENOSYS)
    }

    /// Runs a program to its end, in the C locale and without input. ENOENT if it is not installed; ENOSYS unless
    /// implemented.
    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        let _ = (program, arguments);
        Err(Errno::ENOSYS)
    }
}

/// The kernel that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealKernel;

impl Kernel for RealKernel {
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        // O_NONBLOCK: something else than a device, such as a FIFO, must not hang the caller.
        let mut flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        flags |= if access.write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        flags.set(OFlag::O_DIRECT, access.direct);
        flags.set(OFlag::O_EXCL, access.exclusive);
        DeviceFile::new(open(path, flags, Mode::empty())?)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        crate::sys::ioctl(file, request, argument)
    }

    fn read_at(&self, file: &DeviceFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        pread(file, buffer, offset_of(offset)?)
    }

    fn write_at(&self, file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        pwrite(file, bytes, offset_of(offset)?)
    }

    fn sync(&self, file: &DeviceFile) -> Result<(), Errno> {
        fdatasync(file)
    }

    fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        let stat = stat(path)?;
        if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFBLK {
            return Err(Errno::ENOTBLK);
        }
        Ok(DeviceNumber::from_dev_t(stat.st_rdev))
    }

    fn device_node(&self, number: DeviceNumber) -> Result<PathBuf, Errno> {
        let link = std::fs::read_link(format!("/sys/dev/block/{number}")).map_err(errno)?;
        Ok(Path::new("/dev").join(link.file_name().ok_or(Errno::ENOENT)?))
    }

    fn make_node(&self, path: &Path, number: DeviceNumber) -> Result<(), Errno> {
        mknod(path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number.to_dev_t())
    }

    fn remove_node(&self, path: &Path) -> Result<(), Errno> {
        nix::unistd::unlink(path)
    }

    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        names_in("/sys/block")
    }

    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        let mut text = std::fs::read(format!("/sys/block/{device}/{attribute}")).map_err(errno)?;
        text.pop_if(|last| *last == b'\n');
        Ok(text)
    }

    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno> {
        names_in("/dev/mapper")
    }

    fn udev_runs(&self) -> bool {
        Path::new("/run/udev/control").exists()
    }

    fn mount(
        &self,
        source: Option<&Path>,
        target: &Path,
        filesystem: Option<&str>,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Errno> {
        let flags = MsFlags::from_bits_retain(libc::c_ulong::from(flags.bits()));
        nix::mount::mount(source, target, filesystem, flags, Some(options).filter(|text| !text.is_empty()))
    }

    fn unmount(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        nix::mount::umount2(target, MntFlags::from_bits_retain(flags.bits().cast_signed()))
    }

    fn mount_table(&self) -> Result<Vec<u8>, Errno> {
        std::fs::read("/proc/self/mountinfo").map_err(errno)
    }

    fn open_directory(&self, path: &Path) -> Result<Directory, Errno> {
        Directory::open(path)
    }

    fn enter_directory(&self, above: &Directory, name: &OsStr) -> Result<Directory, Errno> {
        above.enter(name)
    }

    fn write_attribute(&self, path: &Path, value: &str) -> Result<(), Errno> {
        // Not created where it is not an attribute.
        let file = std::fs::File::options().write(true).open(path).map_err(errno)?;
        nix::unistd::write(&file, value.as_bytes()).map(drop)
    }

    fn make_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        mkdirat(above, name, Mode::from_bits_truncate(0o755))
    }

    fn remove_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        unlinkat(above, name, UnlinkatFlags::RemoveDir)
    }

    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        let path = crate::thin::tools::in_path(program).ok_or(Errno::ENOENT)?;
        let mut command = Command::new(path);
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(errno)
    }
}

fn offset_of(offset: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)
}

fn names_in(directory: &str) -> Result<Vec<OsString>, Errno> {
    let entries = std::fs::read_dir(directory).map_err(errno)?;
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(errno)).collect()
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The index of a loop device's name, `loop7`.
pub(crate) fn loop_index(name: &std::ffi::OsStr) -> Option<u32> {
    std::str::from_utf8(name.as_bytes().strip_prefix(b"loop")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn huge_encoding_round_trips(major in 0u32..1 << 12, minor in 0u32..1 << 20) {
            let number = DeviceNumber { major, minor };
            prop_assert_eq!(DeviceNumber::from_huge(number.to_huge()), number);
            prop_assert_eq!(number.to_string().parse::<DeviceNumber>().unwrap(), number);
        }
    }

    #[test]
    fn huge_encoding_is_the_kernels() {
        assert_eq!(DeviceNumber { major: 253, minor: 0x1234 }.to_huge(), 0x0120_fd34);
    }

    #[test]
    fn something_else_than_a_device_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(RealKernel.open(file.path(), Access::READ).unwrap_err(), Errno::ENOTBLK);
        assert_eq!(RealKernel.block_device(Path::new("/dev/null")).unwrap_err(), Errno::ENOTBLK);
    }

    #[test]
    fn the_real_kernel_refuses_a_simulated_device() {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let number = DeviceNumber { major: 10, minor: 236 };
        let file = DeviceFile::simulated(fd, DeviceKind::MapperControl, number);
        let mut buffer = [0; 312];
        let result = RealKernel.ioctl(&file, crate::abi::dm::DM_VERSION, Arg::Bytes(&mut buffer));
        assert_eq!(result, Err(Errno::ENOTTY));
    }
}
