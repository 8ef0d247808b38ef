//! Reads the directory of Docker's devicemapper storage driver (removed in Docker 25) without Docker, without root and
//! without device mapper: images, containers and their devices, also those that Docker itself does not find any more.
//!
//! [`Store`] reads Docker's files and the metadata of its thin pool. The content of each device is copied out of the
//! pool's data file, by its mapping in the metadata.
//!
//! Nothing is written below the directory, and no file in it is trusted: symbolic links are not followed, sizes and
//! numbers are bounded, and a file that cannot be read is a [`Finding`] while the others are listed.

mod activate;
mod adopt;
mod archive;
mod device;
mod directory;
mod error;
mod export;
mod filesystem;
mod finding;
mod layers;
mod mount;
mod pool;
mod store;

pub use activate::{activate_pool, deactivate_pool};
pub use adopt::Adopted;
pub use archive::tar_rootfs;
pub use device::{Device, DeviceName, DeviceState};
pub use error::{Error, Result};
pub use export::Exported;
pub use finding::Finding;
pub use layers::{Container, Image, Layer};
pub use mount::Archived;
pub use pool::PoolInfo;
pub use store::{PoolFiles, Store, TransactionState};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
