//! Files and directories: the host's, as far as they are not in a file system of the model. What is not synced is lost
//! with the power.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;

use super::ModelKernel;
use super::file_tree::Node;
use super::world::World;
use crate::kernel::{Directory, Entry, FileLock, FileStatus, Files, Links, RealKernel};
use crate::units::Bytes;

impl ModelKernel {
    /// A call on what has a name in a directory.
    fn named<R>(
        &self,
        call: &'static str,
        above: &Directory,
        name: &OsStr,
        act: impl FnOnce(&mut World) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.call(call, above.path().join(name).display(), act)
    }

    /// A call that makes a name, as `node` in a file system of the model.
    fn making(
        &self,
        call: &'static str,
        above: &Directory,
        name: &OsStr,
        node: Node,
        make: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.named(call, above, name, |world| {
            if let Some(inside) = world.inside(above, Some(name)) {
                return world.make_inside(&inside, node);
            }
            make()?;
            world.store.made(above, name)
        })
    }

    /// A call that removes a name.
    fn removing(
        &self,
        call: &'static str,
        above: &Directory,
        name: &OsStr,
        remove: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.named(call, above, name, |world| {
            if world.mounted_on(&above.path().join(name)).is_some() {
                return Err(Errno::EBUSY);
            }
            if let Some(inside) = world.inside(above, Some(name)) {
                return world.remove_inside(&inside, call == "rmdir");
            }
            remove()?;
            world.store.unmade(above, name);
            Ok(())
        })
    }
}
fn file_name(file: &File) -> impl Display {
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    path.map_or_else(|_| "file".to_owned(), |path| path.display().to_string())
}

impl Files for ModelKernel {
    fn open_directory(&self, path: &Path, links: Links) -> Result<Directory, Errno> {
        self.call("opendir", path.display(), |world| {
            Directory::open(path, links).map(|directory| world.mounted(directory))
        })
    }

    fn enter_directory(&self, above: &Directory, name: &OsStr) -> Result<Directory, Errno> {
        self.named("opendir", above, name, |world| match world.inside(above, Some(name)) {
            Some(inside) => world.enter_inside(above, &inside),
            None => above.enter(name).map(|directory| world.mounted(directory)),
        })
    }

    fn make_directory(&self, above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno> {
        let make = || RealKernel.make_directory(above, name, mode);
        self.making("mkdir", above, name, Node::Directory, make)
    }

    fn remove_directory(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        self.removing("rmdir", above, name, || RealKernel.remove_directory(above, name))
    }

    fn entry(&self, above: &Directory, name: &OsStr) -> Result<Entry, Errno> {
        self.named("lstat", above, name, |world| match world.inside(above, Some(name)) {
            Some(inside) => world.entry_inside(&inside),
            None => RealKernel.entry(above, name),
        })
    }

    fn make_file(&self, above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno> {
        let make = || RealKernel.make_file(above, name, mode);
        self.making("creat", above, name, Node::File(Vec::new()), make)
    }

    fn make_symlink(&self, above: &Directory, name: &OsStr, text: &Path) -> Result<(), Errno> {
        let make = || RealKernel.make_symlink(above, name, text);
        self.making("symlink", above, name, Node::Symlink(text.to_owned()), make)
    }

    fn remove_file(&self, above: &Directory, name: &OsStr) -> Result<(), Errno> {
        self.removing("unlink", above, name, || RealKernel.remove_file(above, name))
    }

    /// Files of the host: what is in a file system of the model cannot be opened.
    fn open_file(&self, above: &Directory, name: &OsStr, create: bool) -> Result<File, Errno> {
        self.named("open", above, name, |world| {
            if world.inside(above, None).is_some() {
                return Err(Errno::EOPNOTSUPP);
            }
            let is_new = RealKernel.entry(above, name) == Err(Errno::ENOENT);
            let file = RealKernel.open_file(above, name, create)?;
            if is_new {
                world.store.made(above, name)?;
            }
            Ok(file)
        })
    }

    fn sync_directory(&self, directory: &Directory) -> Result<(), Errno> {
        self.call("fsync", directory.path().display(), |world| match world.inside(directory, None) {
            Some(inside) => world.write_back(inside.number),
            None => world.store.sync_names(directory),
        })
    }

    fn sync_filesystem(&self, directory: &Directory) -> Result<(), Errno> {
        self.call("syncfs", directory.path().display(), |world| match world.inside(directory, None) {
            Some(inside) => world.write_back(inside.number),
            None => {
                world.store.sync_all();
                Ok(())
            }
        })
    }

    /// File systems on volumes have no blocks here.
    fn trim_filesystem(&self, directory: &Directory) -> Result<Bytes, Errno> {
        self.call("FITRIM", directory.path().display(), |world| match world.inside(directory, None) {
            Some(_) => Ok(Bytes(0)),
            None => Err(Errno::EOPNOTSUPP),
        })
    }

    fn lock_directory(&self, directory: &Directory) -> Result<FileLock, Errno> {
        self.call("flock", directory.path().display(), |_| RealKernel.lock_directory(directory))
    }

    fn file_status(&self, file: BorrowedFd<'_>) -> Result<FileStatus, Errno> {
        self.call("fstat", "file", |_| RealKernel.file_status(file))
    }

    fn free_space(&self, file: BorrowedFd<'_>) -> Result<Bytes, Errno> {
        self.call("statvfs", "file", |world| match world.store.full {
            true => Ok(Bytes(0)),
            false => RealKernel.free_space(file),
        })
    }

    fn resize_file(&self, file: &File, size: Bytes) -> Result<(), Errno> {
        self.call("ftruncate", file_name(file), |world| world.store.resize(file, size.0))
    }

    fn allocate_file(&self, file: &File, from: Bytes, size: Bytes) -> Result<(), Errno> {
        self.call("fallocate", file_name(file), |world| world.store.allocate(file, from, size))
    }

    fn sync_file(&self, file: &File) -> Result<(), Errno> {
        self.call("fsync", file_name(file), |world| world.store.sync(file))
    }
}
