//! Requests to bytes and bytes to answers. Pure: no I/O, and nothing from the kernel is trusted.

pub(super) mod request;
mod response;

use crate::abi::Ioctl;
use crate::abi::dm;

pub use request::{EncodeError, Geometry, Payload, Request};
pub use response::{DeviceStatus, EventNr, ListedDevice, Response, TargetVersion};

/// A command of the control device, with the interface minor that first had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Command {
    /// The ioctl.
    pub ioctl: Ioctl,
    /// The lowest minor version of the interface that understands it.
    pub minor: u32,
}

impl Command {
    /// Whether it only asks, so that it can be sent again with a larger buffer, and its answer has
    /// no fixed size.
    pub fn is_query(self) -> bool {
        const QUERIES: [Command; 6] = [
            Command::LIST_DEVICES,
            Command::DEV_WAIT,
            Command::TABLE_DEPS,
            Command::TABLE_STATUS,
            Command::LIST_VERSIONS,
            Command::GET_TARGET_VERSION,
        ];
        QUERIES.contains(&self)
    }
}

macro_rules! commands {
    ($($name:ident = $ioctl:ident since $minor:literal;)*) => {
        impl Command {
            $(
                #[doc = concat!("[`", stringify!($ioctl), "`](dm::", stringify!($ioctl), ")")]
                pub const $name: Self = Self { ioctl: dm::$ioctl, minor: $minor };
            )*
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

commands! {
    VERSION = DM_VERSION since 0;
    REMOVE_ALL = DM_REMOVE_ALL since 0;
    LIST_DEVICES = DM_LIST_DEVICES since 0;
    DEV_CREATE = DM_DEV_CREATE since 0;
    DEV_REMOVE = DM_DEV_REMOVE since 0;
    DEV_RENAME = DM_DEV_RENAME since 0;
    DEV_SUSPEND = DM_DEV_SUSPEND since 0;
    DEV_STATUS = DM_DEV_STATUS since 0;
    DEV_WAIT = DM_DEV_WAIT since 0;
    TABLE_LOAD = DM_TABLE_LOAD since 0;
    TABLE_CLEAR = DM_TABLE_CLEAR since 0;
    TABLE_DEPS = DM_TABLE_DEPS since 0;
    TABLE_STATUS = DM_TABLE_STATUS since 0;
    LIST_VERSIONS = DM_LIST_VERSIONS since 1;
    TARGET_MSG = DM_TARGET_MSG since 2;
    DEV_SET_GEOMETRY = DM_DEV_SET_GEOMETRY since 6;
    DEV_ARM_POLL = DM_DEV_ARM_POLL since 37;
    GET_TARGET_VERSION = DM_GET_TARGET_VERSION since 41;
}

#[cfg(test)]
mod tests;
