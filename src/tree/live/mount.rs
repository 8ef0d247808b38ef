//! Mounts: reserved and recognised by what they are, not by their paths.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::kernel::{DeviceNumber, Directory, Kernel, Links, MountId};
use crate::thin::ThinId;
use crate::tree::mount_table::is_listed;
use crate::tree::state::files::{StateDir, read_at_most};
use crate::tree::{Error, Result};

/// A directory by the one above it and its name: what is mounted on it, and what it covers, are found from there.
#[derive(Debug)]
pub(in crate::tree) struct MountPoint {
    pub(in crate::tree) above: Directory,
    pub(in crate::tree) name: OsString,
}

impl MountPoint {
    pub(in crate::tree) fn open(kernel: &dyn Kernel, path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
        let (Some(above), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(bad_target(path, "does not end in the name of a directory"));
        };
        let directory = kernel.files().open_directory(above, Links::Trusted);
        let directory = directory.map_err(Error::above("open", &absolute))?;
        Ok(Self { above: directory, name: name.to_owned() })
    }

    pub(in crate::tree) fn path(&self) -> PathBuf {
        self.above.path().join(&self.name)
    }

    /// The directory, or what is mounted on it; `None` if it does not exist.
    pub(in crate::tree) fn top(&self, kernel: &dyn Kernel) -> Result<Option<Directory>> {
        match kernel.files().enter_directory(&self.above, &self.name) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                Err(bad_target(&self.path(), "not a directory; a symbolic link is not followed"))
            }
            Err(errno) => Err(Error::io("open", self.path())(errno)),
        }
    }

    pub(in crate::tree) fn is_same(&self, other: &Self) -> bool {
        self.above.mount() == other.above.mount()
            && self.above.inode() == other.above.inode()
            && self.name == other.name
    }

    /// Removes the directory, if it is the one of that identity and empty.
    pub(in crate::tree) fn remove(&self, kernel: &dyn Kernel, covered: Covered) {
        if self.top(kernel).is_ok_and(|top| top.is_some_and(|top| Covered::of(&top) == covered)) {
            // Somebody may have put something into it: then it is theirs now.
            let _ = kernel.files().remove_directory(&self.above, &self.name);
        }
    }
}

pub(in crate::tree) fn bad_target(path: &Path, reason: &'static str) -> Error {
    Error::InvalidOption { option: "mount target", value: path.display().to_string(), reason }
}

/// Identity of a directory that is mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::tree) struct Covered {
    device: DeviceNumber,
    inode: u64,
}

impl Covered {
    pub(in crate::tree) fn of(directory: &Directory) -> Self {
        Self { device: directory.mount().device, inode: directory.inode() }
    }
}

/// A mount of a volume, and how often it was asked for.
#[derive(Debug)]
pub(in crate::tree) struct Mounted {
    pub(in crate::tree) target: PathBuf,
    pub(in crate::tree) count: u32,
    pub(in crate::tree) id: MountId,
    pub(in crate::tree) place: MountPoint,
}

impl Mounted {
    /// A path that leads there whatever happens to the names above it.
    pub(in crate::tree) fn path(&self) -> PathBuf {
        self.place.above.proc_path().join(&self.place.name)
    }

    pub(in crate::tree) fn id(&self) -> MountId {
        self.id
    }

    /// Its own directory. Nobody can unmount it as long as that is open.
    pub(in crate::tree) fn root(&self, kernel: &dyn Kernel) -> Result<Directory> {
        let covered = || Error::Covered { target: self.target.clone() };
        self.place.top(kernel)?.filter(|top| top.mount() == self.id).ok_or_else(covered)
    }
}

/// What is noted of a mount before it is made, for the next manager if this one dies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::tree) struct Note {
    pub(in crate::tree) target: PathBuf,
    /// The volume's.
    pub(in crate::tree) device: DeviceNumber,
    pub(in crate::tree) covered: Covered,
    /// This tree made the directory, and removes it.
    pub(in crate::tree) made: bool,
    /// For growing a file system: the next manager unmounts it.
    pub(in crate::tree) temporary: bool,
    /// `None` while it is being mounted.
    pub(in crate::tree) mount: Option<MountId>,
}

