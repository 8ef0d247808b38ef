//! What must exist in every snapshot's file system, whatever the snapshot was made from.
//!
//! It is applied when a snapshot is mounted for the first time, so that it lies above what its parents
//! hold. Applying it twice is as good as once; that it was applied is recorded when it is on the disk.
//!
//! The file system is untrusted: no symbolic link in it is followed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::kernel::{Directory, Entry, Files};
use crate::tree::{Error, Result};

/// Files, directories and symbolic links that must exist in every snapshot.
///
/// Missing parent directories are made. A file of another type in an entry's place is removed, except a
/// directory that is not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitLayer {
    entries: Vec<(PathBuf, Kind)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Symlink(PathBuf),
}

impl InitLayer {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file, such as `/etc/hosts`; created empty, mode 0755, if it is missing.
    #[must_use]
    pub fn file(self, path: impl Into<PathBuf>) -> Self {
        self.entry(path, Kind::File)
    }

    /// A directory, such as `/dev/shm`; created with mode 0755 if it is missing.
    #[must_use]
    pub fn directory(self, path: impl Into<PathBuf>) -> Self {
        self.entry(path, Kind::Directory)
    }

    /// A symbolic link with that text, such as `/etc/mtab` to `/proc/mounts`.
    #[must_use]
    pub fn symlink(self, path: impl Into<PathBuf>, text: impl Into<PathBuf>) -> Self {
        self.entry(path, Kind::Symlink(text.into()))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(mut self, path: impl Into<PathBuf>, kind: Kind) -> Self {
        self.entries.push((path.into(), kind));
        self
    }

    /// What the state records: another layer has another one. A CRC of the entries, each as its kind (`f`, `d`, `l`),
    /// its path, and the text of a link: before each its length in eight bytes, least significant first.
    pub(in crate::tree) fn fingerprint(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut text = |path: &Path| {
            let bytes = path.as_os_str().as_bytes();
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (path, kind) in &self.entries {
            let (letter, link) = match kind {
                Kind::File => ("f", None),
                Kind::Directory => ("d", None),
                Kind::Symlink(link) => ("l", Some(link)),
            };
            text(letter.as_ref());
            text(path);
            link.into_iter().for_each(|link| text(link));
        }
        hasher.finalize()
    }

    /// Refuses paths that mean nothing.
    pub(in crate::tree) fn check(&self) -> Result<()> {
        for (path, _) in &self.entries {
            names(path)?;
        }
        Ok(())
    }

    /// Sees to it that everything is there below `root`, and on the disk.
    pub(in crate::tree) fn apply(&self, files: &dyn Files, root: &Directory) -> Result<()> {
        for (path, kind) in &self.entries {
            let made = make(files, root, &names(path)?, kind);
            made.map_err(Error::io("make", root.path().join(path.strip_prefix("/").unwrap_or(path))))?;
        }
        files.sync_filesystem(root).map_err(Error::io("sync", root.path()))
    }
}

fn names(path: &Path) -> Result<Vec<OsString>> {
    let invalid =
        |reason| Error::InvalidOption { option: "init layer", value: path.display().to_string(), reason };
    let names = path.components().filter(|component| *component != Component::RootDir);
    let names: Vec<_> = names
        .map(|component| match component {
            Component::Normal(name) => Ok(name.to_owned()),
            _ => Err(invalid("contains \"..\" or begins with \".\"")),
        })
        .collect::<Result<_>>()?;
    if names.is_empty() { Err(invalid("names nothing")) } else { Ok(names) }
}

const MODE: u32 = 0o755;

fn make(files: &dyn Files, root: &Directory, names: &[OsString], kind: &Kind) -> Result<(), Errno> {
    let Some((last, parents)) = names.split_last() else { return Ok(()) };
    let mut entered = None;
    for name in parents {
        entered = Some(enter(files, entered.as_ref().unwrap_or(root), name)?);
    }
    let directory = entered.as_ref().unwrap_or(root);
    let found = match files.entry(directory, last) {
        Err(Errno::ENOENT) => None,
        found => Some(found?),
    };
    match (kind, found) {
        (Kind::File, Some(Entry::File)) => return Ok(()),
        (Kind::Symlink(text), Some(Entry::Symlink(found))) if *text == found => return Ok(()),
        (Kind::Directory, _) => return enter(files, directory, last).map(drop),
        (_, Some(Entry::Directory)) => files.remove_directory(directory, last)?,
        (_, Some(_)) => files.remove_file(directory, last)?,
        (_, None) => {}
    }
    match kind {
        Kind::Symlink(text) => files.make_symlink(directory, last, text),
        _ => files.make_file(directory, last, MODE),
    }
}

/// Opens a directory, making it if there is something else or nothing.
fn enter(files: &dyn Files, above: &Directory, name: &OsStr) -> Result<Directory, Errno> {
    match files.enter_directory(above, name) {
        Err(Errno::ENOENT) => {}
        // A symbolic link is ELOOP or ENOTDIR.
        Err(Errno::ENOTDIR | Errno::ELOOP) => files.remove_file(above, name)?,
        result => return result,
    }
    files.make_directory(above, name, MODE)?;
    files.enter_directory(above, name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::kernel::{Links, RealKernel};

    fn apply(root: &Path) -> Result<()> {
        layer().apply(&RealKernel, &Directory::open(root, Links::All).unwrap())
    }

    fn layer() -> InitLayer {
        let layer =
            InitLayer::new().directory("/dev/shm").file("/etc/hosts").symlink("etc/mtab", "/proc/mounts");
        layer.directory("/proc")
    }

    #[test]
    fn everything_is_there_however_often() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for _ in 0..2 {
            apply(root.path()).unwrap();
            assert!(path("dev/shm").is_dir() && path("proc").is_dir());
            assert_eq!(fs::read_link(path("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
            fs::write(path("etc/hosts"), "kept").unwrap();
        }
        apply(root.path()).unwrap();
        assert_eq!(fs::read_to_string(path("etc/hosts")).unwrap(), "kept");
    }

    #[test]
    fn what_is_in_the_way_goes_and_nothing_outside_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("hosts"), "theirs").unwrap();
        let path = |name: &str| root.path().join(name);
        // As in ubuntu:12.10, and worse.
        fs::create_dir(path("dev")).unwrap();
        symlink("/run/shm", path("dev/shm")).unwrap();
        symlink(outside.path(), path("etc")).unwrap();
        fs::write(path("proc"), "a file").unwrap();
        apply(root.path()).unwrap();
        assert!(path("dev/shm").symlink_metadata().unwrap().is_dir());
        assert!(path("etc").symlink_metadata().unwrap().is_dir() && path("proc").is_dir());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(outside.path().join("hosts")).unwrap(), "theirs");
    }

    #[test]
    fn a_full_directory_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/hosts/sub")).unwrap();
        let error = apply(root.path()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOTEMPTY), "{error}");
    }

    #[test]
    fn paths() {
        for path in ["", "/", "a/../b", "./a", "../a"] {
            assert!(InitLayer::new().file(path).check().is_err(), "{path}");
        }
        assert_ne!(layer().fingerprint(), layer().file("x").fingerprint());
        // Recorded in states: it is the same for every version of this crate and of Rust.
        let layer = InitLayer::new().file("/a").directory("b").symlink("c", OsStr::from_bytes(b"\xff"));
        assert_eq!(layer.fingerprint(), 3_058_476_209);
        assert_ne!(
            InitLayer::new().file("ab").fingerprint(),
            InitLayer::new().file("a").file("b").fingerprint()
        );
    }
}
