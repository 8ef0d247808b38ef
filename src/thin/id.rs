//! What a pool's metadata counts by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number or text is no thin device id: those have 24 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("thin device id {0:?}: not a number of 24 bits")]
pub struct InvalidThinId(pub String);

/// A thin device's id within its pool: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
#[doc(alias = "dev_id")]
pub struct ThinId(u32);

/// A number in the pool's metadata that ties it to its user's own records: 0 in a fresh pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionId(pub u64);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ThinId {
    /// The largest id.
    pub const MAX: Self = Self((1 << 24) - 1);

    /// Checks that `id` has 24 bits.
    pub fn new(id: u32) -> Result<Self, InvalidThinId> {
        if id > Self::MAX.0 { Err(InvalidThinId(id.to_string())) } else { Ok(Self(id)) }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for ThinId {
    type Error = InvalidThinId;
    fn try_from(id: u32) -> Result<Self, InvalidThinId> {
        Self::new(id)
    }
}

impl From<ThinId> for u32 {
    fn from(id: ThinId) -> Self {
        id.0
    }
}

impl fmt::Display for ThinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ThinId {
    type Err = InvalidThinId;
    fn from_str(text: &str) -> Result<Self, InvalidThinId> {
        text.parse().map_err(|_| InvalidThinId(text.to_owned())).and_then(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_24_bits() {
        let text = "thin device id \"16777216\": not a number of 24 bits";
        assert_eq!(ThinId::new(1 << 24).unwrap_err().to_string(), text);
        assert_eq!("16777216".parse::<ThinId>().unwrap_err().to_string(), text);
        assert_eq!("16777215".parse(), Ok(ThinId::MAX));
        assert!("x".parse::<ThinId>().is_err());
    }
}
