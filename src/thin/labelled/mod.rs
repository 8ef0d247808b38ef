//! One block device for a whole pool: a label, and linear devices for metadata and data.

pub(crate) mod blank;
mod device;
mod label;
mod options;
mod search;

use std::sync::Arc;

pub use device::LabelledDevice;
pub use label::{Label, Segment, SubDevice};
pub use options::{DeviceShares, LabelledOptions};

use super::{Backing, BackingSpace};
use crate::kernel::DeviceNumber;
use crate::thin::Result;
use crate::units::Sectors;

/// One part of a split device that is active, for a policy that extends it from what is free there.
#[derive(Debug)]
pub struct SubDeviceBacking {
    device: Arc<LabelledDevice>,
    part: SubDevice,
    number: DeviceNumber,
}

impl SubDeviceBacking {
    /// A part of a device that is active.
    ///
    /// # Errors
    /// ENXIO if it is not.
    pub fn new(device: Arc<LabelledDevice>, part: SubDevice) -> Result<Self> {
        let number = device.active_number(part)?;
        Ok(Self { device, part, number })
    }
}

impl Backing for SubDeviceBacking {
    fn number(&self) -> DeviceNumber {
        self.number
    }

    fn size(&self) -> Result<Sectors> {
        Ok(self.device.label().size(self.part))
    }

    fn limit(&self) -> Result<Sectors> {
        Ok(self.size()? + self.device.free()?)
    }

    fn below(&self) -> Result<Option<BackingSpace>> {
        Ok(None)
    }

    fn extend(&self, size: Sectors) -> Result<()> {
        self.device.extend(self.part, size)
    }
}
