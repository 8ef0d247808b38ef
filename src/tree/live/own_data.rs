//! How much data of its own each snapshot has, where that is known.

use std::collections::HashMap;

use crate::thin::ThinId;
use crate::units::Bytes;

/// Own data of snapshots, by what they were made from and themselves. Only an active volume changes: what is known
/// holds as long as no other volume is activated.
#[derive(Debug, Default)]
pub(in crate::tree) struct OwnData {
    /// How many volumes had been activated.
    activations: u64,
    known: HashMap<[ThinId; 2], Bytes>,
}

impl OwnData {
    /// What is known after so many activations.
    pub(in crate::tree) fn get(&mut self, volumes: [ThinId; 2], activations: u64) -> Option<Bytes> {
        self.forget_before(activations);
        self.known.get(&volumes).copied().filter(|_| self.activations == activations)
    }

    /// Notes what was found since there had been so many activations.
    pub(in crate::tree) fn insert(&mut self, volumes: [ThinId; 2], own: Bytes, activations: u64) {
        self.forget_before(activations);
        if self.activations == activations {
            self.known.insert(volumes, own);
        }
    }

    fn forget_before(&mut self, activations: u64) {
        if self.activations < activations {
            self.activations = activations;
            self.known.clear();
        }
    }
}
