//! What the property tests, the fuzz targets (`fuzz/`) and the replay of their corpus share: each
//! checks one input, and panics if something is wrong.

#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod decode;
pub mod encode;
pub mod names;
pub mod reader;
