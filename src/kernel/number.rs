//! Device numbers, in the kernel's several encodings.

use std::fmt;

use nix::sys::stat::{major, makedev, minor};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// A text is not `major:minor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed device number: {text:?}")]
#[non_exhaustive]
pub struct ParseDeviceNumberError {
    /// The text.
    pub text: String,
}

/// A block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// The number in the kernel's "huge" encoding, as `dm_ioctl.dev` and `loop_info64.lo_device` hold it.
    pub const fn to_huge(self) -> u64 {
        let (major, minor) = (self.major as u64, self.minor as u64);
        (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
    }

    /// The number from the kernel's "huge" encoding.
    #[allow(clippy::cast_possible_truncation)] // masked to 12 and 20 bits
    pub const fn from_huge(dev: u64) -> Self {
        Self { major: (dev >> 8 & 0xfff) as u32, minor: (dev & 0xff | dev >> 12 & 0xfff00) as u32 }
    }

    #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)] // kernel: 12 and 20 bits
    pub(crate) fn from_dev_t(dev: libc::dev_t) -> Self {
        Self { major: major(dev) as u32, minor: minor(dev) as u32 }
    }

    pub(super) fn to_dev_t(self) -> libc::dev_t {
        #[allow(clippy::useless_conversion)] // the parameter types differ between C libraries
        makedev(self.major.into(), self.minor.into())
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DeviceNumber {
    type Err = ParseDeviceNumberError;

    /// `major:minor`, as the kernel writes it in tables.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text
            .split_once(':')
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }));
        let fits = number.filter(|number| Self::from_huge(number.to_huge()) == *number);
        fits.ok_or_else(|| ParseDeviceNumberError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn huge_encoding_round_trips(major in 0u32..1 << 12, minor in 0u32..1 << 20) {
            let number = DeviceNumber { major, minor };
            prop_assert_eq!(DeviceNumber::from_huge(number.to_huge()), number);
            prop_assert_eq!(number.to_string().parse::<DeviceNumber>().unwrap(), number);
        }
    }

    #[test]
    fn huge_encoding_is_the_kernels() {
        assert_eq!(DeviceNumber { major: 253, minor: 0x1234 }.to_huge(), 0x0120_fd34);
    }
}
