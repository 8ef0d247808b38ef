//! What names a device: checked once, never truncated, held as the kernel's header holds it.

use std::fmt;
use std::str::FromStr;

#[cfg(feature = "serde")]
use serde::{Serialize, Serializer};

use crate::abi::dm::{DM_MAX_TYPE_NAME, DM_NAME_LEN, DM_UUID_LEN};
use crate::dm::{Error, Result};
use crate::kernel::DeviceNumber;

/// NUL-padded text in a fixed array, so that building a name allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct FixedText<const N: usize>([u8; N]);

impl<const N: usize> FixedText<N> {
    fn new(
        what: &'static str,
        text: fmt::Arguments<'_>,
        check: fn(&[u8]) -> Option<&'static str>,
    ) -> Result<Self> {
        use std::io::Write;
        let invalid = |reason| Error::InvalidName { what, value: text.to_string(), reason };
        let mut bytes = [0; N];
        // The last byte stays NUL.
        let mut rest = &mut bytes[..N - 1];
        rest.write_fmt(text).map_err(|_| invalid("too long"))?;
        let len = N - 1 - rest.len();
        bad(&bytes[..len])
            .or_else(|| check(&bytes[..len]))
            .map_or(Ok(Self(bytes)), |reason| Err(invalid(reason)))
    }

    fn of(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut padded = [0; N];
        let text = padded[..N - 1].get_mut(..bytes.len()).ok_or("too long")?;
        text.copy_from_slice(bytes);
        bad(bytes).map_or(Ok(Self(padded)), Err)
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()).ok()
    }
}

/// What no name is.
fn bad(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("empty"),
        _ if bytes.contains(&0) => Some("a NUL byte inside"),
        _ => None,
    }
}

