//! The kernel's UAPI, byte for byte: structures, constants and request codes.
//!
//! No I/O and no logic lives here. Names are the kernel's own, so that a reader can hold this next
//! to `<linux/dm-ioctl.h>`, `<linux/loop.h>` and `<linux/fs.h>`. Layouts are pinned by constant
//! assertions; a difference does not compile.

pub mod block;
pub mod dm;
pub mod loopdev;
pub mod mount;

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

/// What an ioctl takes as its third argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Argument {
    /// Nothing, or an integer passed by value.
    Value,
    /// An open file descriptor passed by value.
    Fd,
    /// A pointer to exactly this many bytes.
    Bytes(usize),
    /// A pointer to a `struct dm_ioctl` followed by its payload; `data_size` is the length.
    DmIoctl,
}

/// One ioctl of the kernel: its name, request code, the kind of device that understands it and the
/// shape of its argument.
///
/// Values exist only as the constants of this module, so whoever holds one knows how many bytes the
/// kernel will touch. That is what makes `Kernel::ioctl` safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ioctl {
    name: &'static str,
    code: u32,
    device: DeviceKind,
    argument: Argument,
}

impl Ioctl {
    const fn new(name: &'static str, code: u32, device: DeviceKind, argument: Argument) -> Self {
        Self { name, code, device, argument }
    }

    /// The kernel's name of the request, such as `DM_DEV_CREATE`.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The request code on this architecture.
    pub const fn code(self) -> u32 {
        self.code
    }

    /// The kind of device that answers it.
    pub const fn device(self) -> DeviceKind {
        self.device
    }

    /// The shape of the argument.
    pub const fn argument(self) -> Argument {
        self.argument
    }
}

// <asm-generic/ioctl.h>; mips, powerpc and sparc number the direction bits differently.
const OTHER_DIRECTION_BITS: bool = cfg!(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "mips32r6",
    target_arch = "mips64r6",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc",
    target_arch = "sparc64",
));
const SIZE_BITS: u32 = if OTHER_DIRECTION_BITS { 13 } else { 14 };
const NONE: u32 = if OTHER_DIRECTION_BITS { 1 } else { 0 };
const READ: u32 = 2;
const WRITE: u32 = if OTHER_DIRECTION_BITS { 4 } else { 1 };

const fn ioc(direction: u32, group: u32, number: u32, size: usize) -> u32 {
    assert!(group < 256 && number < 256 && size < 1 << SIZE_BITS);
    #[allow(clippy::cast_possible_truncation)] // asserted above
    let size = size as u32;
    direction << (16 + SIZE_BITS) | size << 16 | group << 8 | number
}

#[cfg(all(test, not(any(target_arch = "mips", target_arch = "powerpc", target_arch = "sparc64"))))]
mod tests {
    use super::*;

    #[test]
    fn request_codes_are_the_kernels() {
        assert_eq!(dm::DM_VERSION.code(), 0xc138_fd00);
        assert_eq!(dm::DM_TARGET_MSG.code(), 0xc138_fd0e);
        assert_eq!(dm::DM_GET_TARGET_VERSION.code(), 0xc138_fd11);
        assert_eq!(dm::DM_MPATH_PROBE_PATHS.code(), 0xfd12);
        assert_eq!(loopdev::LOOP_CONFIGURE.code(), 0x4c0a);
        assert_eq!(loopdev::LOOP_CTL_GET_FREE.code(), 0x4c82);
        #[cfg(target_pointer_width = "64")]
        assert_eq!(block::BLKGETSIZE64.code(), 0x8008_1272);
        assert_eq!(block::BLKSSZGET.code(), 0x1268);
    }
}
