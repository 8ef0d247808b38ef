//! `<linux/mount.h>`: flags of `mount(2)` and `umount2(2)`.

use bitflags::bitflags;

bitflags! {
    /// `MS_*`: flags of `mount(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct MountFlags: u32 {
        /// Read-only.
        #[doc(alias = "MS_RDONLY")]
        const RDONLY = 1;
        /// Set-user-id bits have no effect.
        #[doc(alias = "MS_NOSUID")]
        const NOSUID = 1 << 1;
        /// Device nodes cannot be opened.
        #[doc(alias = "MS_NODEV")]
        const NODEV = 1 << 2;
        /// Nothing can be executed.
        #[doc(alias = "MS_NOEXEC")]
        const NOEXEC = 1 << 3;
        /// Writes are synchronous.
        #[doc(alias = "MS_SYNCHRONOUS")]
        const SYNCHRONOUS = 1 << 4;
        /// Directory changes are synchronous.
        #[doc(alias = "MS_DIRSYNC")]
        const DIRSYNC = 1 << 7;
        /// Access times are not kept.
        #[doc(alias = "MS_NOATIME")]
        const NOATIME = 1 << 10;
        /// Access times of directories are not kept.
        #[doc(alias = "MS_NODIRATIME")]
        const NODIRATIME = 1 << 11;
        /// Mounts below do not propagate in either direction.
        #[doc(alias = "MS_PRIVATE")]
        const PRIVATE = 1 << 18;
        /// Mounts below propagate into it, and not back.
        #[doc(alias = "MS_SLAVE")]
        const SLAVE = 1 << 19;
        /// Mounts below propagate in both directions.
        #[doc(alias = "MS_SHARED")]
        const SHARED = 1 << 20;
        /// Access times are kept relative to modification.
        #[doc(alias = "MS_RELATIME")]
        const RELATIME = 1 << 21;
        /// Access times are always kept.
        #[doc(alias = "MS_STRICTATIME")]
        const STRICTATIME = 1 << 24;
        /// Time stamps are written lazily.
        #[doc(alias = "MS_LAZYTIME")]
        const LAZYTIME = 1 << 25;
    }
}

impl MountFlags {
    /// Those of the propagation: `mount(2)` takes one of them in a call of its own, of what is mounted already.
    pub const PROPAGATION: Self = Self::PRIVATE.union(Self::SLAVE).union(Self::SHARED);
}

bitflags! {
    /// `MNT_*`, `UMOUNT_*`: flags of `umount2(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct UnmountFlags: u32 {
        /// Take it out of the tree now, clean up when it is no longer busy.
        #[doc(alias = "MNT_DETACH")]
        const DETACH = 1 << 1;
        /// Do not follow a symbolic link.
        #[doc(alias = "UMOUNT_NOFOLLOW")]
        const NOFOLLOW = 1 << 3;
    }
}
