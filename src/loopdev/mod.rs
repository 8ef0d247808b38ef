//! Loop devices: block devices over files.
//!
//! [`LoopControl::attach`] works on every kernel and in every race; see there for how.

mod attach;
mod control;
mod device;
mod error;
mod index;
#[cfg(all(test, feature = "model"))]
mod tests;

pub use self::error::{Error, Result};
pub use attach::AttachOptions;
pub use control::LoopControl;
pub use device::{LoopDevice, LoopStatus};
pub use index::LoopIndex;

pub use crate::abi::loopdev::LoopFlags;
