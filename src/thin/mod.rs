//! thin
use std::fmt;
/// m
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// a
    OutOfDataSpace,
}
impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("x")
    }
}
