//! The thin-pool message layer: `thin-pool` and `thin` targets, typed.
//!
//! See the kernel's `Documentation/admin-guide/device-mapper/thin-provisioning.rst`.

mod activate;
mod message;
mod pool;
mod reload;
mod status;
mod table;
mod volume;

pub use activate::ActivateOptions;
pub use message::{Message, ThinId};
pub use pool::{Origin, ThinPool};
pub use status::{PoolMode, PoolStatus, PoolUsage, ThinStatus};
pub(crate) use table::check_block_size;
pub use table::{Discards, NoSpace, PoolFeatures, PoolTable, ThinTable};
pub use volume::{SuspendedVolume, ThinVolume};

use crate::units::{Bytes, Sectors};

/// A metadata block: 4 KiB.
pub const METADATA_BLOCK_SIZE: Bytes = Bytes::kib(4);
/// The largest metadata device that the kernel uses (`THIN_METADATA_MAX_SECTORS`).
pub const METADATA_MAX: Sectors = Sectors(33_292_800);
/// The smallest data block: 64 KiB; every block size is a multiple of it.
pub const BLOCK_SIZE_MIN: Sectors = Sectors(128);
/// The largest data block: 1 GiB.
pub const BLOCK_SIZE_MAX: Sectors = Sectors(2_097_152);
