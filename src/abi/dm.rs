//! `<linux/dm-ioctl.h>`: the device-mapper control interface, version 4.
//!
//! A request is a [`dm_ioctl`] header followed by a payload that depends on the command; the answer
//! comes back in the same buffer.

use core::mem::{align_of, offset_of, size_of};

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Argument, DeviceKind, Ioctl, NONE, READ, WRITE, ioc};

/// The directory of device nodes, below `/dev`.
pub const DM_DIR: &str = "mapper";
/// The control node, below [`DM_DIR`].
pub const DM_CONTROL_NODE: &str = "control";
/// Length of a target type's name, the terminating NUL included.
pub const DM_MAX_TYPE_NAME: usize = 16;
/// Length of a device's name, the terminating NUL included.
pub const DM_NAME_LEN: usize = 128;
/// Length of a device's uuid, the terminating NUL included.
pub const DM_UUID_LEN: usize = 129;

/// The ioctl group of device mapper.
pub const DM_IOCTL: u32 = 0xfd;
/// The interface's major version: no compatibility across it.
pub const DM_VERSION_MAJOR: u32 = 4;

/// The header of every request and every answer.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_ioctl {
    /// Interface version: what the caller speaks; the kernel writes back its own.
    pub version: [u32; 3],
    /// Bytes of the whole buffer, this structure included.
    pub data_size: u32,
    /// Where the payload begins, from the start of this structure.
    pub data_start: u32,
    /// Number of `dm_target_spec` in the payload.
    pub target_count: u32,
    /// How often the device is open.
    pub open_count: i32,
    /// `DM_*_FLAG`.
    pub flags: u32,
    /// Event number, or the udev cookie on the way in.
    pub event_nr: u32,
    /// Unused.
    pub padding: u32,
    /// Device number, huge encoding.
    pub dev: u64,
    /// NUL-terminated name.
    pub name: [u8; DM_NAME_LEN],
    /// NUL-terminated uuid.
    pub uuid: [u8; DM_UUID_LEN],
    /// Padding.
    pub data: [u8; 7],
}

/// One line of a table, followed by its NUL-terminated parameters.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_target_spec {
    /// First sector of the mapped device that the target serves.
    pub sector_start: u64,
    /// Sectors it serves.
    pub length: u64,
    /// Used when reading from the kernel only.
    pub status: i32,
    /// Offset of the next one: from this one in TABLE_LOAD, from the first one in TABLE_STATUS.
    pub next: u32,
    /// NUL-padded target type.
    pub target_type: [u8; DM_MAX_TYPE_NAME],
}

/// The head of TABLE_DEPS' answer; `count` device numbers (u64) follow.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_target_deps {
    /// How many device numbers follow.
    pub count: u32,
    /// Unused.
    pub padding: u32,
}

/// The fixed head of a record of LIST_DEVICES' answer.
///
/// In C the structure has size 16 and the name begins at 12, inside its tail padding. Here it ends
/// where the name begins.
#[repr(C, packed(4))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_name_list {
    /// Device number, huge encoding; 0 in the only record of an empty list.
    pub dev: u64,
    /// Offset of the next record from this one, 0 for the last.
    pub next: u32,
}

/// What follows a listed name, at the next multiple of eight (since 4.37; the uuid since 4.45).
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_name_list_tail {
    /// The device's event number.
    pub event_nr: u32,
    /// `DM_NAME_LIST_FLAG_*`.
    pub flags: u32,
}

/// The listed device has a uuid and it follows.
pub const DM_NAME_LIST_FLAG_HAS_UUID: u32 = 1;
/// The listed device has none.
pub const DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID: u32 = 2;

/// The fixed head of a record of LIST_VERSIONS and GET_TARGET_VERSION; the name follows.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_target_versions {
    /// Offset of the next record from this one, 0 for the last.
    pub next: u32,
    /// Major, minor, patch level of the target.
    pub version: [u32; 3],
}

/// The head of TARGET_MSG's payload; the NUL-terminated message follows.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(non_camel_case_types)]
pub struct dm_target_msg {
    /// The sector of the device whose target is meant.
    pub sector: u64,
}

