//! What a tree does: one file for each operation.

pub(in crate::tree) mod add;
pub(in crate::tree) mod base;
pub(in crate::tree) mod changed;
pub(in crate::tree) mod check;
pub(in crate::tree) mod contents;
pub(in crate::tree) mod finding;
pub(in crate::tree) mod open;
pub(in crate::tree) mod reader;
pub(in crate::tree) mod receive;
pub(in crate::tree) mod receive_options;
pub(in crate::tree) mod recognise;
pub(in crate::tree) mod recover;
pub(in crate::tree) mod remove;
pub(in crate::tree) mod rename;
pub(in crate::tree) mod render;
pub(in crate::tree) mod repair;
pub(in crate::tree) mod seal;
pub(in crate::tree) mod send;
pub(in crate::tree) mod status;
pub(in crate::tree) mod usage;
pub(in crate::tree) mod writer;
