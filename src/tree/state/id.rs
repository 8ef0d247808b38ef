//! Names of snapshots.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::tree::{Error, Result};

/// A snapshot's id: 1 to 256 bytes of any text without control characters. `base`, `pool`, `pool-lock`, `pool-tmeta`,
/// `pool-tdata`, `.` and `..` are taken.
///
/// Up to 72 letters, digits and `#+-.:=@_`, none of them a leading `=`, are the end of the device's name, too. In the name
/// of another one each byte beyond these is `=` and two hexadecimal digits, with a `=` in front of all; instead of what
/// would be too long it is the beginning of the id's SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(Arc<str>);

impl SnapshotId {
    /// The longest id, in bytes.
    pub const MAX_LEN: usize = 256;

    /// Checks `id`. [`Error::InvalidName`] says what is wrong with it.
    pub fn new(id: &str) -> Result<Self> {
        let reason = match id {
            "" => "empty",
            "base" | "pool" | "pool-lock" | "pool-tmeta" | "pool-tdata" | "." | ".." => "reserved",
            _ if id.len() > Self::MAX_LEN => "longer than 256 bytes",
            _ if id.chars().any(char::is_control) => "contains a control character",
            _ => return Ok(Self(id.into())),
        };
        Err(Error::InvalidName { what: "snapshot id", value: id.to_owned(), reason })
    }

    /// Sorts before every other, and is none itself.
    pub(in crate::tree) fn first() -> Self {
        Self("".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for SnapshotId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for SnapshotId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = Error;
    fn try_from(id: String) -> Result<Self> {
        Self::new(&id)
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

struct Text;

impl de::Visitor<'_> for Text {
    type Value = SnapshotId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a snapshot id")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SnapshotId, E> {
        SnapshotId::new(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_ids_say_why() {
        let reason = |id: &str| SnapshotId::new(id).unwrap_err().to_string();
        assert_eq!(reason("a\nb"), r#"snapshot id "a\nb": contains a control character"#);
        assert_eq!(reason(""), r#"snapshot id "": empty"#);
        assert_eq!(reason("base"), r#"snapshot id "base": reserved"#);
        assert!(reason(&"x".repeat(257)).ends_with("longer than 256 bytes"));
        assert!(SnapshotId::new("containerd/default/12 ü").is_ok());
    }

    #[test]
    fn dockers_ids_fit() {
        assert!(SnapshotId::new(&format!("{}-init", "f".repeat(64))).is_ok());
    }
}
