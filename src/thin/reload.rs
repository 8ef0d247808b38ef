//! Another table for a device that is in use.

use crate::Result;
use crate::dm::{DeviceMapper, DmFlags, DmName, TargetSpec};

/// Load a table and put it to use; the device goes on with the old one if that fails.
///
/// The resume suspends the device first, if it is not suspended: a file system on it is frozen for that
/// moment, and I/O on its way is finished.
pub(super) fn reload(
    dm: &DeviceMapper,
    name: &DmName,
    table: &[TargetSpec<'_>],
    flags: DmFlags,
) -> Result<()> {
    dm.load_table(name.into(), table, flags)?;
    dm.resume(name).inspect_err(|_| {
        // The kernel may have suspended it, and may have kept the table. What failed first is the news.
        let _ = dm.clear_table(name.into());
        let _ = dm.resume(name);
    })
}
