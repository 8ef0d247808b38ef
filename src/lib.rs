//! Device-mapper thin provisioning by pure `ioctl(2)`.

pub mod abi;
pub mod dm;
mod error;
pub mod kernel;
pub mod loopdev;
mod sys;
pub mod thin;
pub mod units;

pub use error::{Error, IoctlError, MountError, Result, RootProblem};
pub use nix::errno::Errno;
