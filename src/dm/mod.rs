//! Device mapper, typed: one method of [`DeviceMapper`] for each `DM_*` command.

mod claims;
mod control;
mod devices;
mod error;
mod event;
mod exclusive;
#[cfg(test)]
mod fake;
mod id;
mod node;
#[cfg(all(test, feature = "model"))]
mod node_tests;
mod removal;
mod table;
mod tables;
pub mod targets;
#[cfg(test)]
mod tests;
mod udev;
mod version;
pub mod wire;

pub use self::error::{Error, Result};
pub(crate) use claims::{Claim, Exclusive};
pub use control::DeviceMapper;
pub use event::{DeviceEvent, DeviceEvents};
pub use id::{DmId, DmName, DmUuid, TargetType};
pub use removal::Removal;
pub use table::{TargetLine, TargetSpec};
pub use tables::TableKind;
pub use udev::UdevPolicy;
pub use version::DmVersion;
pub use wire::{DeviceStatus, EventNr, Geometry, ListedDevice, TargetVersion};

pub use crate::abi::dm::DmFlags;
