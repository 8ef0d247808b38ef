//! Records: their headers and numbers.

use crate::units::Bytes;

/// Largest amount of data in one DATA record: 1 MiB.
pub const MAX_DATA: Bytes = Bytes::mib(1);

pub(super) const MAGIC: [u8; 8] = *b"DMTHIN\r\n";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_LEN: usize = 20;
/// A DATA record with its offset; nothing is longer.
pub(super) const MAX_BODY: usize = 8 + (1 << 20);

pub(super) const OPTIONAL: u16 = 1;

pub(super) const STREAM: u16 = 1;
pub(super) const BEGIN: u16 = 2;
pub(super) const DATA: u16 = 3;
pub(super) const HOLE: u16 = 4;
pub(super) const ZERO: u16 = 5;
pub(super) const VOLUME_END: u16 = 6;
pub(super) const END: u16 = 7;

/// Returns the record type's name, if it is known.
pub(super) fn name(kind: u16) -> Option<&'static str> {
    Some(match kind {
        STREAM => "STREAM",
        BEGIN => "BEGIN",
        DATA => "DATA",
        HOLE => "HOLE",
        ZERO => "ZERO",
        VOLUME_END => "VOLUME_END",
        END => "END",
        _ => return None,
    })
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) length: u32,
    pub(super) sequence: u64,
    pub(super) crc: u32,
}

impl RecordHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(&bytes);
        // 20 bytes hold all of them.
        Self {
            kind: fields.u16().unwrap_or_default(),
            flags: fields.u16().unwrap_or_default(),
            length: fields.u32().unwrap_or_default(),
            sequence: fields.u64().unwrap_or_default(),
            crc: fields.u32().unwrap_or_default(),
        }
    }

    /// Returns the checksum over the header's first 16 bytes and the body.
    pub(super) fn checksum(&self, parts: &[&[u8]]) -> u32 {
        let header = crc32c::crc32c(&self.encode()[..16]);
        parts.iter().fold(header, |crc, part| crc32c::crc32c_append(crc, part))
    }
}

/// Takes fields off the front of a record's body. Each method returns `None` if the body is too short.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Option<Bytes> {
        self.u64().map(Bytes)
    }

    pub(super) fn string(&mut self) -> Option<&'a str> {
        let length = self.u16()?;
        let (text, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        str::from_utf8(text).ok()
    }
}

/// What a volume or a stream consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of DATA records.
    pub data_records: u64,
    /// Their bytes.
    pub data: Bytes,
    /// Number of HOLE records.
    pub hole_records: u64,
    /// Their bytes.
    pub holes: Bytes,
    /// Number of ZERO records.
    pub zero_records: u64,
    /// Their bytes.
    pub zeroes: Bytes,
}

impl Counts {
    pub(super) const LEN: usize = 48;

    /// Counts a record of a range.
    pub(super) fn count(&mut self, kind: u16, length: Bytes) {
        let (records, bytes) = match kind {
            DATA => (&mut self.data_records, &mut self.data),
            HOLE => (&mut self.hole_records, &mut self.holes),
            _ => (&mut self.zero_records, &mut self.zeroes),
        };
        *records += 1;
        *bytes = *bytes + length;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.data_records += other.data_records;
        self.data = self.data + other.data;
        self.hole_records += other.hole_records;
        self.holes = self.holes + other.holes;
        self.zero_records += other.zero_records;
        self.zeroes = self.zeroes + other.zeroes;
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let numbers = [
            self.data_records,
            self.data.0,
            self.hole_records,
            self.holes.0,
            self.zero_records,
            self.zeroes.0,
        ];
        for (field, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// Summary of a complete stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSummary {
    /// Number of volumes.
    pub volumes: u64,
    /// Records and bytes of all volumes.
    pub counts: Counts,
    /// Size of the stream.
    pub size: Bytes,
    /// SHA-256 of the stream without its END record.
    pub digest: [u8; 32],
}
