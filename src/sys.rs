//! The only `unsafe` of the crate: raw system calls that no safe wrapper covers.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, major, minor};
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::dm::dm_ioctl;
use crate::abi::{Argument, DeviceKind, Ioctl};

/// An ioctl's third argument.
///
/// Complete: no variant will be added.
#[derive(Debug)]
pub enum Arg<'a> {
    /// An integer.
    Value(i32),
    /// A file descriptor.
    Fd(BorrowedFd<'a>),
    /// Bytes that the kernel reads, writes or both.
    Bytes(&'a mut [u8]),
}

// <linux/major.h>, <linux/miscdevice.h>
const MISC_MAJOR: u64 = 10;
const MAPPER_CTRL_MINOR: u64 = 236;
const LOOP_CTRL_MINOR: u64 = 237;
const LOOP_MAJOR: u64 = 7;

/// An open device, and its kind, from fstat when it was opened.
#[derive(Debug)]
pub(crate) struct Device {
    fd: OwnedFd,
    kind: DeviceKind,
    number: libc::dev_t,
}

impl Device {
    /// ENOTBLK if what is open is nothing for this crate.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&fd)?;
        let number = stat.st_rdev;
        let format = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let kind = match (format, major(number), minor(number)) {
            (SFlag::S_IFCHR, MISC_MAJOR, MAPPER_CTRL_MINOR) => DeviceKind::MapperControl,
            (SFlag::S_IFCHR, MISC_MAJOR, LOOP_CTRL_MINOR) => DeviceKind::LoopControl,
            (SFlag::S_IFBLK, LOOP_MAJOR, _) => DeviceKind::Loop,
            (SFlag::S_IFBLK, ..) => DeviceKind::Block,
            _ => return Err(Errno::ENOTBLK),
        };
        Ok(Self { fd, kind, number })
    }

    pub(crate) fn kind(&self) -> DeviceKind {
        self.kind
    }

    pub(crate) fn number(&self) -> libc::dev_t {
        self.number
    }

    /// `ioctl(2)`. The result is the call's non-negative return value.
    ///
    /// A request sent to the wrong kind of device, or with an argument of the wrong shape or size, is
    /// refused without asking the kernel: ENOTTY or EINVAL, as the kernel itself would say.
    pub(crate) fn ioctl(&self, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        let loop_as_block = self.kind == DeviceKind::Loop && request.device() == DeviceKind::Block;
        if self.kind != request.device() && !loop_as_block {
            return Err(Errno::ENOTTY);
        }
        match (request.argument(), argument) {
            (Argument::Value, Arg::Value(value)) => by_value(&self.fd, request, value),
            (Argument::Fd, Arg::Fd(fd)) => by_value(&self.fd, request, fd.as_raw_fd()),
            (Argument::Bytes(size), Arg::Bytes(bytes)) if bytes.len() == size => {
                by_pointer(self.as_fd(), request.code(), bytes)
            }
            (Argument::DmIoctl, Arg::Bytes(bytes)) => {
                let (header, _) = dm_ioctl::ref_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
                if header.data_size as usize > bytes.len() {
                    return Err(Errno::EINVAL);
                }
                by_pointer(self.as_fd(), request.code(), bytes)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// Casts to `libc::Ioctl` because glibc and musl type the request differently.
fn by_value(fd: &OwnedFd, request: Ioctl, value: i32) -> Result<u32, Errno> {
    #[allow(clippy::disallowed_methods)]
    // SAFETY: `fd` is open and of the kind that `request` is for (compared by `Device::ioctl`, settled by
    // fstat when it was opened), and `request`, a constant of `abi`, takes an integer: the kernel does
    // not read it as an address. SET_FD and CHANGE_FD take a reference of their own to the file.
    let result =
        unsafe { libc::ioctl(fd.as_raw_fd(), request.code() as libc::Ioctl, libc::c_long::from(value)) };
    Errno::result(result).map(i32::unsigned_abs)
}

fn by_pointer(fd: BorrowedFd<'_>, code: u32, bytes: &mut [u8]) -> Result<u32, Errno> {
    #[allow(clippy::disallowed_methods)]
    // SAFETY: `bytes` is exclusively borrowed for the call, and the kernel touches no byte outside of
    // it: for `Argument::Bytes` the caller checked its length against the size that the request's
    // driver copies; for `Argument::DmIoctl` the driver reads the 312-byte header, copies `data_size`
    // bytes in and at most as many out, and the caller checked both against the length. The kernel
    // copies bytewise, so no alignment is needed. That the file's driver is the one meant was settled
    // by fstat when the file was opened, and compared by `Device::ioctl`. For FITRIM `trim` passes the three words that the
    // kernel copies, and a directory, whose file system it asks.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), code as libc::Ioctl, bytes.as_mut_ptr()) };
    Errno::result(result).map(i32::unsigned_abs)
}

/// `FITRIM` of `<linux/fs.h>`: `_IOWR('X', 121, struct fstrim_range)`.
const FITRIM: u32 = 0xc018_5879;

/// `FITRIM` on a directory of the file system: discards what is free; the number of bytes.
pub(crate) fn trim(directory: BorrowedFd<'_>) -> Result<u64, Errno> {
    // struct fstrim_range: start, len, minlen.
    let mut range = [0_u64, u64::MAX, 0];
    by_pointer(directory, FITRIM, range.as_mut_bytes())?;
    Ok(range[1])
}

// <linux/stat.h>
const STATX_TYPE: u32 = 0x1;
const STATX_INO: u32 = 0x100;
const STATX_MNT_ID: u32 = 0x1000;
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
/// `struct statx` has 256 bytes; stx_mask is at 0, stx_mode at 28, stx_ino at 32, stx_rdev_major and _minor at 128,
/// stx_dev_major and _minor at 136, stx_mnt_id at 144.
const STATX_WORDS: usize = 32;

/// `statx(2)` of an open file (since 4.11); `None` if the answer lacks what `mask` asks for.
fn statx(fd: BorrowedFd<'_>, flags: libc::c_int, mask: u32) -> Option<[u64; STATX_WORDS]> {
    let mut answer = [0u64; STATX_WORDS];
    #[allow(clippy::disallowed_methods)]
    // SAFETY: the path is a NUL-terminated constant, and the kernel writes `struct statx`, 256 bytes, into
    // `answer`, which is that large, aligned to 8, and lives until after the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            mask,
            answer.as_mut_ptr(),
        )
    };
    let [a, b, c, d, ..] = answer[0].to_ne_bytes();
    (result == 0 && u32::from_ne_bytes([a, b, c, d]) & mask == mask).then_some(answer)
}

/// The plain id of an open file's mount (since 5.8), and the unique one (since 6.8).
pub(crate) fn mount_ids(fd: BorrowedFd<'_>) -> (Option<u64>, Option<u64>) {
    let ask = |mask: u32| statx(fd, 0, mask).map(|answer| answer[18]);
    (ask(STATX_MNT_ID), ask(STATX_MNT_ID_UNIQUE))
}

/// What the kernel knows of an open file without asking its file system; device numbers are major and minor.
pub(crate) struct CachedStat {
    pub(crate) mode: libc::mode_t,
    pub(crate) inode: u64,
    /// The device that it is.
    pub(crate) device: (u32, u32),
    /// The device that it is on.
    pub(crate) filesystem: (u32, u32),
}

/// `statx(2)` with AT_STATX_DONT_SYNC.
pub(crate) fn cached_stat(fd: BorrowedFd<'_>) -> Option<CachedStat> {
    const AT_STATX_DONT_SYNC: libc::c_int = 0x4000;
    let answer = statx(fd, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO)?;
    let [.., a, b, _, _] = answer[3].to_ne_bytes();
    let pair = |word: u64| {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
    };
    let mode = u16::from_ne_bytes([a, b]).into();
    Some(CachedStat { mode, inode: answer[4], device: pair(answer[16]), filesystem: pair(answer[17]) })
}

/// A System V semaphore set, as udev's completion protocol uses it: the first one counts, the second one keeps the
/// process that made the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Semaphore(i32);

impl Semaphore {
    /// The set with this identifier, whoever made it.
    pub fn of_id(id: i32) -> Self {
        Self(id)
    }

    /// Semaphores in a set.
    pub(crate) const COUNT: u16 = 2;
    /// The bits for execution mean nothing to the kernel, and distinguish sets of this crate from those of others.
    pub(crate) const MODE: u16 = 0o700;

    /// `semget(2)` with IPC_CREAT | IPC_EXCL: EEXIST if the key is taken.
    pub(crate) fn create(key: u32) -> Result<Self, Errno> {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | libc::c_int::from(Self::MODE);
        // SAFETY: takes and returns integers only.
        let id = unsafe { libc::semget(key.cast_signed(), Self::COUNT.into(), flags) };
        Errno::result(id).map(Self)
    }

    /// `semop(2)` without waiting: add `delta` to the value of the first one, or, with 0, ask whether it is 0 (EAGAIN
    /// if not).
    pub(crate) fn change(self, delta: i16) -> Result<(), Errno> {
        self.operate(0, delta)
    }

    /// `semop(2)` on the second one, so that [`marker`](Self::marker) returns this process.
    pub(crate) fn mark(self) -> Result<(), Errno> {
        self.operate(1, 1)
    }

    /// `semctl(GETPID)` of the second one: the process that marked it. 0 if none did, or it is not visible from here.
    pub(crate) fn marker(self) -> Result<u32, Errno> {
        // SAFETY: GETPID takes no further argument, and the result is an integer.
        Errno::result(unsafe { libc::semctl(self.0, 1, libc::GETPID) }).map(i32::unsigned_abs)
    }

    fn operate(self, number: u16, delta: i16) -> Result<(), Errno> {
        #[allow(clippy::cast_possible_truncation)] // 0o4000
        let mut operation = libc::sembuf { sem_num: number, sem_op: delta, sem_flg: libc::IPC_NOWAIT as i16 };
        // SAFETY: the pointer is to one live operation, which is the count given, and the kernel does
        // not keep it.
        Errno::result(unsafe { libc::semop(self.0, &raw mut operation, 1) }).map(drop)
    }

    /// `semctl(IPC_RMID)`: gone for every process.
    pub(crate) fn remove(self) -> Result<(), Errno> {
        // SAFETY: IPC_RMID ignores the semaphore number and takes no further argument.
        Errno::result(unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) }).map(drop)
    }
}

/// The file behind a number that the kernel will resolve in this process, for LOOP_CONFIGURE.
pub(crate) fn raw_fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}
