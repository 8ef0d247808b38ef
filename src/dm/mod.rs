//! Device mapper, typed: one method of [`DeviceMapper`] for each `DM_*` command.

mod control;
#[cfg(test)]
mod fake;
mod id;
mod node;
mod table;
#[cfg(test)]
mod tests;
mod udev;
pub mod wire;

pub use control::{DeviceMapper, Removal, TableKind};
pub use id::{DmId, DmName, DmUuid, TargetType};
pub use table::{TargetLine, TargetSpec};
pub use udev::UdevPolicy;
pub use wire::{DeviceStatus, DmVersion, ListedDevice, TargetVersion};

pub use crate::abi::dm::DmFlags;
