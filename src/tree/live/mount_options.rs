//! How one snapshot is mounted.

use std::path::PathBuf;

use crate::abi::mount::MountFlags;

/// How one snapshot is mounted, beside what [`Options`](crate::tree::Options) say for all mounts of the tree.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MountOptions {
    pub(in crate::tree) flags: MountFlags,
    pub(in crate::tree) data: String,
}

impl MountOptions {
    /// As the tree's options say.
    pub fn new() -> Self {
        Self::default()
    }

    /// Read-only (`MS_RDONLY`): nothing is written to the snapshot's files, and no init layer is applied. The device stays
    /// writable unless the snapshot is sealed.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.flags.set(MountFlags::RDONLY, read_only);
        self
    }

    /// Flags of mount(2), in addition; one of [`MountFlags::PROPAGATION`] is set in a second call, when it is mounted.
    #[must_use]
    pub fn flags(mut self, flags: MountFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// Options for the file system, as in `mount -o`, but without those that are flags: `discard`, say.
    #[must_use]
    pub fn options(mut self, options: impl Into<String>) -> Self {
        self.data = options.into();
        self
    }
}

/// The arguments of a mount(2) that mounts a snapshot: for programs that do it themselves, in a mount namespace of their
/// own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountCall {
    /// The snapshot's device.
    pub source: PathBuf,
    /// The kernel's name of the file system.
    pub filesystem: &'static str,
    /// Flags. One of [`MountFlags::PROPAGATION`] is for a second call, without source.
    pub flags: MountFlags,
    /// Options for the file system.
    pub options: String,
}
