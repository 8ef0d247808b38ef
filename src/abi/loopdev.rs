//! `<linux/loop.h>`: loop devices and `/dev/loop-control`.

use core::ffi::c_ulong;
use core::mem::{align_of, offset_of, size_of};

use bitflags::bitflags;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Argument, DeviceKind, Ioctl};

/// Bytes of a name in [`loop_info64`] and [`loop_info`], the terminating NUL included.
pub const LO_NAME_SIZE: usize = 64;
/// Bytes of the (unused) encryption key.
pub const LO_KEY_SIZE: usize = 32;

bitflags! {
    /// `LO_FLAGS_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct LoopFlags: u32 {
        /// The device is read-only.
        #[doc(alias = "LO_FLAGS_READ_ONLY")]
        const READ_ONLY = 1;
        /// The device is cleared when it is closed for the last time.
        #[doc(alias = "LO_FLAGS_AUTOCLEAR")]
        const AUTOCLEAR = 4;
        /// Partitions are scanned.
        #[doc(alias = "LO_FLAGS_PARTSCAN")]
        const PARTSCAN = 8;
        /// The page cache of the backing file is bypassed.
        #[doc(alias = "LO_FLAGS_DIRECT_IO")]
        const DIRECT_IO = 16;
        /// What a newer kernel may add is kept as it came.
        const _ = !0;
    }
}

/// `LOOP_SET_STATUS_SETTABLE_FLAGS`: flags that SET_STATUS(64) can set.
pub const LOOP_SET_STATUS_SETTABLE_FLAGS: LoopFlags = LoopFlags::AUTOCLEAR.union(LoopFlags::PARTSCAN);
/// `LOOP_SET_STATUS_CLEARABLE_FLAGS`: flags that SET_STATUS(64) can clear.
pub const LOOP_SET_STATUS_CLEARABLE_FLAGS: LoopFlags = LoopFlags::AUTOCLEAR;
/// `LOOP_CONFIGURE_SETTABLE_FLAGS`: flags that CONFIGURE can set.
pub const LOOP_CONFIGURE_SETTABLE_FLAGS: LoopFlags =
    LoopFlags::READ_ONLY.union(LoopFlags::AUTOCLEAR).union(LoopFlags::PARTSCAN).union(LoopFlags::DIRECT_IO);

/// What a loop device is bound to.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct loop_info64 {
    /// Device number of the file system that holds the backing file, huge encoding; read only.
    pub lo_device: u64,
    /// Inode of the backing file; read only.
    pub lo_inode: u64,
    /// Device number of a backing block device; read only.
    pub lo_rdevice: u64,
    /// Bytes skipped at the start of the file.
    pub lo_offset: u64,
    /// Bytes used, 0 for all.
    pub lo_sizelimit: u64,
    /// The loop device's index; read only.
    pub lo_number: u32,
    /// Obsolete.
    pub lo_encrypt_type: u32,
    /// Obsolete.
    pub lo_encrypt_key_size: u32,
    /// `LO_FLAGS_*`.
    pub lo_flags: u32,
    /// What the attaching program called the file; cut at 63 bytes.
    pub lo_file_name: [u8; LO_NAME_SIZE],
    /// Obsolete.
    pub lo_crypt_name: [u8; LO_NAME_SIZE],
    /// Obsolete.
    pub lo_encrypt_key: [u8; LO_KEY_SIZE],
    /// Obsolete.
    pub lo_init: [u64; 2],
}

/// `__kernel_old_dev_t`, of `<asm/posix_types.h>`.
#[cfg(any(
    target_arch = "x86",
    target_arch = "arm",
    target_arch = "m68k",
    target_arch = "s390x",
    target_arch = "sparc",
    target_arch = "xtensa",
))]
#[allow(non_camel_case_types)]
pub type old_dev_t = u16;
/// `__kernel_old_dev_t`, of `<asm/posix_types.h>`.
#[cfg(any(target_arch = "x86_64", target_arch = "powerpc64"))]
#[allow(non_camel_case_types)]
pub type old_dev_t = c_ulong;
/// `__kernel_old_dev_t`, of `<asm-generic/posix_types.h>`.
#[cfg(not(any(
    target_arch = "x86",
    target_arch = "arm",
    target_arch = "m68k",
    target_arch = "s390x",
    target_arch = "sparc",
    target_arch = "xtensa",
    target_arch = "x86_64",
    target_arch = "powerpc64",
)))]
#[allow(non_camel_case_types)]
pub type old_dev_t = u32;

