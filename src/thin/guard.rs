//! Thresholds of free space.

use std::sync::Arc;
use std::time::Duration;

use super::Backing;
use super::space::percent_of;
use crate::units::{Blocks, Bytes, Sectors};

/// Space that must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MinFree {
    /// Percentage of the device, at least one block.
    Percent(u8),
    /// Absolute amount.
    Bytes(Bytes),
}

impl MinFree {
    pub(super) fn blocks(self, total: Blocks, block_size: Sectors) -> Blocks {
        match self {
            Self::Percent(percent) => Blocks(percent_of(total.0, percent).max(1)),
            Self::Bytes(bytes) => Blocks(bytes.0.div_ceil(block_size.bytes().0)),
        }
    }
}

/// Refuses to allocate when the pool is low on space: thresholds checked before `create_thin` and `create_snap`.
/// Default: none.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpaceGuard {
    pub(super) data: Option<MinFree>,
    pub(super) metadata: Option<MinFree>,
    pub(super) backing: Option<Arc<dyn Backing>>,
    pub(super) max_age: Duration,
    pub(super) max_messages: u32,
}

impl Default for SpaceGuard {
    fn default() -> Self {
        let (max_age, max_messages) = (Duration::from_secs(1), 100);
        Self { data: None, metadata: None, backing: None, max_age, max_messages }
    }
}

impl SpaceGuard {
    /// No thresholds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Minimum free data space.
    #[must_use]
    pub fn data(mut self, free: MinFree) -> Self {
        self.data = Some(free);
        self
    }

    /// Minimum free metadata space.
    #[must_use]
    pub fn metadata(mut self, free: MinFree) -> Self {
        self.metadata = Some(free);
        self
    }

    /// Limits free data to what the device below can allocate, such as the free space of the file
    /// system that a loop file is on.
    #[must_use]
    pub fn backing(mut self, data: Arc<dyn Backing>) -> Self {
        self.backing = Some(data);
        self
    }

    /// Maximum age of a cached status. Default: 1 s.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Maximum number of allocating messages for which a cached status serves. Default: 100.
    #[must_use]
    pub fn max_messages(mut self, messages: u32) -> Self {
        self.max_messages = messages;
        self
    }
}
