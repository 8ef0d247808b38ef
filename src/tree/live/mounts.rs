//! The mounts of a tree: which there are, for this manager and the next one.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::kernel::{DeviceNumber, Directory, Kernel, MountId};
use crate::thin::ThinId;
use crate::tree::live::mount::{Covered, MountPoint};
use crate::tree::live::mount_options::MountOptions;
use crate::tree::mount_table::is_listed;
use crate::tree::state::files::{StateDir, read_at_most};
use crate::tree::sync::{Lock, Rank};
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

/// Written in place, by turns: whatever a kill cuts off, the other one is whole. Replaced by a rename, a file's data would
/// be written to the disk at once.
const NOTES: [&str; 2] = ["mounts.0", "mounts.1"];

/// More than any notes are long.
const NOTES_MAX: u64 = 256 << 20;

/// The first line of a file of notes, behind its checksum.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    /// The higher one is the newer one.
    sequence: u64,
    mounts: BTreeMap<ThinId, Note>,
}

/// The mounts that this tree made, by the volumes. They are noted in files of the root, which are not synced: mounts
/// do not outlive a power cut either. A mount without a note is another program's.
#[derive(Debug)]
pub(in crate::tree) struct Mounts {
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) how: MountDefaults,
    dir: Arc<dyn StateDir>,
    notes: Lock<Notes>,
}

/// How the file systems of a tree are mounted.
#[derive(Debug)]
pub(in crate::tree) struct MountDefaults {
    pub(in crate::tree) filesystem: Filesystem,
    pub(in crate::tree) options: MountOptions,
}

impl Mounts {
    pub(in crate::tree) fn load(kernel: Arc<dyn Kernel>, how: MountDefaults, dir: Arc<dyn StateDir>) -> Self {
        let read = |name| dir.open(name, false).and_then(|file| read_at_most(&*file, NOTES_MAX)).ok();
        let found = NOTES.iter().filter_map(|name| decode(&read(name)?));
        // Unreadable: then every mount counts as another program's.
        let notes = found.max_by_key(|notes| notes.sequence).unwrap_or_default();
        Self { kernel, how, dir, notes: Lock::new(Rank::Leaf, notes) }
    }

    pub(super) fn notes(&self) -> BTreeMap<ThinId, Note> {
        self.notes.lock().mounts.clone()
    }

    fn write(&self, notes: &mut Notes) -> Result<()> {
        notes.sequence += 1;
        let name = NOTES[usize::from(notes.sequence % 2 == 1)];
        let write = || self.dir.open(name, true)?.write_at(0, &encode(notes)?);
        write().map_err(|error| {
            // The other one is as it was.
            notes.sequence -= 1;
            Error::io("write", name)(error)
        })
    }

    /// Reserves a directory for a volume; `Err(Ok(other))` if another one has it.
    pub(super) fn reserve(
        &self,
        id: ThinId,
        note: Note,
        (place, top): (&MountPoint, &Directory),
    ) -> Result<(), Result<ThinId, Error>> {
        let mut notes = self.notes.lock();
        let is_mount = top.mount() != place.above.mount();
        for (&other, it) in notes.mounts.iter_mut().filter(|(other, _)| **other != id) {
            let same = it.covered == note.covered || (is_mount && it.device == top.mount().device);
            // A mount that another program took down does not conflict.
            if same && it.mount.map_or(Ok(true), |mount| is_listed(&*self.kernel, mount)).map_err(Err)? {
                // The directory that this call has just made serves the other one.
                it.made |= note.made;
                return Err(Ok(other));
            }
        }
        notes.mounts.insert(id, note);
        self.write(&mut notes).map_err(Err).inspect_err(|_| drop(notes.mounts.remove(&id)))
    }

    pub(super) fn confirm(&self, id: ThinId, mount: MountId) {
        let mut notes = self.notes.lock();
        if let Some(note) = notes.mounts.get_mut(&id) {
            note.mount = Some(mount);
            // The note that is there names device and target.
            let _ = self.write(&mut notes);
        }
    }

    /// There is no mount.
    pub(super) fn release(&self, id: ThinId) {
        let mut notes = self.notes.lock();
        notes.mounts.remove(&id);
        // A note without a mount is passed over by the next manager.
        let _ = self.write(&mut notes);
    }

    /// The mount is gone: its note goes, and its directory, if it was made for it. The note goes last, so that the
    /// next manager does what a kill cuts short.
    pub(in crate::tree) fn forget(&self, id: ThinId, place: &MountPoint) {
        let mut notes = self.notes.lock();
        let Some(note) = notes.mounts.get(&id).filter(|note| note.made).cloned() else {
            drop(notes);
            return self.release(id);
        };
        match notes.mounts.iter_mut().find(|(other, it)| **other != id && it.covered == note.covered) {
            // It is needed as long as that mount.
            Some((_, other)) => other.made = true,
            // This also ends copies of the mount in other namespaces.
            None => place.remove(&*self.kernel, note.covered),
        }
        drop(notes);
        self.release(id);
    }
}

fn encode(notes: &Notes) -> io::Result<Vec<u8>> {
    let text = serde_json::to_string(notes)?;
    Ok(format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes())).into_bytes())
}

/// Behind the first line there may be the end of an older, longer one.
fn decode(bytes: &[u8]) -> Option<Notes> {
    let line = std::str::from_utf8(bytes.split(|byte| *byte == b'\n').next()?).ok()?;
    let (checksum, text) = line.split_once(' ')?;
    let is_whole = u32::from_str_radix(checksum, 16) == Ok(crc32fast::hash(text.as_bytes()));
    is_whole.then(|| serde_json::from_str(text).ok())?
}
