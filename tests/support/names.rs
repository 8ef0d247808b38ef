//! Names are kept whole or refused, and refused for a reason that holds.

use dm_thin::dm::{DmName, DmUuid, TargetType};

/// Take the bytes for text.
pub fn fuzz(bytes: &[u8]) {
    check(&String::from_utf8_lossy(bytes));
}

/// Take the text for each kind of name.
pub fn check(text: &str) {
    let fits = |len: usize| !text.is_empty() && text.len() < len && !text.contains('\0');
    let slash = text.contains('/');
    let reserved = matches!(text, "control" | "." | "..");
    let name = DmName::new(text).map(|name| name.to_string());
    let uuid = DmUuid::new(text).map(|uuid| uuid.to_string());
    let target = TargetType::new(text).map(|target| target.to_string());
    assert_eq!(name.is_ok(), fits(128) && !slash && !reserved);
    assert_eq!(uuid.is_ok(), fits(129) && !slash);
    assert_eq!(target.is_ok(), fits(16));
    for kept in [name, uuid, target].into_iter().flatten() {
        assert_eq!(kept, text);
    }
}
