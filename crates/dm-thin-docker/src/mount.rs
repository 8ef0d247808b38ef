//! The content of a device, mounted from a copy.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use dm_thin::loopdev::{AttachOptions, LoopControl};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::export::{directory_of, write_new};
use crate::{Device, Error, Result, Store, tar_rootfs};

/// What was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Archived {
    /// Number of entries.
    pub entries: u64,
    /// Whether the file system's journal could be read. If not, files that were written last can be incomplete.
    pub consistent: bool,
}

impl Store {
    /// Writes the content of a device, its directory `rootfs`, to a new tar archive, as [`tar_rootfs`] does.
    ///
    /// The device is copied to a nameless sparse file beside the archive, which is mounted read-only in a mount namespace
    /// of its own; what the file system's journal has to replay is replayed in the copy. Nothing is left of either,
    /// however the process ends. The kernel parses the file system: do not mount what an enemy could have made.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] without root; [`Error::NoFilesystem`], [`Error::Mount`], [`Error::NoRootfs`];
    /// as [`export_raw_to`](Self::export_raw_to).
    pub fn export_tar(&self, device: &Device, path: impl AsRef<Path>) -> Result<Archived> {
        let path = path.as_ref();
        // A mount namespace is a thread's. It and its mounts end with the thread.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| write_new(path, |file| self.archive(device, path, file)));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn archive(&self, device: &Device, path: &Path, output: &File) -> Result<Archived> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(Error::not_permitted)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(Error::not_permitted)?;
        let name = || device.name.clone();
        let readable = self.readable(device)?;
        let filesystem = readable.pool.filesystem(readable.id).map_err(|source| readable.damaged(source))?;
        let filesystem = filesystem.ok_or_else(|| Error::NoFilesystem { device: name() })?;

        let write = |source| Error::Write { path: None, source };
        let copy = tempfile::tempfile_in(directory_of(path)).map_err(write)?;
        self.export_raw(device, &copy)?;
        let options = AttachOptions::new().autoclear(true);
        let attached = LoopControl::open().and_then(|control| control.attach(&copy, path, &options));
        let attached = attached?;
        let target = tempfile::tempdir().map_err(write)?;

        let (options, without_journal) = match filesystem.kind {
            "xfs" => (Some("nouuid"), "nouuid,norecovery"),
            _ => (None, "noload"),
        };
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mount =
            |options| mount(Some(&attached.path()), target.path(), Some(filesystem.kind), flags, options);
        let consistent = match mount(options) {
            Ok(()) => true,
            Err(_) => {
                mount(Some(without_journal)).map_err(|errno| Error::Mount { device: name(), errno })?;
                false
            }
        };
        // A panic or an error leaves it to the end of the namespace.
        let archived = tar_rootfs(target.path(), BufWriter::with_capacity(1 << 20, output));
        nix::mount::umount(target.path()).map_err(|errno| Error::Mount { device: name(), errno })?;
        let entries = archived.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotADirectory => Error::NoRootfs { device: name() },
            _ => write(source),
        })?;
        Ok(Archived { entries, consistent })
    }
}

impl Error {
    fn not_permitted(errno: Errno) -> Self {
        Self::NotPermitted { errno }
    }
}
