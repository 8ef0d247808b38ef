//! Device-mapper thin provisioning by pure `ioctl(2)`: no libdevmapper, no LVM, no dmsetup.
//!
//! ```no_run
//! use dm_thin::tree::{Options, Parent, SnapshotTree};
//!
//! # fn main() -> dm_thin::tree::Result<()> {
//! // Pool, base volume and its empty ext4 are made the first time, found again afterwards.
//! let tree = SnapshotTree::open("/var/lib/example", Options::new())?;
//! tree.add("image", Parent::Base)?;
//! tree.mount("image", "/mnt/image")?;
//! // … fill /mnt/image …
//! tree.unmount("image")?;
//! tree.add("container", Parent::Snapshot("image"))?;
//! println!("{}", tree.activate("container")?.display());
//! # Ok(())
//! # }
//! ```
//!
#![doc = include_str!("guide/floors.svg")]
//!
//! # Which floor do I want?
//!
//! Each floor uses only those under it, and has its own error type.
//!
//! | floor | what it is | take it for |
//! |---|---|---|
//! | [`tree`] | a tree of snapshots in a pool, its state in JSON; survives crashes, neighbours, full disks | container engines, microVM and CI runners |
//! | [`thin`] | the pool itself: messages, tables, status, growth, events, its metadata | a manager with a state of its own |
//! | [`dm`], [`loopdev`] | every device-mapper command, every loop request | any other target |
//! | [`kernel`] | the seam: requests cross it as bytes | counting and failing calls in tests |
//! | [`abi`] | `<linux/dm-ioctl.h>` and `<linux/loop.h>`, byte for byte | tools of one's own |
//!
#![cfg_attr(all(feature = "tree", feature = "model"), doc = "The [`guide`] goes on from here.")]
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
// What only the floors above use.
#![cfg_attr(not(feature = "tree"), allow(dead_code, unused_imports))]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub mod abi;
pub mod dm;
#[cfg(feature = "tree")]
mod docker;
#[cfg(all(any(doc, doctest), feature = "tree", feature = "model"))]
pub mod guide;
pub mod kernel;
pub mod loopdev;
#[cfg(feature = "model")]
pub mod model;
mod retry;
mod sys;
#[cfg(feature = "thin")]
pub mod thin;
#[cfg(feature = "tree")]
pub mod tree;
pub mod units;

pub use nix::errno::Errno;