const _: () = {
    assert!(size_of::<dm_ioctl>() == 312);
    assert!(offset_of!(dm_ioctl, version) == 0);
    assert!(offset_of!(dm_ioctl, data_size) == 12);
    assert!(offset_of!(dm_ioctl, data_start) == 16);
    assert!(offset_of!(dm_ioctl, target_count) == 20);
    assert!(offset_of!(dm_ioctl, open_count) == 24);
    assert!(offset_of!(dm_ioctl, flags) == 28);
    assert!(offset_of!(dm_ioctl, event_nr) == 32);
    assert!(offset_of!(dm_ioctl, padding) == 36);
    assert!(offset_of!(dm_ioctl, dev) == 40);
    assert!(offset_of!(dm_ioctl, name) == 48);
    assert!(offset_of!(dm_ioctl, uuid) == 176);
    assert!(offset_of!(dm_ioctl, data) == 305);

    assert!(size_of::<dm_target_spec>() == 40);
    assert!(offset_of!(dm_target_spec, sector_start) == 0);
    assert!(offset_of!(dm_target_spec, length) == 8);
    assert!(offset_of!(dm_target_spec, status) == 16);
    assert!(offset_of!(dm_target_spec, next) == 20);
    assert!(offset_of!(dm_target_spec, target_type) == 24);

    assert!(size_of::<dm_target_deps>() == 8 && align_of::<dm_target_deps>() == 4);
    assert!(offset_of!(dm_target_deps, count) == 0);
    assert!(offset_of!(dm_target_deps, padding) == 4);

    assert!(size_of::<dm_name_list>() == 12 && align_of::<dm_name_list>() == 4);
    assert!(offset_of!(dm_name_list, dev) == 0);
    assert!(offset_of!(dm_name_list, next) == 8);

    assert!(size_of::<dm_name_list_tail>() == 8);
    assert!(offset_of!(dm_name_list_tail, event_nr) == 0);
    assert!(offset_of!(dm_name_list_tail, flags) == 4);

    assert!(size_of::<dm_target_versions>() == 16 && align_of::<dm_target_versions>() == 4);
    assert!(offset_of!(dm_target_versions, next) == 0);
    assert!(offset_of!(dm_target_versions, version) == 4);

    assert!(size_of::<dm_target_msg>() == 8);
    assert!(offset_of!(dm_target_msg, sector) == 0);

    // u64 is 4-aligned inside structures on 32-bit x86; no offset above depends on it.
    assert!(align_of::<dm_ioctl>() == align_of::<u64>());
    assert!(align_of::<dm_target_spec>() == align_of::<u64>());
    assert!(align_of::<dm_target_msg>() == align_of::<u64>());
};

/// `dm_ioctl` without its trailing padding: the least `data_size` that the kernel takes, and what a
/// response without a payload carries.
pub const DM_IOCTL_MIN_SIZE: usize = offset_of!(dm_ioctl, data);

bitflags! {
    /// `DM_*_FLAG`: the `flags` of a request and of its answer.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct DmFlags: u32 {
        /// In, out: the table is read-only.
        #[doc(alias = "DM_READONLY_FLAG")]
        const READONLY = 1 << 0;
        /// In: suspend rather than resume. Out: the device is suspended.
        #[doc(alias = "DM_SUSPEND_FLAG")]
        const SUSPEND = 1 << 1;
        /// In: create the device with the given minor number.
        #[doc(alias = "DM_PERSISTENT_DEV_FLAG")]
        const PERSISTENT_DEV = 1 << 3;
        /// In: the table rather than the status.
        #[doc(alias = "DM_STATUS_TABLE_FLAG")]
        const STATUS_TABLE = 1 << 4;
        /// Out: a live table is there.
        #[doc(alias = "DM_ACTIVE_PRESENT_FLAG")]
        const ACTIVE_PRESENT = 1 << 5;
        /// Out: an inactive table is there.
        #[doc(alias = "DM_INACTIVE_PRESENT_FLAG")]
        const INACTIVE_PRESENT = 1 << 6;
        /// Out: the buffer was too small for the answer; a success all the same.
        #[doc(alias = "DM_BUFFER_FULL_FLAG")]
        const BUFFER_FULL = 1 << 8;
        /// In: ignored by the kernel.
        #[doc(alias = "DM_SKIP_BDGET_FLAG")]
        const SKIP_BDGET = 1 << 9;
        /// In: do not freeze a file system when suspending.
        #[doc(alias = "DM_SKIP_LOCKFS_FLAG")]
        const SKIP_LOCKFS = 1 << 10;
        /// In: suspend without flushing queued I/O; status without a commit.
        #[doc(alias = "DM_NOFLUSH_FLAG")]
        const NOFLUSH = 1 << 11;
        /// In: the question is about the inactive table.
        #[doc(alias = "DM_QUERY_INACTIVE_TABLE_FLAG")]
        const QUERY_INACTIVE_TABLE = 1 << 12;
        /// Out: a uevent was generated, for which the caller may wait.
        #[doc(alias = "DM_UEVENT_GENERATED_FLAG")]
        const UEVENT_GENERATED = 1 << 13;
        /// In: a rename sets the uuid.
        #[doc(alias = "DM_UUID_FLAG")]
        const UUID = 1 << 14;
        /// In: the kernel wipes its buffers after use.
        #[doc(alias = "DM_SECURE_DATA_FLAG")]
        const SECURE_DATA = 1 << 15;
        /// Out: a message answered with text.
        #[doc(alias = "DM_DATA_OUT_FLAG")]
        const DATA_OUT = 1 << 16;
        /// In: remove when last closed. Out: will be.
        #[doc(alias = "DM_DEFERRED_REMOVE")]
        const DEFERRED_REMOVE = 1 << 17;
        /// Out: suspended by the kernel itself.
        #[doc(alias = "DM_INTERNAL_SUSPEND_FLAG")]
        const INTERNAL_SUSPEND = 1 << 18;
        /// In: the table as IMA measures it.
        #[doc(alias = "DM_IMA_MEASUREMENT_FLAG")]
        const IMA_MEASUREMENT = 1 << 19;
        /// What a newer kernel may add is kept as it came.
        const _ = !0;
    }
}

