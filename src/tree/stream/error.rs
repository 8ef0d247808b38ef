use std::io;

use crate::units::Bytes;

/// Error of encoding or decoding a send stream. Records count from 0; offsets are in the stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The reader or writer below failed.
    #[error("send stream: {0}")]
    Io(#[from] io::Error),

    /// The stream ends before END.
    #[error("send stream ends in record {record} at byte {}", offset.0)]
    Truncated {
        /// The incomplete record.
        record: u64,
        /// Where the record begins.
        offset: Bytes,
    },

    /// Not a send stream.
    #[error("not a send stream: it begins with {:?}", found.escape_ascii().to_string())]
    BadMagic {
        /// The first bytes.
        found: [u8; 8],
    },

    /// A version of the format that this crate does not read.
    #[error("send stream of version {version}; this program reads version 1")]
    Version {
        /// The stream's version.
        version: u32,
    },

    /// A record differs from what was sent.
    #[error("wrong checksum of record {record} at byte {}", offset.0)]
    Checksum {
        /// The record.
        record: u64,
        /// Where it begins.
        offset: Bytes,
    },

    /// A record is missing, repeated or moved.
    #[error("record {found} instead of record {record}")]
    Sequence {
        /// The record that should follow.
        record: u64,
        /// The record that does.
        found: u64,
    },

    /// A required record type, record flag or feature that this crate does not know.
    #[error("unsupported {what} {value:#x}; a newer program wrote the stream")]
    Unsupported {
        /// Record type, flags or features.
        what: &'static str,
        /// The unknown value or bits.
        value: u64,
    },

    /// A record where the format does not allow it.
    #[error("record {record}: unexpected {kind}")]
    Unexpected {
        /// The record.
        record: u64,
        /// Its type.
        kind: &'static str,
    },

    /// A record's body does not match its type.
    #[error("record {record}: {reason}")]
    Malformed {
        /// The record.
        record: u64,
        /// What is wrong.
        reason: &'static str,
    },

    /// A field of a volume's header is invalid.
    #[error("volume header: {field}: {reason}")]
    InvalidHeader {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A range is empty, outside the volume, or not after the one before it.
    #[error("range of {} bytes at {}: {reason}", length.0, offset.0)]
    OutOfRange {
        /// Where the range begins in the volume.
        offset: Bytes,
        /// Its length.
        length: Bytes,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The counts of VOLUME_END or END differ from the records that were read.
    #[error("record {record}: its counts differ from the records before it")]
    Counts {
        /// The record.
        record: u64,
    },

    /// The digest of VOLUME_END or END differs from that of the bytes that were read.
    #[error("record {record}: its digest differs from that of the stream before it")]
    Digest {
        /// The record.
        record: u64,
    },

    /// Bytes after END.
    #[error("data after the end of the send stream at byte {}", offset.0)]
    TrailingData {
        /// Where they begin.
        offset: Bytes,
    },

    /// The decoder returned an error before; nothing can be read after it.
    #[error("send stream failed before")]
    Failed,
}

impl StreamError {
    /// Tells the end of input from other I/O errors.
    pub(super) fn read(error: io::Error, record: u64, offset: u64) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated { record, offset: Bytes(offset) },
            _ => Self::Io(error),
        }
    }
}
