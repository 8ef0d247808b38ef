//! What names a device: checked once, never truncated, held as the kernel's header holds it.

use std::fmt;
use std::str::FromStr;

use crate::abi::dm::{DM_MAX_TYPE_NAME, DM_NAME_LEN, DM_UUID_LEN};
use crate::kernel::DeviceNumber;
use crate::{Error, Result};

/// NUL-padded text in a fixed array, so that building a name allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct FixedText<const N: usize>([u8; N]);

impl<const N: usize> FixedText<N> {
    fn new(
        what: &'static str,
        text: fmt::Arguments<'_>,
        check: fn(&str) -> Option<&'static str>,
    ) -> Result<Self> {
        use std::io::Write;
        let invalid = |reason| Error::InvalidName { what, value: text.to_string(), reason };
        let mut bytes = [0; N];
        // The last byte stays NUL.
        let mut rest = &mut bytes[..N - 1];
        rest.write_fmt(text).map_err(|_| invalid("too long"))?;
        let len = N - 1 - rest.len();
        if len == 0 {
            return Err(invalid("empty"));
        }
        let fixed = Self(bytes);
        let text = fixed.as_str();
        if text.len() != len {
            return Err(invalid("a NUL byte inside"));
        }
        check(text).map_or(Ok(fixed), |reason| Err(invalid(reason)))
    }

    fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(N);
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

macro_rules! fixed_text {
    ($(#[$doc:meta])* $name:ident, $len:expr, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(FixedText<{ $len }>);

        impl $name {
            /// Check `text`. [`Error::InvalidName`] says what is wrong with it.
            pub fn new(text: &str) -> Result<Self> {
                Self::format(format_args!("{text}"))
            }

            /// The same from formatted text, without allocating.
            pub fn format(text: fmt::Arguments<'_>) -> Result<Self> {
                FixedText::new($what, text, $check).map(Self)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The text padded with NUL, as the kernel's structures hold it.
            pub(crate) fn as_padded(&self) -> &[u8; $len] {
                &self.0.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;
            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }
    };
}

fixed_text! {
    /// A device's name: 1 to 127 bytes without `/`; not `control`, `.` or `..`, which would be taken
    /// for something else below `/dev/mapper` (the kernel refuses them since 6.5).
    DmName, DM_NAME_LEN, "device name", |text| match text {
        "control" | "." | ".." => Some("reserved"),
        _ if text.contains('/') => Some("contains a slash"),
        _ => None,
    }
}
fixed_text! {
    /// A device's uuid: 1 to 128 bytes of any text; by convention the owning subsystem, a dash, and
    /// what is unique in it (`LVM-…`, `DMTHIN-…`).
    DmUuid, DM_UUID_LEN, "device uuid", |text| text.contains('/').then_some("contains a slash")
}
fixed_text! {
    /// A target's type, such as `thin-pool`: 1 to 15 bytes.
    TargetType, DM_MAX_TYPE_NAME, "target type", |_| None
}

impl TargetType {
    /// `linear`
    pub const LINEAR: Self = Self::literal("linear");
    /// `zero`
    pub const ZERO: Self = Self::literal("zero");
    /// `error`
    pub const ERROR: Self = Self::literal("error");
    /// `flakey`
    pub const FLAKEY: Self = Self::literal("flakey");
    /// `thin-pool`
    pub const THIN_POOL: Self = Self::literal("thin-pool");
    /// `thin`
    pub const THIN: Self = Self::literal("thin");

    const fn literal(text: &str) -> Self {
        assert!(!text.is_empty() && text.len() < DM_MAX_TYPE_NAME);
        let mut bytes = [0; DM_MAX_TYPE_NAME];
        bytes.split_at_mut(text.len()).0.copy_from_slice(text.as_bytes());
        Self(FixedText(bytes))
    }
}

/// How a request says which device it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmId<'a> {
    /// By name.
    Name(&'a DmName),
    /// By uuid.
    Uuid(&'a DmUuid),
    /// By device number.
    Number(DeviceNumber),
}

impl fmt::Display for DmId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl<'a> From<&'a DmName> for DmId<'a> {
    fn from(name: &'a DmName) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a DmUuid> for DmId<'a> {
    fn from(uuid: &'a DmUuid) -> Self {
        Self::Uuid(uuid)
    }
}

impl From<DeviceNumber> for DmId<'_> {
    fn from(number: DeviceNumber) -> Self {
        Self::Number(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_kept_whole_or_refused(text in "\\PC{0,140}") {
            match DmName::new(&text) {
                Ok(name) => prop_assert_eq!(name.as_str(), text),
                Err(_) => prop_assert!(
                    text.is_empty() || text.len() > 127 || text.contains('/') || text == "." || text == ".."
                ),
            }
        }
    }

    #[test]
    fn the_longest_fit() {
        assert!(DmName::new(&"n".repeat(127)).is_ok());
        assert!(DmName::new(&"n".repeat(128)).is_err());
        assert!(DmUuid::new(&"u".repeat(128)).is_ok());
        assert!(DmUuid::new(&"u".repeat(129)).is_err());
        assert!(TargetType::new(&"t".repeat(15)).is_ok());
        assert!(TargetType::new(&"t".repeat(16)).is_err());
    }

    #[test]
    fn bad_names_say_why() {
        let reason = |text: &str| DmName::new(text).unwrap_err().to_string();
        assert_eq!(reason("a/b"), r#"device name "a/b": contains a slash"#);
        assert_eq!(reason("control"), r#"device name "control": reserved"#);
        assert_eq!(reason(""), r#"device name "": empty"#);
        assert_eq!(reason("a\0b"), r#"device name "a\0b": a NUL byte inside"#);
        assert_eq!(reason("a\0"), r#"device name "a\0": a NUL byte inside"#);
        assert_eq!(reason("\0"), r#"device name "\0": a NUL byte inside"#);
    }
}
