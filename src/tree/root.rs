//! The directory of a tree: checked, private, and one manager's at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::files::StateDir;
use crate::kernel::DeviceNumber;
use crate::{Error, Result, RootProblem};

/// A root that this process has locked.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) device: DeviceNumber,
    pub(super) inode: u64,
    /// Whether this call made it.
    made: bool,
    _lock: Flock<File>,
}

impl Root {
    /// Take `path` as a root, making it if it is not there.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Locked`], [`Error::Io`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let made = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(Error::io("create", path)(error)),
        };
        let metadata = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
        let problem = match metadata.mode() & 0o7777 {
            _ if metadata.is_symlink() => Some(RootProblem::Symlink),
            _ if !metadata.is_dir() => Some(RootProblem::NotDirectory),
            _ if metadata.uid() != nix::unistd::geteuid().as_raw() => {
                Some(RootProblem::WrongOwner { uid: metadata.uid() })
            }
            mode if mode & 0o022 != 0 => Some(RootProblem::WritableByOthers { mode }),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(Error::Root { path: path.into(), problem });
        }
        let path = path.canonicalize().map_err(Error::io("resolve", path))?;
        let lock = lock(&path).inspect_err(|_| {
            if made {
                let _ = fs::remove_dir(&path);
            }
        })?;
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        let device = DeviceNumber::from_dev_t(metadata.dev().try_into().unwrap_or_default());
        Ok(Self { path, device, inode: metadata.ino(), made, _lock: lock })
    }

    /// Where the files of the pool are.
    pub(super) fn pool_dir(&self) -> PathBuf {
        self.path.join("pool")
    }

    /// Undo what making a tree left, when that failed: everything is this call's own.
    pub(super) fn clear(self, dir: &dyn StateDir) {
        // The state goes first, durably: with a state, the pool it speaks of has to be there.
        if dir.remove("state.json").is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
            || dir.sync().is_err()
        {
            return;
        }
        for name in ["state.json.tmp", "journal.jsonl", "mounts.json", "mounts.json.tmp"] {
            let _ = dir.remove(name);
        }
        for name in ["pool/data", "pool/metadata"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::remove_dir(self.pool_dir());
        // From here on another manager can begin.
        let _ = fs::remove_file(self.path.join("lock"));
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn lock(root: &Path) -> Result<Flock<File>> {
    let path = root.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).map_err(Error::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::Locked { path: root.into() },
        errno => Error::io("lock", &path)(errno.into()),
    })
}
