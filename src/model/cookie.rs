//! A semaphore that udev counts down.

/// A semaphore, which counts to 1 and down again.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) key: u32,
    pub(super) is_zero: bool,
    /// Its process was killed.
    pub(super) abandoned: bool,
}
