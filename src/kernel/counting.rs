//! Counts ioctls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use super::{Arg, DeviceFile, Files, Kernel};
use crate::abi::Ioctl;

/// More than this crate knows.
const KINDS: usize = 64;

/// A kernel that counts the ioctls that go through it.
#[derive(Debug)]
pub(crate) struct CountingKernel {
    below: Arc<dyn Kernel>,
    counts: Mutex<Vec<(&'static str, u64)>>,
}

impl CountingKernel {
    pub(crate) fn new(below: Arc<dyn Kernel>) -> Self {
        Self { below, counts: Mutex::new(Vec::with_capacity(KINDS)) }
    }

    /// How many there were, by the kernel's names of the requests.
    pub(crate) fn ioctls(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

impl Kernel for CountingKernel {
    fn below(&self) -> Option<&dyn Kernel> {
        Some(&*self.below)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        let name = request.name();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.iter_mut().find(|(counted, _)| *counted == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
        drop(counts);
        self.below.ioctl(file, request, argument)
    }

    fn files(&self) -> &dyn Files {
        self.below.files()
    }
}