const NOTES: &str = "mounts.json";

/// More than any notes are long.
const NOTES_MAX: u64 = 256 << 20;

const NOTES_TMP: &str = "mounts.json.tmp";

/// The mounts that this tree made, by the volumes. They are noted in a file of the root, which is not synced: mounts
/// do not outlive a power cut either. A mount without a note is another program's.
#[derive(Debug)]
pub(in crate::tree) struct Mounts {
    dir: Arc<dyn StateDir>,
    notes: Mutex<BTreeMap<ThinId, Note>>,
}

impl Mounts {
    pub(in crate::tree) fn load(dir: Arc<dyn StateDir>) -> Self {
        let bytes =
            dir.open(NOTES, false).and_then(|file| read_at_most(&*file, NOTES_MAX)).unwrap_or_default();
        // Unreadable: then every mount counts as another program's.
        let notes = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { dir, notes: Mutex::new(notes) }
    }

    pub(in crate::tree) fn notes(&self) -> MutexGuard<'_, BTreeMap<ThinId, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, notes: &BTreeMap<ThinId, Note>) -> Result<()> {
        let write = || {
            let bytes = serde_json::to_vec(notes)?;
            let file = self.dir.open(NOTES_TMP, true)?;
            file.set_len(0)?;
            file.write_at(0, &bytes)?;
            self.dir.rename(NOTES_TMP, NOTES)
        };
        write().map_err(Error::io("write", NOTES))
    }

    /// Reserves a directory for a volume; `Err(Ok(other))` if another one has it.
    pub(in crate::tree) fn reserve(
        &self,
        kernel: &dyn Kernel,
        id: ThinId,
        note: Note,
        (place, top): (&MountPoint, &Directory),
    ) -> Result<(), Result<ThinId, Error>> {
        let mut notes = self.notes();
        let is_mount = top.mount() != place.above.mount();
        for (&other, it) in notes.iter_mut().filter(|(other, _)| **other != id) {
            let same = it.covered == note.covered || (is_mount && it.device == top.mount().device);
            // A mount that another program took down does not conflict.
            if same && it.mount.map_or(Ok(true), |mount| is_listed(kernel, mount)).map_err(Err)? {
                // The directory that this call has just made serves the other one.
                it.made |= note.made;
                return Err(Ok(other));
            }
        }
        notes.insert(id, note);
        self.write(&notes).map_err(Err).inspect_err(|_| drop(notes.remove(&id)))
    }

    pub(in crate::tree) fn confirm(&self, id: ThinId, mount: MountId) {
        let mut notes = self.notes();
        if let Some(note) = notes.get_mut(&id) {
            note.mount = Some(mount);
            // The note that is there names device and target.
            let _ = self.write(&notes);
        }
    }

    /// There is no mount.
    pub(in crate::tree) fn release(&self, id: ThinId) {
        let mut notes = self.notes();
        notes.remove(&id);
        // A note without a mount is passed over by the next manager.
        let _ = self.write(&notes);
    }

    /// The mount is gone: its note goes, and its directory, if it was made for it. The note goes last, so that the
    /// next manager does what a kill cuts short.
    pub(in crate::tree) fn forget(&self, kernel: &dyn Kernel, id: ThinId, place: &MountPoint) {
        let mut notes = self.notes();
        let Some(note) = notes.get(&id).filter(|note| note.made).cloned() else {
            drop(notes);
            return self.release(id);
        };
        match notes.iter_mut().find(|(other, it)| **other != id && it.covered == note.covered) {
            // It is needed as long as that mount.
            Some((_, other)) => other.made = true,
            // This also ends copies of the mount in other namespaces.
            None => place.remove(kernel, note.covered),
        }
        drop(notes);
        self.release(id);
    }
}

/// Where a mount is that this tree made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tree) enum Where {
    OnTop,
    /// Another mount lies over it, or it was moved elsewhere.
    Covered,
    Gone,
}
