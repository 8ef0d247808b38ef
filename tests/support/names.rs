//! Names are kept whole or refused, and refused for a reason that holds.

use dm_thin::dm::{DmName, DmUuid, TargetType};

/// Take the bytes for a name, and for text.
pub fn fuzz(bytes: &[u8]) {
    check_bytes(bytes);
    check(&String::from_utf8_lossy(bytes));
}

/// Take the bytes for each kind of name that may be of any bytes.
pub fn check_bytes(bytes: &[u8]) {
    let fits =
        |len: usize| !bytes.is_empty() && bytes.len() < len && !bytes.contains(&0) && !bytes.contains(&b'/');
    let reserved = matches!(bytes, b"control" | b"." | b"..");
    let name = DmName::from_bytes(bytes);
    assert_eq!(name.is_ok(), fits(128) && !reserved);
    if let Ok(name) = name {
        assert_eq!((name.as_bytes(), name.to_str()), (bytes, std::str::from_utf8(bytes).ok()));
        assert!(name.to_str().is_none_or(|text| text == name.to_string()));
        // What is not UTF-8 is told, not replaced.
        let replaced = name.to_string().matches(char::REPLACEMENT_CHARACTER).count();
        assert_eq!(replaced, bytes.windows(3).filter(|three| *three == "\u{fffd}".as_bytes()).count());
    }
    let uuid = DmUuid::from_bytes(bytes);
    assert_eq!(uuid.is_ok(), fits(129));
    assert!(uuid.is_ok_and(|uuid| uuid.as_bytes() == bytes) || !fits(129));
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
