//! Holders of busy devices and file systems, as errors name them.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::kernel::ProcessName;

/// A process, mount or device that keeps a device or file system busy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Holder {
    /// A process has the device open.
    Process(ProcessName),
    /// A process has files of the file system open or mapped, or works in one of its directories.
    Files(ProcessName),
    /// It is mounted, or something is mounted below it.
    Mount {
        /// A process that sees the mount: the one of its mount namespace with the lowest id.
        process: ProcessName,
        /// Where.
        target: PathBuf,
    },
    /// Another block device stands on it.
    Device {
        /// The kernel's name of that device.
        name: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => write!(f, "open in {process}"),
            Self::Files(process) => write!(f, "files open in {process}"),
            Self::Mount { process, target } => {
                write!(f, "mounted on {}, seen by {process}", target.display())
            }
            Self::Device { name } => write!(f, "used by device {name}"),
        }
    }
}

/// Holders in the text of an error: the first ones by name.
pub(crate) struct Listed<'a>(pub(crate) &'a [Holder]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 4;
        if self.0.is_empty() {
            return f.write_str("in use, by a process that /proc does not show");
        }
        for (n, holder) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{holder}", if n > 0 { "; " } else { "" })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
