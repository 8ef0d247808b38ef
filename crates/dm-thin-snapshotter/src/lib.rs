//! A containerd proxy snapshotter on `dm_thin::tree::SnapshotTree`: the snapshots of containerd are snapshots of a tree, their
//! metadata is labels of these. Its state is the tree's, and nothing else.

pub mod config;
mod entries;
pub mod filter;
pub mod generated;
mod locks;
pub mod record;
pub mod server;
pub mod service;
pub mod snapshots;
