//! Device-mapper thin provisioning by pure `ioctl(2)`: no libdevmapper, no LVM, no dmsetup.
//!
//! From the top: [`tree::SnapshotTree`] keeps a tree of snapshots in a thin pool, its state in JSON, and
//! survives crashes. [`thin`] is the thin pool itself: messages, tables, status. [`dm`] and [`loopdev`] are
//! the kernel's interfaces, one method for each command. [`abi`] has their bytes, and [`kernel`] is the seam
//! between this crate and the kernel, where tests put another one.

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
