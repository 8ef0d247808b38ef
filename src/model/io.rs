//! Reads and writes of devices: down through the tables to thin volumes, files and disks.

use std::ops::Range;

/// What is done to a range of bytes.
#[derive(Debug)]
pub(super) enum Io<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
    /// As a write of so many zeroes.
    Zero(u64),
    /// Thin volumes unmap whole blocks; elsewhere the bytes become zeroes.
    Discard(u64),
}

impl Io<'_> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Read(buffer) => buffer.len() as u64,
            Self::Write(bytes) => bytes.len() as u64,
            Self::Zero(len) | Self::Discard(len) => *len,
        }
    }

    /// A range of it, which lies inside.
    pub(super) fn part(&mut self, range: Range<u64>) -> Io<'_> {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = index(range.start)..index(range.end);
        let len = range.end - range.start;
        match self {
            Self::Read(buffer) => Io::Read(&mut buffer[bytes]),
            Self::Write(all) => Io::Write(&all[bytes]),
            Self::Zero(_) => Io::Zero(len),
            Self::Discard(_) => Io::Discard(len),
        }
    }
}
