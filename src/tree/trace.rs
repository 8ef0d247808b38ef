//! What a tree reports with the feature `tracing`.
//!
//! A call is a span, and an event when it has ended: with an origin suspended nothing may be logged, since the log may be
//! on it.

use crate::tree::{Recovered, Result};

/// Runs an operation on a snapshot, or on the tree.
#[cfg(feature = "tracing")]
pub(in crate::tree) fn call<T>(
    operation: &'static str,
    id: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let span = tracing::debug_span!(target: "dm_thin", "call", operation, id);
    let _entered = span.enter();
    let begun = std::time::Instant::now();
    let result = work();
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    match &result {
        Ok(_) => tracing::debug!(target: "dm_thin", operation, id, micros, "done"),
        Err(error) => {
            let errno = error.errno().map(|errno| errno as i32);
            tracing::debug!(target: "dm_thin", operation, id, micros, errno, %error, "failed");
        }
    }
    result
}

#[cfg(not(feature = "tracing"))]
pub(in crate::tree) fn call<T>(_: &'static str, _: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work()
}

/// Tells what an open found: a warning for each thing that it put right.
pub(in crate::tree) fn recovered(found: &Recovered) {
    #[cfg(feature = "tracing")]
    if found.is_repair() {
        tracing::warn!(target: "dm_thin", "{found}");
    } else {
        tracing::info!(target: "dm_thin", "{found}");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = found;
}
