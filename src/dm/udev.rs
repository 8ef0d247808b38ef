//! Waiting for udev: the completion protocol of libdevmapper, which udev's rules speak.
//!
//! A semaphore is counted up before the ioctl, its key travels through the uevent as DM_COOKIE, and
//! `dmsetup udevcomplete`, run by the rules, counts it down. Where udev does not run there is nothing
//! to wait for.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use bitflags::bitflags;
use nix::errno::Errno;

use super::EventNr;
use crate::sys::Semaphore;

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
}

/// `DM_COOKIE_MAGIC`, the high half of every key.
const COOKIE_MAGIC: u32 = 0x0d4d;
/// How long udev may take. It is a bound against waiting for ever, not an expectation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A semaphore that udev will count down. Removed from the system when dropped.
#[derive(Debug)]
pub(super) struct Cookie {
    semaphore: Semaphore,
    base: u16,
}

impl Cookie {
    pub(super) fn new() -> Result<Self, Errno> {
        loop {
            #[allow(clippy::cast_possible_truncation)] // any sixteen bits will do
            let base = RandomState::new().hash_one(0) as u16;
            // libdevmapper takes a cookie of 0 for none.
            if base == 0 {
                continue;
            }
            match Semaphore::create(COOKIE_MAGIC << 16 | u32::from(base)) {
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
                Ok(semaphore) => {
                    let cookie = Self { semaphore, base };
                    semaphore.change(1)?;
                    return Ok(cookie);
                }
            }
        }
    }

    /// What goes into `event_nr` of the request.
    pub(super) fn event_nr(&self, flags: UdevFlags) -> EventNr {
        EventNr(u32::from(flags.bits()) << 16 | u32::from(self.base))
    }

    /// Wait until udev has counted down: false if it did not within the bound, or is not there.
    pub(super) fn wait(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(100);
        // Not every C library has semtimedop(2), hence looking again and again.
        loop {
            match self.semaphore.change(0) {
                Ok(()) => return true,
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < end => thread::sleep(pause),
                Err(_) => return false,
            }
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}

impl Drop for Cookie {
    fn drop(&mut self) {
        // EIDRM or EINVAL: somebody (`dmsetup udevcomplete_all`) removed it already.
        let _ = self.semaphore.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_counted_down_and_leaves_no_semaphore() {
        let cookie = Cookie::new().unwrap();
        let base = cookie.base;
        assert!(in_system(base));
        assert_eq!(cookie.event_nr(UdevFlags::NODE_ONLY).0, 0x6e_0000 | u32::from(base));
        cookie.semaphore.change(-1).unwrap();
        assert!(cookie.wait());
        drop(cookie);
        assert!(!in_system(base));
    }

    #[test]
    fn the_wait_ends_when_the_semaphore_is_removed() {
        let cookie = Cookie::new().unwrap();
        cookie.semaphore.remove().unwrap();
        assert!(!cookie.wait());
    }

    fn in_system(base: u16) -> bool {
        let key = (COOKIE_MAGIC << 16 | u32::from(base)).to_string();
        let table = std::fs::read_to_string("/proc/sysvipc/sem").unwrap();
        table.lines().any(|line| line.split_ascii_whitespace().next() == Some(&key))
    }
}
