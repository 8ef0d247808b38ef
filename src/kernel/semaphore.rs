//! Semaphore sets of this crate, as `/proc/sysvipc/sem` lists them.
//!
//! They are known by their permissions and the second semaphore of the set. That one is touched by its maker alone, so
//! whose GETPID names the owner of the set, whatever another process did since to the first one.

use std::path::Path;

use nix::errno::Errno;

use super::Semaphore;
use super::error::errno;

/// A new set, counted up to 1.
pub(super) fn create(key: u32) -> Result<Semaphore, Errno> {
    let semaphore = Semaphore::create(key)?;
    let made = semaphore.mark().and_then(|()| semaphore.change(1));
    made.map(|()| semaphore).inspect_err(|_| {
        // Best effort: return the original error.
        let _ = semaphore.remove();
    })
}

pub(super) fn is_zero(semaphore: Semaphore) -> Result<bool, Errno> {
    match semaphore.change(0) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

pub(super) fn abandoned(key: u16) -> Result<Vec<Semaphore>, Errno> {
    let table = std::fs::read_to_string("/proc/sysvipc/sem").map_err(errno)?;
    let is_gone = |process| process > 0 && !Path::new(&format!("/proc/{process}")).exists();
    let ours = table.lines().filter_map(|line| ours(key, line));
    Ok(ours.filter(|semaphore| semaphore.marker().is_ok_and(is_gone)).collect())
}

/// The semaphore of a line of the kernel's table, if this crate made it: key, identifier, permissions, how many …
fn ours(expected: u16, line: &str) -> Option<Semaphore> {
    let mut words = line.split_ascii_whitespace();
    let key: i32 = words.next()?.parse().ok()?;
    let id = words.next()?.parse().ok()?;
    let mode = u16::from_str_radix(words.next()?, 8).ok()?;
    let count: u16 = words.next()?.parse().ok()?;
    let known = key.cast_unsigned() >> 16 == u32::from(expected)
        && (mode, count) == (Semaphore::MODE, Semaphore::COUNT);
    known.then(|| Semaphore::of_id(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semaphore_of_libdevmapper_is_not_ours() {
        let line = |key: u32, mode: &str, count: u32| {
            format!("{} 7  {mode} {count} 0 0 0 0 1795500000 1795500000", key.cast_signed())
        };
        assert!(ours(0x0d4d, &line(0x0d4d_1234, "700", 2)).is_some());
        for foreign in [line(0x0d4d_1234, "600", 1), line(0x0d4d_1234, "700", 1), line(0x0d4e_1234, "700", 2)]
        {
            assert!(ours(0x0d4d, &foreign).is_none(), "{foreign}");
        }
        assert!(ours(0x0d4d, "       key      semid perms      nsems   uid   gid").is_none());
    }
}
