//! The guide: what a program does with this crate, from its first snapshot to its failures.
//!
//! | page | |
//! |---|---|
//! | [`first_snapshots`] | from nothing to snapshots of snapshots |
//! | [`backing`] | loop files, devices, a pool that is there already |
//! | [`failures`] | what a crash, a full disk and damage leave, and the way back |
//! | [`testing`] | tests without root, and with calls that fail |
//! | [`events`] | a pool that grows, with threads, poll or tokio |
//! | [`docker_options`] | the words of Docker's devicemapper driver |
//! | [`promises`] | what stays as it is: interface, state, durability |

#[doc = include_str!("first_snapshots.md")]
pub mod first_snapshots {}

#[doc = include_str!("backing.md")]
pub mod backing {}

#[doc = include_str!("failures.md")]
pub mod failures {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("events.md")]
pub mod events {}

#[doc = include_str!("docker_options.md")]
pub mod docker_options {}

#[doc = include_str!("promises.md")]
pub mod promises {}
