//! The note that this tree holds its pool's metadata snapshot.
//!
//! There is one metadata snapshot per pool, and one that a killed process left looks like one that another program
//! holds. So the file `metadata-snapshot` says `held` from before the snapshot is reserved until after it is released.

use std::path::PathBuf;

use crate::thin;
use crate::thin::metadata::Metadata;
use crate::thin::{PoolStatus, ThinPool};
use crate::tree::state::files::{StateDir, StateFile, read_at_most};
use crate::tree::sync::{Lock, Rank};
use crate::tree::{Error, Result};

const NAME: &str = "metadata-snapshot";
const HELD: &[u8] = b"held\n";
const FREE: &[u8] = b"free\n";

/// The file, which is overwritten in place: on a full disk, too, it can be written.
#[derive(Debug)]
pub(in crate::tree) struct HoldNote {
    path: PathBuf,
    note: Lock<Note>,
}

#[derive(Debug)]
struct Note {
    file: Box<dyn StateFile>,
    /// This manager reserved the metadata snapshot and could not release it.
    left: bool,
}

impl HoldNote {
    /// Opens the note, and makes it if there is none.
    pub(in crate::tree) fn open(root: &std::path::Path, dir: &dyn StateDir) -> Result<Self> {
        let path = root.join(NAME);
        let open = || -> std::io::Result<_> {
            let file = dir.open(NAME, true)?;
            if file.size()? == 0 {
                file.write_at(0, FREE)?;
                file.sync()?;
                dir.sync()?;
            }
            Ok(file)
        };
        let file = open().map_err(Error::io("open", &path))?;
        Ok(Self { path, note: Lock::new(Rank::MetadataSnapshot, Note { file, left: false }) })
    }

    /// Releases the metadata snapshot that a manager of this tree held when it ended.
    pub(in crate::tree) fn release_left(&self, pool: &ThinPool) -> Result<bool> {
        let note = self.note.lock();
        let text = read_at_most(&*note.file, 4096).map_err(Error::io("read", &self.path))?;
        if text != HELD {
            return Ok(false);
        }
        match pool.status()? {
            PoolStatus::Usage(usage) if usage.held_metadata_root.is_none() => {}
            PoolStatus::Usage(usage) if usage.mode.is_sound() => pool.release_metadata_snap()?,
            // It takes no message: the next open releases it.
            _ => return Ok(false),
        }
        self.write(&*note.file, FREE).map(|()| true)
    }

    /// Reads a pool's metadata under the note: see [`ThinPool::read_metadata`]. One caller at a time.
    pub(in crate::tree) fn read<T>(
        &self,
        pool: &ThinPool,
        read: impl FnOnce(&Metadata) -> Result<T>,
    ) -> Result<T> {
        if !pool.status()?.mode().is_sound() {
            // It takes no messages, and its metadata does not change.
            return pool.read_metadata(|metadata| Ok(read(metadata)))?;
        }
        let mut note = self.note.lock();
        if pool.is_held_elsewhere()? {
            if !note.left {
                // The note would have the next open release another program's.
                return Err(Error::Thin(thin::Error::MetadataSnapHeld { pool: pool.name().to_string() }));
            }
            pool.release_metadata_snap()?;
        }
        self.write(&*note.file, HELD)?;
        let result = pool.read_metadata(|metadata| Ok(read(metadata)));
        // What could not be released is released by the next reader, or by the next open.
        note.left = match result {
            Ok(_) | Err(thin::Error::MetadataSnapHeld { .. }) => false,
            Err(_) => pool.is_held_elsewhere().unwrap_or(true),
        };
        if note.left {
            return result?;
        }
        // Left standing, it would only make the next open release what is not held.
        let cleared = self.write(&*note.file, FREE);
        let result = result??;
        cleared.map(|()| result)
    }

    /// Whether this manager could not release the metadata snapshot. The next reader does.
    pub(in crate::tree) fn is_left(&self) -> bool {
        self.note.lock().left
    }

    fn write(&self, file: &dyn StateFile, text: &[u8]) -> Result<()> {
        file.write_at(0, text).and_then(|()| file.sync()).map_err(Error::io("write", &self.path))
    }
}
