//! What is durable: the graph of snapshots, its journal and checkpoint, the root directory. Knows no kernel object.

pub(in crate::tree) mod device_ids;
pub mod files;
pub(in crate::tree) mod filesystem;
pub(in crate::tree) mod graph;
pub(in crate::tree) mod id;
pub(in crate::tree) mod identity;
pub(in crate::tree) mod journal;
pub(in crate::tree) mod labels;
pub(in crate::tree) mod lineage;
pub(in crate::tree) mod pool_source;
pub(in crate::tree) mod reason;
pub(in crate::tree) mod record;
pub(in crate::tree) mod recorded;
pub(in crate::tree) mod root;
pub(in crate::tree) mod size;
pub(in crate::tree) mod store;

#[cfg(all(test, feature = "model"))]
mod format_tests;
