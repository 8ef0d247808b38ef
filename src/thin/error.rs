//! The errors of a thin pool.

use std::path::PathBuf;

use nix::errno::Errno;

use super::metadata::MetadataError;
use super::{InvalidThinId, PoolMode, Space};
use crate::kernel::{Condition, floor_error};
use crate::units::Bytes;
use crate::{dm, loopdev};

/// A [`Result`](std::result::Result) with this floor's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a thin pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number is not a valid thin device id.
    #[error(transparent)]
    InvalidThinId(#[from] InvalidThinId),

    /// Device mapper failed.
    #[error(transparent)]
    Dm(#[from] dm::Error),

    /// A loop device under the pool failed.
    #[error(transparent)]
    Loop(#[from] loopdev::Error),

    /// A device node cannot be opened.
    #[error("open {path}: {errno}", path = path.display())]
    Open {
        /// The node.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },

    /// A device is not what it should be.
    #[error("{device} is a {found:?} device, not {expected:?}")]
    WrongTarget {
        /// The device.
        device: String,
        /// Its target type; empty if it has no table.
        found: String,
        /// The type that was expected.
        expected: &'static str,
    },

    /// The pool cannot do what was asked in the mode it is in.
    #[error("pool {pool} is {mode}: {consequence}")]
    PoolMode {
        /// The pool's name.
        pool: String,
        /// The mode it is in.
        mode: PoolMode,
        /// What that means for the operation.
        consequence: &'static str,
    },

    /// Less is free than must stay free.
    #[error(
        "pool {pool}: {free:#} of {space} free, at least {needed:#} required ({}); {}", space.option(), space.remedy()
    )]
    LowSpace {
        /// The pool's name.
        pool: String,
        /// The kind of space.
        space: Space,
        /// What is free.
        free: Bytes,
        /// What must be free.
        needed: Bytes,
    },

    /// The pool's one metadata snapshot is held: by a program that reads it, or left by one that was killed.
    #[error(
        "the metadata snapshot of pool {pool} is held by another program, or was leaked by one that died: then release it with release_metadata_snap"
    )]
    MetadataSnapHeld {
        /// The pool's name.
        pool: String,
    },

    /// The metadata snapshot that was just reserved is gone: another program released it.
    #[error("the metadata snapshot of pool {pool} was released by another program")]
    MetadataSnapGone {
        /// The pool's name.
        pool: String,
    },

    /// The pool's metadata cannot be read as what the kernel wrote.
    #[error(transparent)]
    Metadata(#[from] MetadataError),

    /// A device that a pool is to be made on contains something already.
    #[error("{device} contains {found}; set force_device to overwrite it", device = device.display())]
    DeviceInUse {
        /// The device.
        device: PathBuf,
        /// What it contains, as `blkid` names it where that is installed.
        found: String,
    },

    /// A device has no label of this crate.
    #[error("{device} has no dm-thin label", device = device.display())]
    NoLabel {
        /// The device.
        device: PathBuf,
    },

    /// A file that the tree needs is gone, or is there where it should not be.
    #[error("{path}: {reason}", path = path.display())]
    BackingFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },

    /// A program for the pool's metadata is not installed.
    #[error("{program} is not installed (package {package})")]
    ToolMissing {
        /// The program.
        program: &'static str,
        /// The usual package.
        package: &'static str,
    },

    /// A program for the pool's metadata failed, or found something wrong.
    #[error("{program} on {device}: {status}: {output}")]
    Tool {
        /// The program.
        program: &'static str,
        /// The device it worked on.
        device: String,
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },

    /// A property that cannot change while the device is in use.
    #[error("{what} of {device} is {is}; it cannot become {asked}")]
    Unchangeable {
        /// The device.
        device: String,
        /// The property.
        what: &'static str,
        /// What it is.
        is: String,
        /// What was asked for.
        asked: String,
    },

    /// Text from the kernel or from a file that cannot be parsed.
    #[error("malformed {what}: {raw:?}")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// What it is; cut after some hundred bytes.
        raw: String,
    },

    /// An invalid value.
    #[error("{option}: {value}: {reason}")]
    InvalidOption {
        /// The option or argument.
        option: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was done: `create`, `sync` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Dm(error) => error.errno(),
            Self::Loop(error) => error.errno(),
            Self::Open { errno, .. } => Some(*errno),
            Self::MetadataSnapHeld { .. } => Some(Errno::EBUSY),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    pub(crate) fn condition(&self) -> Option<Condition> {
        match self {
            Self::Dm(error) => error.condition(),
            Self::Loop(error) => error.condition(),
            Self::PoolMode { mode: PoolMode::OutOfDataSpace, .. } | Self::LowSpace { .. } => {
                Some(Condition::OutOfSpace)
            }
            _ => self.errno().and_then(Condition::of),
        }
    }
}

floor_error!(Error);
