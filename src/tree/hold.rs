//! The note that this tree holds its pool's metadata snapshot.
//!
//! There is one metadata snapshot per pool, and one that a killed process left looks like one that another program
//! holds. So the file `metadata-snapshot` says `held` from before the snapshot is reserved until after it is released.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::{StateDir, StateFile, read_at_most};
use crate::{Error, Result};

const NAME: &str = "metadata-snapshot";
const HELD: &[u8] = b"held\n";
const FREE: &[u8] = b"free\n";

/// The file, which is overwritten in place: on a full disk, too, it can be written.
#[derive(Debug)]
pub(super) struct HoldNote {
    path: PathBuf,
    file: Mutex<Box<dyn StateFile>>,
}

impl HoldNote {
    /// Opens the note, and makes it if there is none.
    pub(super) fn open(root: &std::path::Path, dir: &dyn StateDir) -> Result<Self> {
        let path = root.join(NAME);
        let open = || {
            let file = dir.open(NAME, true)?;
            if file.size()? == 0 {
                file.write_at(0, FREE)?;
                file.sync()?;
                dir.sync()?;
            }
            Ok(file)
        };
        let file = Mutex::new(open().map_err(Error::io("open", &path))?);
        Ok(Self { path, file })
    }

    /// Whether a manager of this tree held the metadata snapshot when it ended.
    pub(super) fn is_held(&self) -> Result<bool> {
        let text = read_at_most(&**self.lock(), 4096).map_err(Error::io("read", &self.path))?;
        Ok(text == HELD)
    }

    /// Runs `work`, which reserves and releases the metadata snapshot, under the note. One caller at a time.
    ///
    /// `is_free` fails while another program holds the metadata snapshot: the note would have the next open release it.
    pub(super) fn during<T>(
        &self,
        is_free: impl FnOnce() -> Result<()>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let file = self.lock();
        is_free()?;
        self.write(&**file, HELD)?;
        let result = work();
        // Left standing, it would only make the next open release what is not held.
        let cleared = self.write(&**file, FREE);
        let result = result?;
        cleared.map(|()| result)
    }

    /// The metadata snapshot that the note was about is released.
    pub(super) fn clear(&self) -> Result<()> {
        self.write(&**self.lock(), FREE)
    }

    fn write(&self, file: &dyn StateFile, text: &[u8]) -> Result<()> {
        file.write_at(0, text).and_then(|()| file.sync()).map_err(Error::io("write", &self.path))
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn StateFile>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
