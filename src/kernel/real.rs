//! The real kernel: each call passed on unchanged.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fchmod, mknod, stat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Gid, Uid, fchown, fdatasync};

use super::error::errno;
use super::{
    Access, Arg, DeviceFile, DeviceNumber, FileLock, Files, Kernel, ProcessInfo, Semaphore, proc, program,
    semaphore,
};
use crate::abi::Ioctl;
use crate::abi::mount::{MountFlags, UnmountFlags};

/// The kernel that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealKernel;

impl Kernel for RealKernel {
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        // O_NONBLOCK: something else than a device, such as a FIFO, must not hang the caller.
        let mut flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        flags |= if access.is_write() { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        flags.set(OFlag::O_DIRECT, access.is_direct());
        flags.set(OFlag::O_EXCL, access.is_exclusive());
        DeviceFile::real(open(path, flags, Mode::empty())?)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        file.device()?.ioctl(request, argument)
    }

    fn poll(&self, file: &DeviceFile, timeout: Option<Duration>) -> Result<bool, Errno> {
        // Rounded up: what is left of a millisecond is not to be spun away.
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            let whole = timeout.saturating_add(Duration::from_nanos(999_999)).as_millis();
            PollTimeout::try_from(whole).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
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

    fn set_node_owner(&self, file: &DeviceFile, user: u32, group: u32) -> Result<(), Errno> {
        fchown(file.device()?, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
    }

    fn set_node_mode(&self, file: &DeviceFile, mode: u32) -> Result<(), Errno> {
        fchmod(file.device()?, Mode::from_bits(mode).ok_or(Errno::EINVAL)?)
    }

    fn lock_device(&self, file: &DeviceFile) -> Result<FileLock, Errno> {
        // All of its nodes have this directory in common.
        FileLock::wait(File::open(format!("/sys/dev/block/{}", file.number())).map_err(errno)?)
    }

    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        names_in("/sys/class/block")
    }

    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        read_attribute(&format!("/sys/class/block/{device}/{attribute}"))
    }

    fn kernel_attribute(&self, attribute: &str) -> Result<Vec<u8>, Errno> {
        read_attribute(&format!("/sys/kernel/{attribute}"))
    }

    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno> {
        names_in("/dev/mapper")
    }

    fn udev_runs(&self) -> bool {
        Path::new("/run/udev/control").exists()
    }

    fn create_semaphore(&self, key: u32) -> Result<Semaphore, Errno> {
        semaphore::create(key)
    }

    fn is_semaphore_zero(&self, semaphore: Semaphore) -> Result<bool, Errno> {
        semaphore::is_zero(semaphore)
    }

    fn remove_semaphore(&self, semaphore: Semaphore) -> Result<(), Errno> {
        semaphore.remove()
    }

    fn abandoned_semaphores(&self, key: u16) -> Result<Vec<Semaphore>, Errno> {
        semaphore::abandoned(key)
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

    fn set_filesystem_attribute(
        &self,
        filesystem: &str,
        device: DeviceNumber,
        attribute: &str,
        value: &str,
    ) -> Result<(), Errno> {
        let node = self.device_node(device)?;
        let device = node.file_name().ok_or(Errno::ENOENT)?;
        let path = Path::new("/sys/fs").join(filesystem).join(device).join(attribute);
        // Not created where it is not an attribute.
        let file = File::options().write(true).open(path).map_err(errno)?;
        nix::unistd::write(&file, value.as_bytes()).map(drop)
    }

    fn process_ids(&self) -> Result<Vec<u32>, Errno> {
        proc::ids()
    }

    fn process_info(&self, pid: u32) -> Result<ProcessInfo, Errno> {
        proc::info(pid)
    }

    fn proc_text(&self, path: &str) -> Result<Vec<u8>, Errno> {
        std::fs::read(Path::new("/proc").join(path)).map_err(errno)
    }

    fn device_holders(&self, number: DeviceNumber) -> Result<Vec<OsString>, Errno> {
        names_in(&format!("/sys/dev/block/{number}/holders"))
    }

    fn find_program(&self, program: &str) -> Result<PathBuf, Errno> {
        program::find(program)
    }

    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        program::run(program, arguments)
    }

    fn files(&self) -> &dyn Files {
        self
    }
}

fn offset_of(offset: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// The text of an attribute in sysfs, without the newline at its end.
fn read_attribute(path: &str) -> Result<Vec<u8>, Errno> {
    // The kernel gives all of it to one read. None that is asked for is nearly that long.
    let mut page = [0; 4096];
    let length = File::open(path).and_then(|mut file| file.read(&mut page)).map_err(errno)?;
    let text = &page[..length];
    Ok(text.strip_suffix(b"\n").unwrap_or(text).to_vec())
}

fn names_in(directory: &str) -> Result<Vec<OsString>, Errno> {
    let entries = std::fs::read_dir(directory).map_err(errno)?;
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(errno)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::abi::DeviceKind;

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
