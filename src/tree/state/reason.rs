//! Why a root or a state is refused.

use std::fmt;

use crate::thin::ThinId;

/// What shows that a state is older than its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StateAge {
    /// The pool's generation has risen since.
    Generation {
        /// The state's generation.
        state: u64,
        /// The pool's.
        pool: u64,
    },
    /// A volume that the state does not know was in use.
    UnknownVolume {
        /// Its thin device id.
        thin_id: ThinId,
    },
}

impl fmt::Display for StateAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation { state, pool } => write!(f, "generation {state}, pool {pool}"),
            Self::UnknownVolume { thin_id } => {
                write!(f, "thin device {thin_id} was in use, and the state does not know it")
            }
        }
    }
}

/// What keeps a directory from being a tree's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RootProblem {
    /// It is not a directory.
    NotDirectory,
    /// It is a symbolic link.
    Symlink,
    /// Other users can write to it.
    WritableByOthers {
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    WrongOwner {
        /// Its owner.
        uid: u32,
    },
}

impl fmt::Display for RootProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDirectory => f.write_str("not a directory"),
            Self::Symlink => f.write_str("a symbolic link"),
            Self::WritableByOthers { mode } => write!(f, "writable by others (mode {mode:04o})"),
            Self::WrongOwner { uid } => write!(f, "owned by user {uid}"),
        }
    }
}
