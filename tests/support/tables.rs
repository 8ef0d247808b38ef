//! Table lines, status lines and messages: what is parsed is printed as something that parses to the same.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use dm_thin::dm::targets::{ErrorTarget, Linear, Zero};
use dm_thin::kernel::DeviceNumber;
use dm_thin::thin::{Message, PoolStatus, PoolTable, ThinStatus, ThinTable};
use dm_thin::units::Bytes;

/// Take the bytes for each kind of line.
pub fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    check::<DeviceNumber>(&text);
    check::<Linear>(&text);
    check::<Zero>(&text);
    check::<ErrorTarget>(&text);
    check::<PoolTable>(&text);
    check::<ThinTable>(&text);
    check::<PoolStatus>(&text);
    check::<ThinStatus>(&text);
    check::<Message>(&text);
    check::<Bytes>(&text);
}

/// Parse, print, parse.
pub fn check<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let printed = value.to_string();
        assert_eq!(printed.parse::<T>().ok().as_ref(), Some(&value), "{text:?} became {printed:?}");
    }
}