macro_rules! fixed_text {
    ($(#[$doc:meta])* $name:ident, $len:expr, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(FixedText<{ $len }>);

        impl $name {
            /// Checks `text`. [`Error::InvalidName`] says what is wrong with it.
            pub fn new(text: &str) -> Result<Self> {
                Self::format(format_args!("{text}"))
            }

            /// The same from formatted text, without allocating.
            pub fn format(text: fmt::Arguments<'_>) -> Result<Self> {
                FixedText::new($what, text, $check).map(Self)
            }

            /// The text padded with NUL, as the kernel's structures hold it.
            pub(crate) fn as_padded(&self) -> &[u8; $len] {
                &self.0.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0.text() {
                    Some(text) => fmt::Debug::fmt(text, f),
                    None => write!(f, "\"{}\"", self.0.as_bytes().escape_ascii()),
                }
            }
        }

        impl fmt::Display for $name {
            /// The text; bytes that are not UTF-8 as `\xff`.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for chunk in self.0.as_bytes().utf8_chunks() {
                    f.write_str(chunk.valid())?;
                    chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
                }
                Ok(())
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

/// The kernel's names are bytes, and others give theirs.
macro_rules! kernel_name {
    ($name:ident, $what:literal, $check:expr) => {
        impl $name {
            /// The same from bytes, which need not be UTF-8.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
                let check: fn(&[u8]) -> Option<&'static str> = $check;
                let name = FixedText::of(bytes).and_then(|text| check(bytes).map_or(Ok(Self(text)), Err));
                let value = || bytes.escape_ascii().to_string();
                name.map_err(|reason| Error::InvalidName { what: $what, value: value(), reason })
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// The text, if it is UTF-8. A name from [`new`](Self::new) always is.
            #[allow(clippy::wrong_self_convention)] // as with OsStr
            pub fn to_str(&self) -> Option<&str> {
                self.0.text()
            }
        }

        #[cfg(feature = "serde")]
        impl Serialize for $name {
            /// As it is displayed.
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

fixed_text! {
    /// A device's name: 1 to 127 bytes without `/`. Not `control`, `.` or `..`, which would be taken for
    /// something else below `/dev/mapper`; but the kernel, which refuses them since 6.5, may list a
    /// device that has one of these.
    ///
    /// Names that the kernel returns need not be UTF-8. They are kept byte for byte, and mean the same device
    /// when they are given back.
    DmName, DM_NAME_LEN, "device name", bad_name
}
kernel_name!(DmName, "device name", bad_name);
fixed_text! {
    /// A device's uuid: 1 to 128 bytes of any text; by convention the owning subsystem, a dash, and
    /// what is unique in it (`LVM-…`, `DMTHIN-…`). A `/` is refused, but the kernel may return one.
    ///
    /// As with [`DmName`], what the kernel returns is kept byte for byte.
    DmUuid, DM_UUID_LEN, "device uuid", slash
}
kernel_name!(DmUuid, "device uuid", slash);
fixed_text! {
    /// A target's type, such as `thin-pool`: 1 to 15 bytes.
    TargetType, DM_MAX_TYPE_NAME, "target type", |_| None
}

fn slash(bytes: &[u8]) -> Option<&'static str> {
    bytes.contains(&b'/').then_some("contains a slash")
}

fn bad_name(bytes: &[u8]) -> Option<&'static str> {
    if is_reserved(bytes) { Some("reserved") } else { slash(bytes) }
}

fn is_reserved(name: &[u8]) -> bool {
    matches!(name, b"control" | b"." | b"..")
}

impl DmName {
    /// A name that the kernel has: one with a slash it never had.
    pub(in crate::dm) fn of_kernel(bytes: &[u8]) -> Option<Self> {
        FixedText::of(bytes).ok().filter(|_| slash(bytes).is_none()).map(Self)
    }

    /// Whether its node would be something else's.
    pub(super) fn is_reserved(&self) -> bool {
        is_reserved(self.as_bytes())
    }
}

impl DmUuid {
    /// A uuid that the kernel has.
    pub(in crate::dm) fn of_kernel(bytes: &[u8]) -> Option<Self> {
        FixedText::of(bytes).ok().map(Self)
    }
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

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.text().unwrap_or_default()
    }

    /// The kernel module that has it.
    pub(crate) fn module(&self) -> String {
        match self.as_str() {
            "error" | "linear" | "striped" => "dm-mod".to_owned(),
            "thin" => "dm-thin-pool".to_owned(),
            "snapshot-merge" | "snapshot-origin" => "dm-snapshot".to_owned(),
            other => format!("dm-{other}"),
        }
    }

    const fn literal(text: &str) -> Self {
        assert!(!text.is_empty() && text.len() < DM_MAX_TYPE_NAME);
        let mut bytes = [0; DM_MAX_TYPE_NAME];
        bytes.split_at_mut(text.len()).0.copy_from_slice(text.as_bytes());
        Self(FixedText(bytes))
    }
}

/// How a request says which device it means.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
                Ok(name) => prop_assert_eq!((name.to_str(), name.to_string()), (Some(&text[..]), text.clone())),
                Err(_) => prop_assert!(
                    text.is_empty() || text.len() > 127 || text.contains('/') || text == "." || text == ".."
                ),
            }
        }
    }

    proptest! {
        #[test]
        fn a_name_of_bytes_is_kept_whole_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            let bad = bytes.is_empty() || bytes.contains(&0);
            match DmName::from_bytes(&bytes) {
                Ok(name) => prop_assert_eq!(name.as_bytes(), &bytes),
                Err(_) => prop_assert!(bad || bytes.len() > 127 || bytes.contains(&b'/') || is_reserved(&bytes)),
            }
            match DmUuid::of_kernel(&bytes) {
                Some(uuid) => prop_assert_eq!(uuid.as_bytes(), &bytes),
                None => prop_assert!(bad || bytes.len() > 128),
            }
        }
    }

    #[test]
    fn bytes_are_shown_as_what_they_are() {
        let name = DmName::from_bytes(b"caf\xc3\xa9 caf\xe9").unwrap();
        assert_eq!(name.to_string(), r"café caf\xe9");
        assert_eq!(format!("{name:?}"), r#""caf\xc3\xa9 caf\xe9""#);
        assert_eq!(name.to_str(), None);
        let error = DmName::from_bytes(b"/\xe9").unwrap_err().to_string();
        assert_eq!(error, r#"device name "/\\xe9": contains a slash"#);
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
