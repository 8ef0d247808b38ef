//! Every decoder on any bytes: no panic, and no more memory than a small multiple of them.

use dm_thin::dm::DmName;
use dm_thin::dm::wire::Response;

/// Decode the bytes as they are, and, since a fuzzer seldom guesses the sizes, behind a header whose
/// sizes are right: the minor version, the flags and the number of targets are then the first bytes.
pub fn fuzz(bytes: &[u8]) {
    check(bytes);
    let Some((&[minor, flags, count], payload)) = bytes.split_first_chunk() else { return };
    let mut answer = vec![0; 312];
    answer.extend(payload);
    let size = u32::try_from(answer.len()).unwrap_or(u32::MAX);
    // DATA_OUT is the flag that a decoder looks at.
    let flags = u32::from(flags) << 16;
    let words = [(0, 4), (4, minor.into()), (12, size), (16, 312), (20, count.into()), (28, flags)];
    for (at, word) in words {
        answer[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    answer[48..52].copy_from_slice(b"pool");
    check(&answer);
}

/// Decode an answer as that of every command.
pub fn check(bytes: &[u8]) {
    let Ok(answer) = Response::decode(bytes) else { return };
    let _ = (answer.version(), answer.flags().bits(), answer.event_nr(), answer.number());
    if let Ok(device) = answer.device() {
        assert!(!device.name.as_bytes().is_empty());
    }
    // The least a record takes, as the kernel lays it out, bounds their number.
    if let Ok(devices) = answer.devices() {
        assert!(devices.len() <= bytes.len() / 16 + 1);
        for name in devices.iter().map(|device| device.name) {
            let reserved = matches!(name.as_bytes(), b"control" | b"." | b"..");
            assert_eq!(DmName::from_bytes(name.as_bytes()).ok(), (!reserved).then_some(name));
        }
    }
    if let Ok(lines) = answer.targets() {
        assert!(lines.len() <= bytes.len() / 40);
        let text: usize = lines.iter().map(|line| line.text.len()).sum();
        assert!(text <= bytes.len(), "{text} bytes of text out of {} bytes", bytes.len());
    }
    if let Ok(numbers) = answer.dependencies() {
        assert!(numbers.len() <= bytes.len() / 8);
    }
    if let Ok(versions) = answer.target_versions() {
        assert!(versions.len() <= bytes.len() / 16);
    }
    if let Ok(Some(text)) = answer.message() {
        assert!(text.len() < bytes.len());
    }
}
