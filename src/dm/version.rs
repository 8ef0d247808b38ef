//! The version of device mapper's interface.

use std::fmt;

/// The version of device mapper's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DmVersion {
    /// No compatibility across it.
    pub major: u32,
    /// Grows with what was added.
    pub minor: u32,
    /// Nothing that a caller sees.
    pub patch: u32,
}

impl From<[u32; 3]> for DmVersion {
    fn from([major, minor, patch]: [u32; 3]) -> Self {
        Self { major, minor, patch }
    }
}

impl fmt::Display for DmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}
