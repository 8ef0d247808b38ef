//! The metadata and data devices that a labelled device is split into.

use crate::thin::LabelledDevice;

/// The sub-devices of an inactive pool. Dropping it removes them.
#[derive(Debug)]
pub(super) struct SubDevices {
    device: LabelledDevice,
    /// The pool has taken them.
    kept: bool,
}

impl SubDevices {
    pub(super) fn new(device: LabelledDevice) -> Self {
        Self { device, kept: false }
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for SubDevices {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: the next open takes them as they are.
            let _ = self.device.deactivate();
        }
    }
}
