//! How a device is labelled.

use uuid::Uuid;

use crate::units::{Bytes, Sectors};

/// How a device is labelled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelledOptions {
    pub(super) block_size: Sectors,
    pub(super) metadata: Option<Sectors>,
    pub(super) data: Option<Sectors>,
    pub(super) uuid: Option<Uuid>,
    pub(super) force: bool,
}

impl Default for LabelledOptions {
    fn default() -> Self {
        Self { block_size: Bytes::kib(64).sectors(), metadata: None, data: None, uuid: None, force: false }
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
