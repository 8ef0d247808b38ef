//! Waiting for udev: the completion protocol of libdevmapper, which udev's rules speak.
//!
//! A semaphore is counted up before the ioctl, its key travels through the uevent as DM_COOKIE, and
//! `dmsetup udevcomplete`, run by the rules, counts it down. Where udev does not run there is nothing
//! to wait for.
//!
//! A process that is killed leaves its semaphore in the system, of which there are few. The next process sweeps it.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bitflags::bitflags;
use nix::errno::Errno;

use super::EventNr;
use crate::kernel::{Kernel, Semaphore};
use crate::retry::Retry;

/// Whether to wait for udev when devices appear, change their name or disappear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum UdevPolicy {
    /// Never; nodes are made by this crate.
    None,
    /// If udevd runs.
    #[default]
    Auto,
    /// Always.
    Cookie,
}

bitflags! {
    /// `DM_UDEV_*_FLAG`: what udev's rules should leave out, in the upper half of the cookie.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct UdevFlags: u16 {
        const DISABLE_SUBSYSTEM_RULES = 0x02;
        const DISABLE_DISK_RULES = 0x04;
        const DISABLE_OTHER_RULES = 0x08;
        const DISABLE_LIBRARY_FALLBACK = 0x20;
        const PRIMARY_SOURCE = 0x40;
    }
}

impl UdevFlags {
    /// udev makes the node, and looks no further: the inside of a snapshot is not to be probed (every
    /// snapshot of a file system has the same UUID, and a probing process makes the device busy).
    pub(super) const NODE_ONLY: Self = Self::all();

    /// What goes into `event_nr` of a request. Without a cookie there is nothing to count down, and udev's rules know that.
    pub(super) fn event_nr(self, cookie: Option<&Cookie<'_>>) -> EventNr {
        EventNr(u32::from(self.bits()) << 16 | cookie.map_or(0, |cookie| u32::from(cookie.base)))
    }
}

/// `DM_COOKIE_MAGIC`, the high half of every key.
const COOKIE_MAGIC: u16 = 0x0d4d;
/// How long udev may take. It is a bound against waiting for ever, not an expectation.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(30) };

/// A semaphore that udev will count down. Removed from the system when dropped.
#[derive(Debug)]
pub(super) struct Cookie<'a> {
    kernel: &'a dyn Kernel,
    semaphore: Semaphore,
    base: u16,
}

impl<'a> Cookie<'a> {
    pub(super) fn new(kernel: &'a dyn Kernel) -> Result<Self, Errno> {
        loop {
            #[allow(clippy::cast_possible_truncation)] // any sixteen bits will do
            let base = RandomState::new().hash_one(0) as u16;
            // libdevmapper takes a cookie of 0 for none.
            if base == 0 {
                continue;
            }
            match kernel.create_semaphore(u32::from(COOKIE_MAGIC) << 16 | u32::from(base)) {
                Err(Errno::EEXIST) => {}
                made => return Ok(Self { kernel, semaphore: made?, base }),
            }
        }
    }

    /// Waits until udev has counted down.
    ///
    /// # Errors
    /// ETIMEDOUT if it did not within the bound; EIDRM or EINVAL if another process removed the semaphore.
    pub(super) fn wait(&self) -> Result<(), Errno> {
        let mut retry = Retry::within(PATIENCE);
        // Not every C library has semtimedop(2), hence looking again and again.
        while !self.kernel.is_semaphore_zero(self.semaphore)? {
            if !retry.pause() {
                return Err(Errno::ETIMEDOUT);
            }
        }
        Ok(())
    }
}

/// Removes the semaphores of this crate whose process is gone. What cannot be read or removed stays.
pub(super) fn sweep(kernel: &dyn Kernel) {
    for semaphore in kernel.abandoned_semaphores(COOKIE_MAGIC).unwrap_or_default() {
        // Somebody else swept it: that is as good.
        let _ = kernel.remove_semaphore(semaphore);
    }
}

impl Drop for Cookie<'_> {
    fn drop(&mut self) {
        // EIDRM or EINVAL: another process (`dmsetup udevcomplete_all`) removed it already.
        let _ = self.kernel.remove_semaphore(self.semaphore);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::RealKernel;

    #[test]
    fn a_cookie_is_counted_down_and_leaves_no_semaphore() {
        let cookie = Cookie::new(&RealKernel).unwrap();
        let base = cookie.base;
        assert!(in_system(base));
        assert_eq!(UdevFlags::NODE_ONLY.event_nr(Some(&cookie)).0, 0x6e_0000 | u32::from(base));
        cookie.semaphore.change(-1).unwrap();
        cookie.wait().unwrap();
        drop(cookie);
        assert!(!in_system(base));
    }

    #[test]
    fn the_wait_ends_when_the_semaphore_is_removed() {
        let cookie = Cookie::new(&RealKernel).unwrap();
        cookie.semaphore.remove().unwrap();
        assert!(matches!(cookie.wait(), Err(Errno::EIDRM | Errno::EINVAL)));
    }

    #[test]
    fn a_wait_without_udev_ends() {
        assert_eq!(Cookie::new(&RealKernel).unwrap().wait(), Err(Errno::ETIMEDOUT));
    }

    #[test]
    fn the_semaphore_of_a_process_that_died_is_swept_and_others_are_not() {
        const LEAK: &str = "DM_THIN_TEST_LEAKS_A_COOKIE";
        let cookie = Cookie::new(&RealKernel).unwrap();
        if std::env::var_os(LEAK).is_some() {
            eprintln!("leaked {}", cookie.base);
            std::mem::forget(cookie);
            return;
        }
        let this = "dm::udev::tests::the_semaphore_of_a_process_that_died_is_swept_and_others_are_not";
        let mut other = std::process::Command::new(std::env::current_exe().unwrap());
        let said = other.args(["--exact", this, "--nocapture"]).env(LEAK, "1").output().unwrap();
        let said = String::from_utf8(said.stderr).unwrap();
        let leaked = said.lines().find_map(|line| line.strip_prefix("leaked ")).unwrap().parse().unwrap();
        assert!(in_system(leaked));
        sweep(&RealKernel);
        assert!(!in_system(leaked));
        assert!(in_system(cookie.base), "its process is alive");
    }

    fn in_system(base: u16) -> bool {
        let key = (u32::from(COOKIE_MAGIC) << 16 | u32::from(base)).to_string();
        let table = std::fs::read_to_string("/proc/sysvipc/sem").unwrap();
        table.lines().any(|line| line.split_ascii_whitespace().next() == Some(&key))
    }
}
