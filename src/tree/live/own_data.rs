//! How much data of its own each snapshot has, where that is known.

use std::collections::HashMap;

use crate::thin::ThinId;
use crate::units::Bytes;

/// Own data of snapshots, by what they were made from and themselves. Only an active volume changes, so nothing is
/// known any more when one has been activated.
#[derive(Debug, Default)]
pub(in crate::tree) struct OwnData {
    pub(in crate::tree) activations: u64,
    pub(in crate::tree) known: HashMap<[ThinId; 2], Bytes>,
}

impl OwnData {
    pub(in crate::tree) fn activated(&mut self) {
        self.activations += 1;
        self.known.clear();
    }
}
