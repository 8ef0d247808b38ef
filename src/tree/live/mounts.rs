//! The mounts of a tree: which there are, for this manager and the next one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::abi::mount::MountFlags;
use crate::kernel::{DeviceNumber, Directory, Kernel, MountId};
use crate::thin::ThinId;
use crate::tree::live::mount::{Covered, MountPoint};
use crate::tree::mount_table::is_listed;
use crate::tree::state::files::{StateDir, read_at_most};
use crate::tree::sync::{Guard, Lock, Rank};
use crate::tree::{Error, Filesystem, Result};

/// What is noted of a mount before it is made, for the next manager if this one dies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
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
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) how: MountOptions,
    dir: Arc<dyn StateDir>,
    notes: Lock<BTreeMap<ThinId, Note>>,
}

/// How the file systems of a tree are mounted.
#[derive(Debug)]
pub(in crate::tree) struct MountOptions {
    pub(in crate::tree) filesystem: Filesystem,
    pub(in crate::tree) flags: MountFlags,
    /// For the file system.
    pub(in crate::tree) data: String,
}

impl Mounts {
    pub(in crate::tree) fn load(kernel: Arc<dyn Kernel>, how: MountOptions, dir: Arc<dyn StateDir>) -> Self {
        let bytes =
            dir.open(NOTES, false).and_then(|file| read_at_most(&*file, NOTES_MAX)).unwrap_or_default();
        // Unreadable: then every mount counts as another program's.
        let notes = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { kernel, how, dir, notes: Lock::new(Rank::Leaf, notes) }
    }

    pub(super) fn notes(&self) -> Guard<'_, BTreeMap<ThinId, Note>> {
        self.notes.lock()
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
    pub(super) fn reserve(
        &self,
        id: ThinId,
        note: Note,
        (place, top): (&MountPoint, &Directory),
    ) -> Result<(), Result<ThinId, Error>> {
        let mut notes = self.notes();
        let is_mount = top.mount() != place.above.mount();
        for (&other, it) in notes.iter_mut().filter(|(other, _)| **other != id) {
            let same = it.covered == note.covered || (is_mount && it.device == top.mount().device);
            // A mount that another program took down does not conflict.
            if same && it.mount.map_or(Ok(true), |mount| is_listed(&*self.kernel, mount)).map_err(Err)? {
                // The directory that this call has just made serves the other one.
                it.made |= note.made;
                return Err(Ok(other));
            }
        }
        notes.insert(id, note);
        self.write(&notes).map_err(Err).inspect_err(|_| drop(notes.remove(&id)))
    }

    pub(super) fn confirm(&self, id: ThinId, mount: MountId) {
        let mut notes = self.notes();
        if let Some(note) = notes.get_mut(&id) {
            note.mount = Some(mount);
            // The note that is there names device and target.
            let _ = self.write(&notes);
        }
    }

    /// There is no mount.
    pub(super) fn release(&self, id: ThinId) {
        let mut notes = self.notes();
        notes.remove(&id);
        // A note without a mount is passed over by the next manager.
        let _ = self.write(&notes);
    }

    /// The mount is gone: its note goes, and its directory, if it was made for it. The note goes last, so that the
    /// next manager does what a kill cuts short.
    pub(in crate::tree) fn forget(&self, id: ThinId, place: &MountPoint) {
        let mut notes = self.notes();
        let Some(note) = notes.get(&id).filter(|note| note.made).cloned() else {
            drop(notes);
            return self.release(id);
        };
        match notes.iter_mut().find(|(other, it)| **other != id && it.covered == note.covered) {
            // It is needed as long as that mount.
            Some((_, other)) => other.made = true,
            // This also ends copies of the mount in other namespaces.
            None => place.remove(&*self.kernel, note.covered),
        }
        drop(notes);
        self.release(id);
    }
}
