//! The label: what is where on the device. Pure.
//!
//! ```text
//! 0        4 KiB                1 MiB - 4 KiB   1 MiB
//! │ label  │        zeroes      │ label         │ segments: metadata, data, …
//! ```
//!
//! Both copies say the same, apart from a crash between writing the one and the other: then the
//! generation shows which is newer, and both describe what was there before.

use uuid::Uuid;

use crate::thin::check_block_size;
use crate::thin::{Error, Result};
use crate::units::{Bytes, Sectors};

/// Bytes of a label.
pub(super) const SIZE: usize = 4096;
/// What is in front of the segments.
pub(super) const RESERVED: Sectors = Bytes::mib(1).sectors();
/// Where the copies are, in bytes.
pub(super) const COPIES: [u64; 2] = [0, RESERVED.bytes().0 - SIZE as u64];
pub(super) const MAGIC: &[u8; 8] = b"DM-THIN\0";
const VERSION: u32 = 1;
const HEAD: usize = 64;
const SEGMENT: usize = 24;
const MAX_SEGMENTS: usize = (SIZE - HEAD) / SEGMENT;

/// Which of a pool's devices.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubDevice {
    /// The metadata device.
    Metadata,
    /// The data device.
    Data,
}

/// A piece of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Segment {
    /// What it belongs to.
    pub part: SubDevice,
    /// Where it begins.
    pub start: Sectors,
    /// How long it is.
    pub length: Sectors,
}

/// What a device's label says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Label {
    /// What it is found by.
    pub uuid: Uuid,
    /// How often it was written.
    pub generation: u64,
    /// The pool's block size, which never changes.
    pub block_size: Sectors,
    /// The pieces, in the order in which they are on the device.
    pub segments: Vec<Segment>,
}

impl Label {
    /// How large one of the pool's devices is.
    pub fn size(&self, part: SubDevice) -> Sectors {
        self.of(part).fold(Sectors(0), |sum, segment| sum + segment.length)
    }

    pub(super) fn of(&self, part: SubDevice) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.part == part)
    }

    /// Where the last segment ends.
    pub(super) fn end(&self) -> Sectors {
        self.segments.last().map_or(RESERVED, |segment| segment.start + segment.length)
    }

    /// Gives a part more of what is behind the last segment.
    pub(super) fn append(&mut self, part: SubDevice, length: Sectors) -> Result<()> {
        let (start, count) = (self.end(), self.segments.len());
        match self.segments.last_mut() {
            Some(last) if last.part == part => last.length = last.length + length,
            _ if count == MAX_SEGMENTS => {
                let (option, value) = ("segments", MAX_SEGMENTS.to_string());
                return Err(Error::InvalidOption {
                    option,
                    value,
                    reason: "the label has no room for another segment",
                });
            }
            _ => self.segments.push(Segment { part, start, length }),
        }
        Ok(())
    }

    pub(super) fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, self.uuid.as_bytes());
        put(32, &self.generation.to_le_bytes());
        put(40, &self.block_size.0.to_le_bytes());
        put(48, &(self.segments.len() as u64).to_le_bytes());
        for (n, segment) in self.segments.iter().enumerate() {
            let at = HEAD + n * SEGMENT;
            let part: u64 = if segment.part == SubDevice::Metadata { 0 } else { 1 };
            put(at, &part.to_le_bytes());
            put(at + 8, &segment.start.0.to_le_bytes());
            put(at + 16, &segment.length.0.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` if there is no label; [`Error::Malformed`] if there is one that cannot be trusted.
    pub(super) fn decode(bytes: &[u8; SIZE]) -> Result<Option<Self>> {
        if !bytes.starts_with(MAGIC) {
            return Ok(None);
        }
        let malformed = |what: &str| Error::Malformed { what: "dm-thin label", raw: what.to_owned() };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(12) != checksum(bytes) {
            return Err(malformed("wrong checksum"));
        }
        if word(8) != VERSION {
            return Err(malformed(&format!("version {}", word(8))));
        }
        let count = usize::try_from(long(48)).unwrap_or(usize::MAX);
        if count > MAX_SEGMENTS {
            return Err(malformed("too many segments"));
        }
        let uuid = Uuid::from_slice(&bytes[16..32]).map_err(|_| malformed("uuid"))?;
        let (generation, block_size) = (long(32), Sectors(long(40)));
        check_block_size(block_size).map_err(|_| malformed("block size"))?;
        if generation == u64::MAX {
            return Err(malformed("there is no next generation"));
        }
        let mut label = Self { uuid, generation, block_size, segments: Vec::new() };
        for at in (HEAD..).step_by(SEGMENT).take(count) {
            let part = match long(at) {
                0 => SubDevice::Metadata,
                1 => SubDevice::Data,
                _ => return Err(malformed("unknown kind of segment")),
            };
            let (start, length) = (Sectors(long(at + 8)), Sectors(long(at + 16)));
            if start < label.end() || length.0 == 0 || start.0.checked_add(length.0).is_none() {
                return Err(malformed("segments overlap"));
            }
            label.segments.push(Segment { part, start, length });
        }
        Ok(Some(label))
    }
}

/// CRC-32 of the label with the field of the checksum left out.
fn checksum(bytes: &[u8; SIZE]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label(parts: &[(bool, u64)]) -> Label {
        let (uuid, generation) = (Uuid::from_u128(7), 3);
        let mut label = Label { uuid, generation, block_size: Sectors(128), segments: Vec::new() };
        for &(data, length) in parts {
            label.append(if data { SubDevice::Data } else { SubDevice::Metadata }, Sectors(length)).unwrap();
        }
        label
    }

    proptest! {
        #[test]
        fn labels_round_trip(parts in proptest::collection::vec((any::<bool>(), 1u64..1 << 40), 0..100)) {
            let label = label(&parts);
            prop_assert_eq!(Label::decode(&label.encode()).unwrap(), Some(label));
        }

        #[test]
        fn one_changed_byte_is_noticed(at in 8usize..SIZE, change in 1u8..) {
            let mut bytes = label(&[(false, 4096), (true, 100_000)]).encode();
            bytes[at] ^= change;
            prop_assert!(Label::decode(&bytes).is_err());
        }

        /// Behind a good checksum: random bytes are none of it, nor is a last generation.
        #[test]
        fn any_bytes_are_malformed(
            mut bytes in proptest::collection::vec(any::<u8>(), SIZE),
            count in 0u64..3,
            last: bool,
        ) {
            let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
            put(0, MAGIC);
            put(8, &VERSION.to_le_bytes());
            put(48, &count.to_le_bytes());
            if last {
                put(32, &u64::MAX.to_le_bytes());
                put(40, &128u64.to_le_bytes());
            }
            let mut bytes: [u8; SIZE] = bytes.try_into().unwrap();
            let sum = checksum(&bytes);
            bytes[12..16].copy_from_slice(&sum.to_le_bytes());
            let is_malformed = matches!(Label::decode(&bytes), Err(Error::Malformed { .. }));
            prop_assert!(is_malformed);
        }
    }

    #[test]
    fn neighbours_are_one_segment() {
        let label = label(&[(false, 8), (true, 100), (true, 28)]);
        assert_eq!(label.segments.len(), 2);
        assert_eq!((label.size(SubDevice::Data), label.end()), (Sectors(128), Sectors(2048 + 136)));
        assert_eq!(Label::decode(&[0; SIZE]).unwrap(), None);
    }
}
