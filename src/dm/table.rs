//! Lines of a table: any target, by its type and parameters.

use std::fmt;

use super::TargetType;
use crate::units::Sectors;

/// A line to be loaded. The parameters are rendered straight into the request.
#[derive(Clone, Copy)]
pub struct TargetSpec<'a> {
    /// First sector of the device that the target serves.
    pub start: Sectors,
    /// How many it serves.
    pub length: Sectors,
    /// The target's type.
    pub target_type: TargetType,
    /// What follows the type in a table line.
    pub parameters: &'a (dyn fmt::Display + Sync),
}

impl fmt::Debug for TargetSpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TargetSpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.start.0, self.length.0, self.target_type, self.parameters)
    }
}

/// A line that the kernel answered: a table's parameters, or a target's status.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetLine {
    /// First sector of the device that the target serves.
    pub start: Sectors,
    /// How many it serves.
    pub length: Sectors,
    /// The target's type.
    pub target_type: TargetType,
    /// Parameters or status, as the kernel wrote them.
    pub text: String,
}

impl fmt::Display for TargetLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.start.0, self.length.0, self.target_type, self.text)
    }
}
