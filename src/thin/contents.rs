//! What an active pool holds, told by `thin_ls` from a snapshot of its metadata.

use std::ffi::OsStr;
use std::sync::PoisonError;

use serde::Serialize;

use super::table::malformed;
use super::{PoolStatus, ThinId, ThinPool, tools};
use crate::Result;
use crate::units::Blocks;

/// What a thin device has of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ThinUsage {
    /// Which.
    pub id: ThinId,
    /// Data blocks that it has: those of its own, and those that it shares.
    pub mapped: Blocks,
    /// Data blocks that no other thin device has: to delete it frees these.
    pub exclusive: Blocks,
    /// Data blocks that others have, too: they are freed with the last of them.
    pub shared: Blocks,
}

/// Lets go of the metadata however this ends.
struct Held<'a>(&'a ThinPool);

impl Held<'_> {
    fn release(self) -> Result<()> {
        let pool = self.0;
        std::mem::forget(self);
        pool.release_metadata_snap()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = self.0.release_metadata_snap();
    }
}

impl ThinPool {
    /// Do something while the metadata as it is now stays readable for other programs. It is let go of whatever
    /// happens, panics included; only a process that is killed leaves it held. Callers of this pool wait for each
    /// other, so `work` must not begin this again.
    ///
    /// # Errors
    /// As [`reserve_metadata_snap`](Self::reserve_metadata_snap); then what `work` says.
    pub fn with_metadata_snap<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _alone = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve_metadata_snap()?;
        let held = Held(self);
        let result = work();
        let released = held.release();
        let result = result?;
        released.map(|()| result)
    }

    /// Whether the metadata is held, by somebody else than a caller of [`with_metadata_snap`](Self::with_metadata_snap).
    pub(crate) fn is_held_elsewhere(&self) -> Result<bool> {
        let _alone = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(matches!(self.status()?, PoolStatus::Usage(usage) if usage.held_metadata_root.is_some()))
    }

    /// The ids of all thin devices of the pool, in order.
    ///
    /// # Errors
    /// [`Error::ToolMissing`](crate::Error::ToolMissing), [`Error::Tool`](crate::Error::Tool): `thin_ls` tells. As
    /// [`with_metadata_snap`](Self::with_metadata_snap).
    pub fn thin_ids(&self) -> Result<Vec<ThinId>> {
        let rows = self.thin_ls("DEV")?;
        rows.into_iter().map(|[id]| id_of(id)).collect()
    }

    /// All thin devices of the pool, in the order of their ids, and what each has of it at this moment. Every mapping
    /// of the pool is read for that.
    ///
    /// # Errors
    /// As [`thin_ids`](Self::thin_ids).
    pub fn thin_devices(&self) -> Result<Vec<ThinUsage>> {
        let rows = self.thin_ls("DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS")?;
        let usage = |[id, mapped, exclusive, shared]: [u64; 4]| {
            let (mapped, exclusive, shared) = (Blocks(mapped), Blocks(exclusive), Blocks(shared));
            Ok(ThinUsage { id: id_of(id)?, mapped, exclusive, shared })
        };
        rows.into_iter().map(usage).collect()
    }

    fn thin_ls<const N: usize>(&self, fields: &str) -> Result<Vec<[u64; N]>> {
        // Nothing is held for a program that is not there.
        tools::find("thin_ls")?;
        let device = tools::node(self.table()?.0.metadata);
        let arguments = ["--metadata-snap", "--no-headers", "--format", fields].map(OsStr::new);
        let arguments = [&arguments[..], &[device.as_os_str()]].concat();
        let listed = self.with_metadata_snap(|| tools::run("thin_ls", &device, &arguments))?;
        parse(&String::from_utf8_lossy(&listed))
    }
}

fn id_of(number: u64) -> Result<ThinId> {
    ThinId::new(u32::try_from(number).unwrap_or(u32::MAX))
}

/// A line for each thin device, `N` numbers in each.
fn parse<const N: usize>(listed: &str) -> Result<Vec<[u64; N]>> {
    let row = |line: &str| {
        let numbers: Result<Vec<u64>, _> = line.split_ascii_whitespace().map(str::parse).collect();
        let row = numbers.ok().and_then(|numbers| <[u64; N]>::try_from(numbers).ok());
        row.ok_or_else(|| malformed("thin_ls output", line))
    };
    listed.lines().filter(|line| !line.trim().is_empty()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn what_thin_ls_says() {
        assert_eq!(parse(" 0  17 1\n 12 0  0\n\n").unwrap(), [[0, 17, 1], [12, 0, 0]]);
        assert_eq!(parse::<1>("").unwrap(), [[0; 1]; 0]);
        for bad in ["0 17", "0 17 1 1", "0 17 -1", "DEV 1 2", "0 1 99999999999999999999"] {
            assert!(matches!(parse::<3>(bad), Err(Error::Malformed { .. })), "{bad}");
        }
        assert!(id_of(1 << 24).is_err() && id_of(1 << 40).is_err());
    }
}