// The padding in `loop_info` that C leaves unnamed.
const AFTER_NUMBER: usize = padding(4, align_of::<old_dev_t>());
const AFTER_DEVICE: usize = padding(4 + AFTER_NUMBER + size_of::<old_dev_t>(), align_of::<c_ulong>());
const AFTER_RDEVICE: usize = padding(size_of::<old_dev_t>(), align_of::<i32>());
// The four numbers and two texts between `lo_rdevice` and here are a multiple of every alignment.
const AFTER_KEY: usize = padding(
    4 + AFTER_NUMBER + 2 * size_of::<old_dev_t>() + AFTER_DEVICE + size_of::<c_ulong>() + AFTER_RDEVICE,
    align_of::<c_ulong>(),
);
const AFTER_RESERVED: usize = padding(4, align_of::<c_ulong>());

const fn padding(at: usize, align: usize) -> usize {
    at.next_multiple_of(align) - at
}

/// The older form of [`loop_info64`]: no size limit, and narrow numbers, whose width depends on the
/// architecture.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct loop_info {
    /// The loop device's index; read only.
    pub lo_number: i32,
    padding_0: [u8; AFTER_NUMBER],
    /// Device number of the file system that holds the backing file, huge encoding; read only.
    pub lo_device: old_dev_t,
    padding_1: [u8; AFTER_DEVICE],
    /// Inode of the backing file; read only.
    pub lo_inode: c_ulong,
    /// Device number of a backing block device; read only.
    pub lo_rdevice: old_dev_t,
    padding_2: [u8; AFTER_RDEVICE],
    /// Bytes skipped at the start of the file.
    pub lo_offset: i32,
    /// Obsolete.
    pub lo_encrypt_type: i32,
    /// Obsolete.
    pub lo_encrypt_key_size: i32,
    /// `LO_FLAGS_*`.
    pub lo_flags: i32,
    /// What the attaching program called the file; cut at 63 bytes.
    pub lo_name: [u8; LO_NAME_SIZE],
    /// Obsolete.
    pub lo_encrypt_key: [u8; LO_KEY_SIZE],
    padding_3: [u8; AFTER_KEY],
    /// Obsolete.
    pub lo_init: [c_ulong; 2],
    /// Nothing.
    pub reserved: [u8; 4],
    padding_4: [u8; AFTER_RESERVED],
}

/// Everything about an attachment, for LOOP_CONFIGURE.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct loop_config {
    /// The backing file.
    pub fd: u32,
    /// Logical block size in bytes, 0 for the default.
    pub block_size: u32,
    /// The rest.
    pub info: loop_info64,
    /// Must be zero.
    pub reserved: [u64; 8],
}

