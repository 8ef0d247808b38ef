//! The directory of a tree: checked, private, and one manager's at a time.

use std::ffi::OsStr;
use std::fs::File; // open ones, which `kernel::Files` or a caller gives out
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use crate::kernel::{DeviceNumber, Directory, Entry, FileLock, Files, Kernel, Links};
use crate::tree::holders;
use crate::tree::state::files::{RealDir, StateDir};
use crate::tree::state::store::JOURNALS;
use crate::tree::{Error, Result, RootProblem};

const POOL: &str = "pool";

/// A root that this process has locked.
#[derive(Debug)]
pub(in crate::tree) struct Root {
    kernel: Arc<dyn Kernel>,
    /// Where it was when it was opened.
    pub(in crate::tree) path: PathBuf,
    pub(in crate::tree) device: DeviceNumber,
    pub(in crate::tree) inode: u64,
    /// Every file of it is found from here.
    directory: Directory,
    /// The directory that it is in; none if the path has no parent.
    above: Option<Directory>,
    /// Whether this call made it.
    made: bool,
    /// Of the directory itself: it outlasts whatever is done to the names in it and to its own.
    lock: FileLock,
}

impl Root {
    /// Opens `path` as a root, creating it if it is missing.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Locked`], [`Error::Io`].
    pub(in crate::tree) fn open(kernel: &Arc<dyn Kernel>, path: &Path) -> Result<Self> {
        let files = kernel.files();
        let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
        let (Some(above), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            // `/`, or something that ends in `..`.
            let directory = files.open_directory(&absolute, Links::All).map_err(Error::io("open", path))?;
            return Self::lock(kernel, path, directory);
        };
        let above = files.open_directory(above, Links::All).map_err(Error::above("create", &absolute))?;
        let made = match files.make_directory(&above, name, 0o700) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(Error::io("create", path)(errno)),
        };
        match enter(files, &above, name, path).and_then(|root| Self::lock(kernel, path, root)) {
            Ok(root) => Ok(Self { made, above: Some(above), ..root }),
            Err(error) => {
                if made {
                    // Best effort: return the original error.
                    let _ = files.remove_directory(&above, name);
                }
                Err(error)
            }
        }
    }

    fn lock(kernel: &Arc<dyn Kernel>, path: &Path, directory: Directory) -> Result<Self> {
        let files = kernel.files();
        let refused = |problem| Error::Root { path: path.into(), problem };
        let status = files.file_status(directory.as_fd()).map_err(Error::io("stat", path))?;
        if status.owner != nix::unistd::geteuid().as_raw() {
            return Err(refused(RootProblem::WrongOwner { uid: status.owner }));
        }
        if status.mode & 0o022 != 0 {
            return Err(refused(RootProblem::WritableByOthers { mode: status.mode }));
        }
        let current = directory.path().to_owned();
        let lock = files.lock_directory(&directory).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => {
                let holder = holders::of_lock(&**kernel, &directory);
                Error::Locked { path: current.clone(), holder }
            }
            errno => Error::io("lock", &current)(errno),
        })?;
        let (kernel, device, inode) = (kernel.clone(), status.device, status.inode);
        Ok(Self { kernel, path: current, device, inode, directory, above: None, made: false, lock })
    }

    /// The files in it, found through its descriptor.
    pub(in crate::tree) fn files(&self) -> Result<RealDir> {
        self.lock.file().map(RealDir::new).map_err(Error::io("open", &self.path))
    }

    /// # Errors
    /// [`Error::Forked`] in a child of the process that opened the tree.
    pub(in crate::tree) fn check_process(&self) -> Result<()> {
        Error::check_process(self.lock.owner())
    }

    /// Its current path: it may have been renamed.
    pub(in crate::tree) fn current_path(&self) -> PathBuf {
        self.directory.current_path()
    }

    /// Makes its name durable, whoever made it: what is in it must not be lost with the name.
    pub(in crate::tree) fn sync_name(&self) -> Result<()> {
        match self.above.as_ref().map_or(Ok(()), |above| self.kernel.files().sync_directory(above)) {
            // A mount point, in a file system that nothing is made in.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(Error::io("sync", &self.path)(errno)),
        }
    }

    /// A file of it that belongs to no part of the state.
    pub(in crate::tree) fn file(&self, name: &str, create: bool) -> Result<File, Errno> {
        self.kernel.files().open_file(&self.directory, name.as_ref(), create)
    }

    /// Where the files of the pool are.
    pub(in crate::tree) fn pool_path(&self) -> PathBuf {
        self.current_path().join(POOL)
    }

    /// The directory with the files of the pool.
    pub(in crate::tree) fn pool(&self) -> Result<Directory, Errno> {
        self.kernel.files().enter_directory(&self.directory, POOL.as_ref())
    }

    /// Makes that directory, if it is not there, and its name durable.
    pub(in crate::tree) fn make_pool(&self) -> Result<Directory, Errno> {
        match self.kernel.files().make_directory(&self.directory, POOL.as_ref(), 0o700) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.kernel.files().sync_directory(&self.directory)?;
        self.pool()
    }

    /// One of the files of the pool. ENOENT if it does not exist.
    pub(in crate::tree) fn pool_file(&self, name: &str) -> Result<File, Errno> {
        self.kernel.files().open_file(&self.pool()?, name.as_ref(), false)
    }

    /// Removes the files of a tree whose creation failed; this call made all of them.
    pub(in crate::tree) fn clear(self, dir: &dyn StateDir) {
        // The state goes first, durably: with a state, the pool it speaks of has to be there.
        if dir.remove("state.json").is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound)
            || dir.sync().is_err()
        {
            return;
        }
        let [first, second] = JOURNALS;
        for name in ["lock", "state.json.tmp", first, second, "mounts.0", "mounts.1", "metadata-snapshot"] {
            // Best effort: the error that undoes the tree is returned. Most of them are not there.
            let _ = dir.remove(name);
        }
        let files = self.kernel.files();
        if let Ok(pool) = self.pool() {
            for name in ["data", "metadata"] {
                // Best effort, as above.
                let _ = files.remove_file(&pool, name.as_ref());
            }
            // It stays if another program put something into it.
            let _ = files.remove_directory(&self.directory, POOL.as_ref());
        }
        if let (true, Some(above), Some(name)) = (self.made, &self.above, self.current_path().file_name()) {
            // As above. Moved elsewhere meanwhile, it stays there, and is empty.
            let _ = files.remove_directory(above, name);
        }
    }
}

