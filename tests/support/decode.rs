//! Every decoder on any bytes: no panic, and no more memory than a small multiple of them.

use dm_thin::dm::wire::Response;

/// Decode an answer as that of every command.
pub fn check(bytes: &[u8]) {
    let Ok(answer) = Response::decode(bytes) else { return };
    let _ = (answer.version(), answer.flags().bits(), answer.event_nr(), answer.number());
    if let Ok(device) = answer.device() {
        assert!(!device.name.as_str().is_empty());
    }
    // The least a record takes, as the kernel lays it out, bounds their number.
    if let Ok(devices) = answer.devices() {
        assert!(devices.len() <= bytes.len() / 16 + 1);
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