const _: () = {
    assert!(size_of::<loop_info64>() == 232);
    assert!(offset_of!(loop_info64, lo_device) == 0);
    assert!(offset_of!(loop_info64, lo_inode) == 8);
    assert!(offset_of!(loop_info64, lo_rdevice) == 16);
    assert!(offset_of!(loop_info64, lo_offset) == 24);
    assert!(offset_of!(loop_info64, lo_sizelimit) == 32);
    assert!(offset_of!(loop_info64, lo_number) == 40);
    assert!(offset_of!(loop_info64, lo_encrypt_type) == 44);
    assert!(offset_of!(loop_info64, lo_encrypt_key_size) == 48);
    assert!(offset_of!(loop_info64, lo_flags) == 52);
    assert!(offset_of!(loop_info64, lo_file_name) == 56);
    assert!(offset_of!(loop_info64, lo_crypt_name) == 120);
    assert!(offset_of!(loop_info64, lo_encrypt_key) == 184);
    assert!(offset_of!(loop_info64, lo_init) == 216);

    // x86-64: `tests/headers.rs` compares the machine's own.
    #[cfg(target_arch = "x86_64")]
    assert!(size_of::<loop_info>() == 168);
    #[cfg(target_arch = "x86")]
    assert!(size_of::<loop_info>() == 140);
    #[cfg(target_arch = "aarch64")]
    assert!(size_of::<loop_info>() == 160);

    assert!(size_of::<loop_config>() == 304);
    assert!(offset_of!(loop_config, fd) == 0);
    assert!(offset_of!(loop_config, block_size) == 4);
    assert!(offset_of!(loop_config, info) == 8);
    assert!(offset_of!(loop_config, reserved) == 240);
};

impl loop_info {
    /// All zero: the whole file from its start, no flag.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl loop_info64 {
    /// All zero: the whole file from its start, no flag.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

const fn device(name: &'static str, code: u32, argument: Argument) -> Ioctl {
    Ioctl::new(name, code, DeviceKind::Loop, argument)
}

const fn control(name: &'static str, code: u32) -> Ioctl {
    Ioctl::new(name, code, DeviceKind::LoopControl, Argument::Value)
}

/// Bind a file.
pub const LOOP_SET_FD: Ioctl = device("LOOP_SET_FD", 0x4c00, Argument::Fd);
/// Unbind; with other openers the device becomes autoclear instead.
pub const LOOP_CLR_FD: Ioctl = device("LOOP_CLR_FD", 0x4c01, Argument::Value);
/// Set offset, name and flags, and drop the limit.
pub const LOOP_SET_STATUS: Ioctl = device("LOOP_SET_STATUS", 0x4c02, Argument::Bytes(size_of::<loop_info>()));
/// Read them; EOVERFLOW if a number does not fit.
pub const LOOP_GET_STATUS: Ioctl = device("LOOP_GET_STATUS", 0x4c03, Argument::Bytes(size_of::<loop_info>()));
/// Set offset, limit, name and flags.
pub const LOOP_SET_STATUS64: Ioctl =
    device("LOOP_SET_STATUS64", 0x4c04, Argument::Bytes(size_of::<loop_info64>()));
/// Read them.
pub const LOOP_GET_STATUS64: Ioctl =
    device("LOOP_GET_STATUS64", 0x4c05, Argument::Bytes(size_of::<loop_info64>()));
/// Exchange the file under a read-only device.
pub const LOOP_CHANGE_FD: Ioctl = device("LOOP_CHANGE_FD", 0x4c06, Argument::Fd);
/// Take over the file's new size.
pub const LOOP_SET_CAPACITY: Ioctl = device("LOOP_SET_CAPACITY", 0x4c07, Argument::Value);
/// Switch direct I/O.
pub const LOOP_SET_DIRECT_IO: Ioctl = device("LOOP_SET_DIRECT_IO", 0x4c08, Argument::Value);
/// Set the logical block size.
pub const LOOP_SET_BLOCK_SIZE: Ioctl = device("LOOP_SET_BLOCK_SIZE", 0x4c09, Argument::Value);
/// Bind and set everything in one step (since 5.8).
pub const LOOP_CONFIGURE: Ioctl = device("LOOP_CONFIGURE", 0x4c0a, Argument::Bytes(size_of::<loop_config>()));

/// Make a loop device with the given index.
pub const LOOP_CTL_ADD: Ioctl = control("LOOP_CTL_ADD", 0x4c80);
/// Remove an unbound loop device.
pub const LOOP_CTL_REMOVE: Ioctl = control("LOOP_CTL_REMOVE", 0x4c81);
/// The index of a free device, made if there is none (since 3.1).
pub const LOOP_CTL_GET_FREE: Ioctl = control("LOOP_CTL_GET_FREE", 0x4c82);
