//! Device numbers of the model.

use crate::kernel::DeviceNumber;

pub(super) const DM_MAJOR: u32 = 253;
pub(super) const LOOP_MAJOR: u32 = 7;
pub(super) const MAPPER_CONTROL: DeviceNumber = DeviceNumber { major: 10, minor: 236 };
pub(super) const LOOP_CONTROL: DeviceNumber = DeviceNumber { major: 10, minor: 237 };

pub(super) const fn dm_number(minor: u32) -> DeviceNumber {
    DeviceNumber { major: DM_MAJOR, minor }
}

pub(super) const fn loop_number(minor: u32) -> DeviceNumber {
    DeviceNumber { major: LOOP_MAJOR, minor }
}
