//! The least that makes a name durable: one line appended to a file, and `fdatasync`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use crate::Result;

pub struct Journal {
    file: Mutex<File>,
    /// The same open file, to sync without the lock.
    synced: File,
}

impl Journal {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path)?;
        Ok(Self { synced: file.try_clone()?, file: Mutex::new(file) })
    }

    pub fn append(&self, verb: &str, id: u32) -> Result<()> {
        // As long as a line of the tree's journal.
        let line = format!("{{\"verb\":\"{verb}\",\"id\":{id:<120}}}\n");
        self.file.lock().map_err(|_| "a thread panicked")?.write_all(line.as_bytes())?;
        Ok(self.synced.sync_data()?)
    }
}
