//! The directory of a tree: checked, private, and one manager's at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::files::{RealDir, StateDir};
use crate::kernel::DeviceNumber;
use crate::{Error, Result, RootProblem};

/// A root that this process has locked.
#[derive(Debug)]
pub(super) struct Root {
    /// Where it was when it was opened.
    pub(super) path: PathBuf,
    pub(super) device: DeviceNumber,
    pub(super) inode: u64,
    /// Whether this call made it.
    made: bool,
    lock: Lock,
}

/// `flock(2)` on the directory itself, which outlasts whatever is done to the names in it and to its own.
#[derive(Debug)]
struct Lock {
    directory: Option<Flock<File>>,
    pid: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // A child of fork shares the lock: to unlock here would unlock the parent's tree.
            std::mem::forget(self.directory.take());
        }
    }
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
        let refused = |problem| Error::Root { path: path.into(), problem };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        let directory = options.open(path).map_err(|error| match fs::symlink_metadata(path) {
            Ok(found) if found.is_symlink() => refused(RootProblem::Symlink),
            Ok(found) if !found.is_dir() => refused(RootProblem::NotDirectory),
            _ => Error::io("open", path)(error),
        })?;
        let metadata = directory.metadata().map_err(Error::io("stat", path))?;
        match metadata.mode() & 0o7777 {
            _ if metadata.uid() != nix::unistd::geteuid().as_raw() => {
                return Err(refused(RootProblem::WrongOwner { uid: metadata.uid() }));
            }
            mode if mode & 0o022 != 0 => return Err(refused(RootProblem::WritableByOthers { mode })),
            _ => {}
        }
        let current = current_path(&directory).map_err(Error::io("resolve", path))?;
        let directory = Flock::lock(directory, FlockArg::LockExclusiveNonblock);
        let directory = directory.map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Locked { path: current.clone() },
            errno => Error::io("lock", &current)(errno.into()),
        })?;
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        let device = DeviceNumber::from_dev_t(metadata.dev().try_into().unwrap_or_default());
        let lock = Lock { directory: Some(directory), pid: std::process::id() };
        Ok(Self { path: current, device, inode: metadata.ino(), made, lock })
    }

    /// The files in it, found through its descriptor.
    pub(super) fn files(&self) -> Result<RealDir> {
        let directory = self
            .lock
            .directory
            .as_deref()
            .map_or_else(|| Err(io::Error::from(Errno::EBADF)), File::try_clone);
        directory.map(RealDir::new).map_err(Error::io("open", &self.path))
    }

    /// # Errors
    /// [`Error::Forked`] in a child of the process that opened the tree.
    pub(super) fn check_process(&self) -> Result<()> {
        let pid = self.lock.pid;
        if pid == std::process::id() { Ok(()) } else { Err(Error::Forked { pid }) }
    }

    /// Where it is now: somebody may have renamed it.
    pub(super) fn current_path(&self) -> PathBuf {
        let current = self.lock.directory.as_deref().map(current_path);
        current.and_then(std::result::Result::ok).unwrap_or_else(|| self.path.clone())
    }

    /// `-<major>:<minor>-<inode>-<what>`: the end of the names of this root's devices.
    pub(super) fn suffix(&self, what: &str) -> String {
        format!("-{}-{}-{what}", self.device, self.inode)
    }

    /// Where the files of the pool are.
    pub(super) fn pool_dir(&self) -> PathBuf {
        self.current_path().join("pool")
    }

    /// Undo what making a tree left, when that failed: everything is this call's own.
    pub(super) fn clear(self, dir: &dyn StateDir) {
        // The state goes first, durably: with a state, the pool it speaks of has to be there.
        if dir.remove("state.json").is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
            || dir.sync().is_err()
        {
            return;
        }
        for name in
            ["lock", "state.json.tmp", "journal.jsonl", "mounts.json", "mounts.json.tmp", "metadata-snapshot"]
        {
            let _ = dir.remove(name);
        }
        for name in ["pool/data", "pool/metadata"] {
            let _ = fs::remove_file(self.current_path().join(name));
        }
        let _ = fs::remove_dir(self.pool_dir());
        if self.made {
            let _ = fs::remove_dir(self.current_path());
        }
    }
}

fn current_path(directory: &File) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dm::UdevPolicy;
    use crate::model::ModelKernel;
    use crate::tree::{Filesystem, Options, Parent, SnapshotTree};

    #[test]
    fn a_child_of_fork_writes_nothing_and_unlocks_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
        let options = options.kernel(Arc::new(ModelKernel::new()));
        let mut tree = SnapshotTree::open(&path, options.clone()).unwrap();
        let journal = fs::read(path.join("journal.jsonl")).unwrap();
        // As in a child: the same values, another process.
        tree.root.lock.pid += 1;
        let pid = tree.root.lock.pid;
        for result in [tree.add("a", Parent::Base), tree.remove("a"), tree.close(), tree.reap().map(drop)] {
            assert!(matches!(result, Err(Error::Forked { pid: it }) if it == pid), "{result:?}");
        }
        assert_eq!(fs::read(path.join("journal.jsonl")).unwrap(), journal);
        drop(tree);
        // The parent's tree is still locked.
        assert!(matches!(SnapshotTree::open(&path, options), Err(Error::Locked { .. })));
    }
}