/// Opens the directory `name`, which an error calls `path`.
fn enter(files: &dyn Files, above: &Directory, name: &OsStr, path: &Path) -> Result<Directory> {
    files.enter_directory(above, name).map_err(|errno| match (errno, files.entry(above, name)) {
        (Errno::ENOTDIR | Errno::ELOOP, Ok(Entry::Symlink(_))) => {
            Error::Root { path: path.into(), problem: RootProblem::Symlink }
        }
        (Errno::ENOTDIR, Ok(_)) => Error::Root { path: path.into(), problem: RootProblem::NotDirectory },
        _ => Error::io("open", path)(errno),
    })
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use std::fs;

    use super::*;
    use crate::dm::UdevPolicy;
    use crate::model::ModelKernel;
    use crate::tree::{Filesystem, Options, Parent, SnapshotTree};

    #[test]
    fn a_child_of_fork_writes_nothing_and_unlocks_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
        let options = options.kernel(Arc::new(ModelKernel::new())).background_threads(false);
        let mut tree = SnapshotTree::open(&path, options.clone()).unwrap();
        let journal = fs::read(path.join("journal.0")).unwrap();
        // As in a child: the same values, another process.
        Arc::get_mut(&mut tree.root).unwrap().lock.inherit();
        let pid = std::process::id() + 1;
        for result in [tree.add("a", Parent::Base), tree.remove("a"), tree.close(), tree.reap().map(drop)] {
            assert!(matches!(result, Err(Error::Forked { pid: it }) if it == pid), "{result:?}");
        }
        assert_eq!(fs::read(path.join("journal.0")).unwrap(), journal);
        drop(tree);
        // The parent's tree is still locked.
        assert!(matches!(SnapshotTree::open(&path, options), Err(Error::Locked { .. })));
    }
}
