//! Where the pool comes from, how it grows, and which generation it has been told.

pub(in crate::tree) mod claim;
pub(in crate::tree) mod generation;
pub(in crate::tree) mod hold;
pub(in crate::tree) mod source;