const fn request(name: &'static str, number: u32) -> Ioctl {
    let code = ioc(READ | WRITE, DM_IOCTL, number, size_of::<dm_ioctl>());
    Ioctl::new(name, code, DeviceKind::MapperControl, Argument::DmIoctl)
}

/// The interface version of the kernel.
pub const DM_VERSION: Ioctl = request("DM_VERSION", 0);
/// Remove every device that is not open.
pub const DM_REMOVE_ALL: Ioctl = request("DM_REMOVE_ALL", 1);
/// List all devices.
pub const DM_LIST_DEVICES: Ioctl = request("DM_LIST_DEVICES", 2);
/// Create a device without a table.
pub const DM_DEV_CREATE: Ioctl = request("DM_DEV_CREATE", 3);
/// Remove a device.
pub const DM_DEV_REMOVE: Ioctl = request("DM_DEV_REMOVE", 4);
/// Change a device's name, or set its uuid.
pub const DM_DEV_RENAME: Ioctl = request("DM_DEV_RENAME", 5);
/// Suspend or resume a device.
pub const DM_DEV_SUSPEND: Ioctl = request("DM_DEV_SUSPEND", 6);
/// The state of a device.
pub const DM_DEV_STATUS: Ioctl = request("DM_DEV_STATUS", 7);
/// Wait for an event of a device.
pub const DM_DEV_WAIT: Ioctl = request("DM_DEV_WAIT", 8);
/// Load a table into the inactive slot.
pub const DM_TABLE_LOAD: Ioctl = request("DM_TABLE_LOAD", 9);
/// Drop the inactive table.
pub const DM_TABLE_CLEAR: Ioctl = request("DM_TABLE_CLEAR", 10);
/// The devices that a table uses.
pub const DM_TABLE_DEPS: Ioctl = request("DM_TABLE_DEPS", 11);
/// The status or the text of a table.
pub const DM_TABLE_STATUS: Ioctl = request("DM_TABLE_STATUS", 12);
/// The loaded target types.
pub const DM_LIST_VERSIONS: Ioctl = request("DM_LIST_VERSIONS", 13);
/// A message to a target.
pub const DM_TARGET_MSG: Ioctl = request("DM_TARGET_MSG", 14);
/// Set the geometry that HDIO_GETGEO answers.
pub const DM_DEV_SET_GEOMETRY: Ioctl = request("DM_DEV_SET_GEOMETRY", 15);
/// Arm the control file for poll.
pub const DM_DEV_ARM_POLL: Ioctl = request("DM_DEV_ARM_POLL", 16);
/// The version of one target type, whose module is loaded for it.
pub const DM_GET_TARGET_VERSION: Ioctl = request("DM_GET_TARGET_VERSION", 17);
/// Probe the paths of a multipath device; sent to the block device itself (since 4.50).
pub const DM_MPATH_PROBE_PATHS: Ioctl =
    Ioctl::new("DM_MPATH_PROBE_PATHS", ioc(NONE, DM_IOCTL, 18, 0), DeviceKind::Block, Argument::Value);
