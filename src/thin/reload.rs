//! Another table for a device that is in use.

use std::time::Duration;

use nix::errno::Errno;

use super::identity::Identity;
use crate::dm::{DeviceMapper, DmFlags, DmId, Exclusive, Result, TableKind, TargetSpec};
use crate::retry::Retry;

/// Loads a table and resumes with it; on failure the device keeps the old one.
///
/// The resume suspends the device first, if it is not suspended: a file system on it is frozen for that
/// moment, and I/O on its way is finished.
pub(super) fn reload(
    dm: &DeviceMapper,
    held: &Exclusive,
    id: DmId<'_>,
    table: &[TargetSpec<'_>],
    flags: DmFlags,
) -> Result<()> {
    dm.load_held(held, id, table, flags)?;
    dm.resume_held(held, id).inspect_err(|_| {
        if restore(dm, held, id).is_err() {
            // Return the first error. Best effort: without a table to resume with, clear the inactive one.
            let _ = dm.clear_held(held, id);
            let _ = dm.resume_held(held, id);
        }
    })
}

/// Resumes a device with the live table that it has. The kernel may have suspended it, and may have kept the
/// inactive table. TABLE_CLEAR would drop that one, but a rename after it can crash kernels with IMA; loading the
/// live table once more and putting it to use leaves no inactive one either.
fn restore(dm: &DeviceMapper, held: &Exclusive, id: DmId<'_>) -> Result<()> {
    let status = dm.status(id)?;
    if status.flags.contains(DmFlags::INACTIVE_PRESENT) {
        let lines = dm.table(id, TableKind::Live)?;
        let lines: Vec<_> = lines
            .iter()
            .map(|line| TargetSpec {
                start: line.start,
                length: line.length,
                target_type: line.target_type,
                parameters: &line.text,
            })
            .collect();
        dm.load_held(held, id, &lines, status.flags & DmFlags::READONLY)?;
    }
    dm.resume_held(held, id)
}

/// How long another process's change of the pool is waited for.
const SUSPENDED: Duration = Duration::from_secs(2);

/// Loads the table of a thin volume, again and again while its pool is suspended, as it is while its own table is
/// replaced: the kernel answers EINVAL then (`thin_ctr`). It does so before the pool's status says suspended, and after
/// that: so the status does not distinguish this EINVAL from one with another cause.
pub(super) fn while_pool_is_suspended<T>(
    dm: &DeviceMapper,
    pool: &Identity,
    mut load: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut retry = None;
    loop {
        let error = match load() {
            Err(error) if error.errno() == Some(Errno::EINVAL) => error,
            result => return result,
        };
        // Waits for this process's change of the pool.
        drop(pool.exclusive(dm));
        if !retry.get_or_insert_with(|| Retry::within(SUSPENDED)).pause() {
            return Err(error);
        }
    }
}
