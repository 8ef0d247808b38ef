//! How a device is labelled.

use uuid::Uuid;

use crate::thin::{Error, Result};
use crate::units::{Bytes, Sectors};

/// How much of a device its metadata and data get at first, in percent; the rest is left to extend them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceShares {
    /// The data: 1 to 100.
    pub data: u8,
    /// The metadata, but never less than 2 MiB: 0 to 99.
    pub metadata: u8,
}

impl DeviceShares {
    /// # Errors
    /// [`Error::InvalidOption`] unless both are there and fit beside each other.
    pub(crate) fn check(self) -> Result<()> {
        match self.data.checked_add(self.metadata) {
            Some(0..=100) if self.data > 0 => Ok(()),
            _ => Err(Error::InvalidOption {
                option: "device shares",
                value: format!("{} % data, {} % metadata", self.data, self.metadata),
                reason: "no data, or more than 100 percent",
            }),
        }
    }
}

/// How a device is labelled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelledOptions {
    pub(super) block_size: Sectors,
    pub(super) metadata: Option<Sectors>,
    pub(super) data: Option<Sectors>,
    pub(super) shares: Option<DeviceShares>,
    pub(super) uuid: Option<Uuid>,
    pub(super) force: bool,
}

impl Default for LabelledOptions {
    fn default() -> Self {
        let block_size = Bytes::kib(64).sectors();
        Self { block_size, metadata: None, data: None, shares: None, uuid: None, force: false }
    }
}

impl LabelledOptions {
    /// Blocks of 64 KiB, metadata by [rule](crate::thin::metadata_size), all the rest for data.
    pub fn new() -> Self {
        Self::default()
    }

    /// The pool's block size. It never changes.
    #[must_use]
    pub fn block_size(mut self, size: Sectors) -> Self {
        self.block_size = size;
        self
    }

    /// The size of the metadata.
    #[must_use]
    pub fn metadata(mut self, size: Sectors) -> Self {
        self.metadata = Some(size);
        self
    }

    /// The size of the data; what is left on the device is for later.
    #[must_use]
    pub fn data(mut self, size: Sectors) -> Self {
        self.data = Some(size);
        self
    }

    /// Percentages of the device, where no size is set.
    #[must_use]
    pub fn shares(mut self, shares: DeviceShares) -> Self {
        self.shares = Some(shares);
        self
    }

    /// What the device will be found by. A new one, if not set.
    #[must_use]
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// Takes a device whose first and last 4 MiB are not zero. What is on it is lost.
    #[must_use]
    pub fn force(mut self, on: bool) -> Self {
        self.force = on;
        self
    }
}
