//! What is kept of a snapshot of containerd's, as labels of a snapshot of the tree.
//!
//! A record is JSON, cut into the labels `containerd.00`, `containerd.01` and so on: the keys and values of containerd's
//! labels are longer than those of the tree may be, and have other characters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dm_thin::tree::{Error, Labels, Result, SnapshotId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Begin of the keys of the labels that hold a record; a number follows.
const PREFIX: &str = "containerd.";
/// Label of a snapshot that a commit has not finished; the next start removes it.
const UNFINISHED: &str = "containerd-unfinished";
/// Begin of the ids of snapshots whose keys are no ids.
const HASHED: &str = "containerd-sha256:";

/// The kind of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only.
    View,
    /// Writable; becomes a committed one.
    Active,
    /// A layer: its content is final.
    Committed,
}

impl Kind {
    /// The name that filters know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What containerd knows of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its key, or, committed, its name: one name space.
    pub key: String,
    /// Its kind.
    pub kind: Kind,
    /// The name of its parent; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// When it was made, in nanoseconds since 1970.
    pub created: u64,
    /// When its labels were changed last.
    pub updated: u64,
    /// Its labels; none has an empty value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Info {
    /// A new one, made now.
    pub fn new(key: &str, kind: Kind, parent: &str, labels: BTreeMap<String, String>) -> Self {
        let (key, parent, created) = (key.to_owned(), parent.to_owned(), now());
        let mut info = Self { key, kind, parent, created, updated: created, labels };
        info.drop_empty_labels();
        info
    }

    /// Marks it as changed now. A label without a value is none: containerd removes labels by setting them to nothing.
    pub fn touch(&mut self) {
        self.updated = now();
        self.drop_empty_labels();
    }

    fn drop_empty_labels(&mut self) {
        self.labels.retain(|_, value| !value.is_empty());
    }

    /// The value of a field for a filter.
    pub fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => Some(&self.key),
            "parent" => Some(&self.parent),
            "kind" => Some(self.kind.name()),
            "labels" => self.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a snapshot of the tree holds: a snapshot of containerd's, and the views that share its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The snapshot.
    #[serde(flatten)]
    pub info: Info,
    /// Views of it that have no snapshot of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<Info>,
}

impl Record {
    /// Reads the record of a snapshot of the tree; `None` if it is none of containerd's.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(labels: &Labels) -> Result<Option<Self>, serde_json::Error> {
        let parts = labels.iter().filter(|(key, _)| is_part(key));
        let json: String = parts.map(|(_, value)| value).collect();
        if json.is_empty() { Ok(None) } else { serde_json::from_str(&json).map(Some) }
    }

    /// Writes the record into labels, instead of one that is there. Other labels stay.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if it does not fit.
    pub fn write(&self, labels: &mut Labels) -> Result<()> {
        let old: Vec<_> = labels.iter().map(|(key, _)| key.to_owned()).collect();
        for key in old.iter().filter(|key| is_part(key) || *key == UNFINISHED) {
            labels.remove(key);
        }
        let too_long = |_| Error::InvalidOption {
            option: "labels",
            value: self.info.key.clone(),
            reason: "all labels of a snapshot together are longer than 8000 bytes",
        };
        let json = self.to_json();
        let mut rest = json.as_str();
        for number in 0.. {
            let end = (0..=Labels::MAX_VALUE.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at));
            let (part, left) = rest.split_at(end.unwrap_or_default());
            labels.set(&format!("{PREFIX}{number:02}"), part).map_err(too_long)?;
            rest = left;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The labels of a new snapshot.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn labels(&self) -> Result<Labels> {
        let mut labels = Labels::new();
        self.write(&mut labels)?;
        Ok(labels)
    }

    /// Whether views can be added: labels of the snapshot and of its views may still become longer then.
    pub fn has_room(&self) -> bool {
        self.to_json().len() <= Labels::MAX_VALUE * Labels::MAX / 2
    }

    /// JSON without the control characters that JSON allows and labels do not.
    fn to_json(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        let mut escaped = String::with_capacity(json.len());
        for c in json.chars() {
            match c.is_control() {
                true => drop(write!(escaped, "\\u{:04x}", u32::from(c))),
                false => escaped.push(c),
            }
        }
        escaped
    }
}

fn is_part(label: &str) -> bool {
    label
        .strip_prefix(PREFIX)
        .is_some_and(|number| number.len() == 2 && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The labels of a snapshot that is not containerd's before its record is written.
pub fn unfinished() -> Result<Labels> {
    let mut labels = Labels::new();
    labels.set(UNFINISHED, "1")?;
    Ok(labels)
}

/// Whether a commit was interrupted before it wrote the record.
pub fn is_unfinished(labels: &Labels) -> bool {
    labels.get(UNFINISHED).is_some()
}

/// The id in the tree of a new snapshot: its key if that can be one, else a hash of it.
pub fn id_of(key: &str) -> String {
    if SnapshotId::new(key).is_ok() && !key.starts_with(HASHED) {
        return key.to_owned();
    }
    let hash = Sha256::digest(key);
    hash.iter().fold(HASHED.to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(key: &str, labels: BTreeMap<String, String>) -> Info {
        Info::new(key, Kind::Committed, "parent", labels)
    }

    #[test]
    fn keys_that_are_no_ids_are_hashed() {
        assert_eq!(id_of("default/12/extract-1 sha256:2c26"), "default/12/extract-1 sha256:2c26");
        let hashed = ["base", "a\nb", &"x".repeat(300), "containerd-sha256:00"].map(id_of);
        for id in &hashed {
            assert!(SnapshotId::new(id).is_ok() && id.len() == HASHED.len() + 64, "{id}");
        }
        assert!(hashed.iter().all(|id| hashed.iter().filter(|other| *other == id).count() == 1));
    }

    #[test]
    fn labels_as_long_as_containerd_allows_fit() {
        let long =
            BTreeMap::from([("containerd.io/snapshot/cri.image-layers".to_owned(), "x".repeat(4096 - 39))]);
        assert!(Record { info: info("k", long.clone()), views: vec![] }.labels().is_ok());
        let error =
            Record { info: info("k", long.clone()), views: vec![info("v", long)] }.labels().unwrap_err();
        assert_eq!(
            error.to_string(),
            "labels: k: all labels of a snapshot together are longer than 8000 bytes"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            key in "(?s).{1,300}",
            labels in proptest::collection::btree_map("(?s).{1,70}", "(?s).{1,300}", 0..3),
        ) {
            let views = vec![info("view", labels.clone())];
            let record = Record { info: info(&key, labels), views };
            let mut kept = unfinished().unwrap();
            kept.set("containerd.io/other", "stays").unwrap();
            prop_assume!(record.labels().is_ok());
            record.write(&mut kept).unwrap();
            prop_assert!(!is_unfinished(&kept) && kept.get("containerd.io/other").is_some());
            prop_assert_eq!(Record::read(&kept).unwrap(), Some(record.clone()));
            let short = Record { views: vec![], ..record };
            short.write(&mut kept).unwrap();
            prop_assert_eq!(Record::read(&kept).unwrap(), Some(short));
        }
    }
}
