//! One mount.

use std::path::PathBuf;

use crate::abi::mount::MountFlags;
use crate::kernel::{DeviceNumber, ProcessName};

pub(super) const ROOT_DEVICE: DeviceNumber = DeviceNumber { major: 8, minor: 1 };

/// A mount of a block device, or the root of everything.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) id: u32,
    /// None for the root, which is no device of the model.
    pub(super) number: Option<DeviceNumber>,
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) filesystem: String,
    pub(super) flags: MountFlags,
    pub(super) options: String,
    /// A process that works below it.
    pub(super) user: Option<ProcessName>,
}

impl Mount {
    pub(super) fn root() -> Self {
        Self {
            id: 1,
            number: None,
            source: "/dev/root".into(),
            target: "/".into(),
            filesystem: "ext4".into(),
            flags: MountFlags::empty(),
            options: String::new(),
            user: Some(ProcessName { pid: 1, command: "init".to_owned() }),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id.into()
    }

    pub(super) fn flags(&self) -> MountFlags {
        self.flags
    }
}
