//! Labels: what callers note about a snapshot, kept and lost with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::{Error, Result};

/// A snapshot's labels: at most 32 pairs of a key (1 to 64 letters, digits and `-._/:`) and a value (at most
/// 256 bytes, no control characters), in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// The most labels that a snapshot has.
    pub const MAX: usize = 32;
    /// The longest key, in bytes.
    pub const MAX_KEY: usize = 64;
    /// The longest value, in bytes.
    pub const MAX_VALUE: usize = 256;

    /// No labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Sets a label.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a key, [`Error::InvalidOption`] for a value or a number of labels beyond
    /// the limits.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._/:".contains(c);
        let reason = match key {
            "" => Some("empty"),
            _ if key.len() > Self::MAX_KEY => Some("longer than 64 bytes"),
            _ if !key.chars().all(allowed) => Some("contains something else than letters, digits and -._/:"),
            _ => None,
        };
        if let Some(reason) = reason {
            return Err(Error::InvalidName { what: "label", value: key.to_owned(), reason });
        }
        let invalid = |reason| Error::InvalidOption { option: "label", value: key.to_owned(), reason };
        if value.len() > Self::MAX_VALUE {
            return Err(invalid("its value is longer than 256 bytes"));
        }
        if value.chars().any(char::is_control) {
            return Err(invalid("its value contains a control character"));
        }
        if self.0.len() >= Self::MAX && !self.0.contains_key(key) {
            return Err(invalid("a snapshot has at most 32 labels"));
        }
        self.0.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// Takes a label away; its value is returned.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = Error;
    fn try_from(map: BTreeMap<String, String>) -> Result<Self> {
        let mut labels = Self::new();
        map.iter().try_for_each(|(key, value)| labels.set(key, value))?;
        Ok(labels)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let mut labels = Labels::new();
        let mut reason = |key: &str, value: &str| labels.set(key, value).unwrap_err().to_string();
        assert_eq!(reason("", "v"), r#"label "": empty"#);
        assert!(reason("a b", "v").contains("something else"));
        assert!(reason(&"k".repeat(65), "v").ends_with("longer than 64 bytes"));
        assert_eq!(reason("k", &"v".repeat(257)), "label: k: its value is longer than 256 bytes");
        assert!(reason("k", "a\nb").ends_with("control character"));
        for number in 0..Labels::MAX {
            labels.set(&format!("k{number}"), "").unwrap();
        }
        assert!(labels.set("one-more", "").is_err());
        labels.set("k0", "changed").unwrap();
        assert_eq!(labels.remove("k0").as_deref(), Some("changed"));
    }

    #[test]
    fn what_a_file_says_is_checked_too() {
        assert!(serde_json::from_str::<Labels>(r#"{"a b": ""}"#).is_err());
        let labels: Labels = serde_json::from_str(r#"{"b": "2", "a": "1"}"#).unwrap();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    }
}
