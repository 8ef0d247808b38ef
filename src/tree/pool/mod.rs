//! The tree's pool and the devices of its volumes: where it comes from, whose it is, and which generation it has been
//! told.

pub(in crate::tree) mod claim;
pub(in crate::tree) mod generation;
pub(in crate::tree) mod hold;
mod nodes;
pub(in crate::tree) mod source;
pub(in crate::tree) mod tree_pool;
