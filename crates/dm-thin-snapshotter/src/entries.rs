//! The snapshots that are served.

use std::collections::{BTreeMap, BTreeSet};

use dm_thin::units::Bytes;

use crate::record::Info;

/// A snapshot that is served.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) info: Info,
    /// The snapshot of the tree; `None` for a view that shares its parent's.
    pub(crate) id: Option<String>,
    /// Usage of a committed snapshot, once it is known.
    pub(crate) usage: Option<Bytes>,
    /// Its device was open when it was to be removed.
    pub(crate) was_busy: bool,
}

impl Entry {
    pub(crate) fn new(info: Info, id: Option<String>) -> Self {
        Self { info, id, usage: None, was_busy: false }
    }
}

/// Snapshots by key or name, with an index of children.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    by_key: BTreeMap<String, Entry>,
    /// Keys of the children of each snapshot that has some.
    children: BTreeMap<String, BTreeSet<String>>,
}

impl Entries {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.by_key.get(key)
    }

    /// Adds a snapshot. One of the same key is replaced.
    pub(crate) fn insert(&mut self, entry: Entry) {
        let (key, parent) = (entry.info.key.clone(), entry.info.parent.clone());
        self.remove(&key);
        if !parent.is_empty() {
            self.children.entry(parent).or_default().insert(key.clone());
        }
        self.by_key.insert(key, entry);
    }

    pub(crate) fn remove(&mut self, key: &str) {
        let Some(removed) = self.by_key.remove(key) else { return };
        if let Some(siblings) = self.children.get_mut(&removed.info.parent) {
            siblings.remove(key);
            if siblings.is_empty() {
                self.children.remove(&removed.info.parent);
            }
        }
    }

    /// Changes a snapshot, if it is there: anything but its key and its parent.
    pub(crate) fn change(&mut self, key: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.by_key.get_mut(key) {
            change(entry);
        }
    }

    /// All, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_key.values()
    }

    /// The snapshots whose parent this one is, by key.
    pub(crate) fn children(&self, key: &str) -> impl Iterator<Item = &Entry> {
        self.children.get(key).into_iter().flatten().filter_map(|child| self.by_key.get(child))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;

    fn entry(key: &str, parent: &str) -> Entry {
        Entry::new(Info::new(key, Kind::Active, parent, BTreeMap::new()), None)
    }

    fn children<'a>(entries: &'a Entries, key: &str) -> Vec<&'a str> {
        entries.children(key).map(|entry| entry.info.key.as_str()).collect()
    }

    #[test]
    fn children_follow_their_snapshots() {
        let mut entries = Entries::default();
        [("a", ""), ("b", "a"), ("c", "a"), ("d", "b")]
            .into_iter()
            .for_each(|(key, parent)| entries.insert(entry(key, parent)));
        assert_eq!((children(&entries, "a"), children(&entries, "b")), (vec!["b", "c"], vec!["d"]));
        assert!(children(&entries, "").is_empty() && children(&entries, "d").is_empty());

        // Replaced by one with another parent.
        entries.insert(entry("d", "c"));
        assert_eq!((children(&entries, "b"), children(&entries, "c")), (vec![], vec!["d"]));

        ["d", "c", "b"].into_iter().for_each(|key| entries.remove(key));
        entries.remove("never there");
        assert!(entries.children.is_empty());
        assert_eq!(entries.iter().map(|entry| entry.info.key.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
