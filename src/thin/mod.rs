//! The thin-pool message layer: `thin-pool` and `thin` targets, typed.
//!
//! See the kernel's `Documentation/admin-guide/device-mapper/thin-provisioning.rst`.
//!
//! A pool by hand, on two files, with a volume and a snapshot of it:
//!
//! ```no_run
//! use std::fs::File;
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use dm_thin::dm::{DeviceMapper, DmName, DmUuid};
//! use dm_thin::loopdev::{AttachOptions, LoopControl};
//! use dm_thin::thin::{Origin, PoolTable, ThinId, ThinPool};
//! use dm_thin::units::Bytes;
//!
//! let control = LoopControl::open()?;
//! let attach = |path: &str, size: Bytes| -> Result<_, Box<dyn std::error::Error>> {
//!     let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
//!     file.set_len(size.0)?;
//!     // An autoclear device ends with the pool that uses it.
//!     Ok(control.attach(&file, Path::new(path), &AttachOptions::new().autoclear(true))?)
//! };
//! // New metadata has to begin with 4 KiB of zeroes, as that of a sparse file does.
//! let metadata = attach("/var/lib/metadata", Bytes::mib(16))?;
//! let data = attach("/var/lib/data", Bytes::gib(10))?;
//!
//! let dm = Arc::new(DeviceMapper::open()?);
//! let block_size = Bytes::kib(64).sectors();
//! let table = PoolTable::on(&**dm.kernel(), &metadata.path(), &data.path(), block_size)?;
//! let (name, uuid) = (DmName::new("pool")?, DmUuid::new("EXAMPLE-pool")?);
//! let pool = ThinPool::create(dm, &name, &uuid, &table, data.size()?.sectors())?;
//!
//! let (one, two) = (ThinId::new(1)?, ThinId::new(2)?);
//! pool.create_thin(one)?;
//! let size = Bytes::gib(1).sectors();
//! let volume = pool.activate(&DmName::new("one")?, &DmUuid::new("EXAMPLE-1")?, one, size)?;
//! // … write to volume.path() …
//! let suspended = volume.suspend()?;
//! pool.create_snap(two, &Origin::Suspended(&suspended))?;
//! suspended.resume()?;
//! println!("{}", pool.status()?);
//!
//! volume.deactivate()?;
//! pool.deactivate()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`ThinPool::watch`] reports that the pool fills, and [`AutoExtend`] makes it larger then.

mod activate;
mod backing;
mod change;
mod contents;
mod error;
mod extend;
mod guard;
mod guard_state;
mod guarded;
#[cfg(all(test, feature = "model"))]
mod handle_tests;
mod id;
mod identity;
mod labelled;
mod message;
pub mod metadata;
mod mode;
mod pool;
mod reload;
mod space;
mod status;
mod table;
pub mod tools;
mod volume;
mod watch;

pub use self::error::{Error, Result};
pub use activate::ActivateOptions;
pub use backing::{Backing, BackingSpace, LoopFile};
pub use contents::ThinUsage;
pub use extend::{AutoExtend, ExtendRule, Extended, Extension};
pub use guard::{MinFree, SpaceGuard};
pub use id::{InvalidThinId, ThinId, TransactionId};
pub(crate) use labelled::blank;
pub use labelled::{
    DeviceShares, Label, LabelledDevice, LabelledOptions, Segment, SubDevice, SubDeviceBacking,
};
pub use message::Message;
pub use mode::PoolMode;
pub use pool::{Origin, ThinPool};
pub use space::Space;
pub use status::{PoolStatus, PoolUsage, ThinStatus};
pub(crate) use table::check_block_size;
pub use table::{Discards, NoSpace, PoolFeatures, PoolTable, ThinTable};
pub use volume::{SuspendedVolume, ThinVolume};
pub(crate) use watch::WatchState;
pub use watch::{PoolEvent, PoolWatcher};

use crate::units::{Bytes, Sectors};

/// A metadata block: 4 KiB.
pub const METADATA_BLOCK_SIZE: Bytes = Bytes::kib(4);
/// The largest metadata device that the kernel uses (`THIN_METADATA_MAX_SECTORS`).
pub const METADATA_MAX: Sectors = Sectors(33_292_800);
/// The smallest data block: 64 KiB; every block size is a multiple of it.
pub const BLOCK_SIZE_MIN: Sectors = Sectors(128);
/// The largest data block: 1 GiB.
pub const BLOCK_SIZE_MAX: Sectors = Sectors(2_097_152);
/// The smallest metadata device: 2 MiB.
pub const METADATA_MIN: Sectors = Bytes::mib(2).sectors();

/// The size of a metadata device that does not run out before a data device of size `data` does: 48
/// bytes for each data block, in whole metadata blocks, within what the kernel uses.
///
/// It is the rule of the kernel's `thin-provisioning.rst`. With very many snapshots of which much is
/// overwritten, `thin_metadata_size` asks for more.
pub fn metadata_size(data: Sectors, block_size: Sectors) -> Sectors {
    let blocks = data.0.div_ceil(block_size.0.max(1));
    let block = METADATA_BLOCK_SIZE.sectors().0;
    let sectors = Bytes(blocks.saturating_mul(48)).sectors().0.saturating_add(1);
    Sectors(sectors.div_ceil(block).saturating_mul(block)).clamp(METADATA_MIN, METADATA_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_follows_the_data() {
        let size = |data: Bytes| metadata_size(data.sectors(), BLOCK_SIZE_MIN).bytes();
        assert_eq!(size(Bytes::mib(1)), Bytes::mib(2));
        // 48 bytes for each of 1,638,400 blocks, and a block for the rest.
        assert_eq!(size(Bytes::gib(100)), Bytes::mib(75) + Bytes::kib(4));
        assert_eq!(size(Bytes(u64::MAX)), METADATA_MAX.bytes());
        assert_eq!(metadata_size(Sectors(u64::MAX), Sectors(0)), METADATA_MAX);
        assert_eq!(metadata_size(Bytes::gib(100).sectors(), BLOCK_SIZE_MAX), METADATA_MIN);
    }
}
