//! The labels of a snapshot.

use crate::tree::Labels;
use crate::tree::Result;
use crate::tree::state::record::Record;
use crate::tree::{SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// Label a snapshot, durably.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::tree::Error::UnknownSnapshot); as [`Labels::set`].
    pub fn set_label(&self, id: impl AsRef<str>, key: &str, value: &str) -> Result<()> {
        let id = id.as_ref();
        self.change_labels(id, |labels| labels.set(key, value))
    }

    /// Takes a label away, durably; its value is returned.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::tree::Error::UnknownSnapshot).
    pub fn remove_label(&self, id: impl AsRef<str>, key: &str) -> Result<Option<String>> {
        let id = id.as_ref();
        self.change_labels(id, |labels| Ok(labels.remove(key)))
    }

    /// Changes the labels of a snapshot together, durably, while no other call changes them. Nothing is changed if
    /// `change` fails; what it returns is returned.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// let first = tree.change_labels("layer", |labels| {
    ///     let users: u32 = labels.get("users").and_then(|users| users.parse().ok()).unwrap_or(0);
    ///     labels.set("users", &(users + 1).to_string())?;
    ///     Ok(users == 0)
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::tree::Error::UnknownSnapshot), and those of `change`.
    pub fn change_labels<T>(
        &self,
        id: impl AsRef<str>,
        change: impl FnOnce(&mut Labels) -> Result<T>,
    ) -> Result<T> {
        let id = id.as_ref();
        let changed = self.with_snapshot(id, |_, snapshot| {
            let mut labels = snapshot.labels.clone();
            let result = change(&mut labels)?;
            if labels != snapshot.labels {
                self.store.commit(&Record::Labels { id: SnapshotId::new(id)?, labels })?;
            }
            Ok(result)
        })?;
        self.compact();
        Ok(changed)
    }

    /// The labels of a snapshot.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::tree::Error::UnknownSnapshot).
    pub fn labels(&self, id: impl AsRef<str>) -> Result<Labels> {
        let id = id.as_ref();
        self.check_open()?;
        self.store
            .read(|graph| graph.get(id).map(|snapshot| snapshot.labels.clone()))
            .ok_or_else(|| crate::tree::error::unknown(id))
    }
}
