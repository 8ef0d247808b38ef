//! The send stream: volumes as a sequence of bytes, for any [`Write`](std::io::Write) and [`Read`](std::io::Read).
//!
//! An [`Encoder`] writes a stream, a [`Decoder`] reads and verifies one. Neither knows devices or trees. A stream
//! carries one or several volumes, a volume's base before the volume. Each is either whole or the difference to a
//! base, named by UUID. Checksums and the digest detect damage; they do not authenticate the sender.
//!
//! # Format, version 1
//!
//! All numbers are little endian. A stream is 12 bytes, then records:
//!
//! ```text
//!  0        8         12
//! ┌────────┬─────────┬──────────┬──────────┬─╌
//! │ magic  │ version │ record 0 │ record 1 │
//! └────────┴─────────┴──────────┴──────────┴─╌
//! magic = "DMTHIN\r\n", version = 1
//!
//!  0      2       4        8          16       20
//! ┌──────┬───────┬────────┬──────────┬────────┬──────────────┐
//! │ type │ flags │ length │ sequence │ crc32c │ length bytes │
//! └──────┴───────┴────────┴──────────┴────────┴──────────────┘
//! ```
//!
//! `sequence` counts records from 0. `crc32c` covers the 16 bytes before it and the body. Bit 0 of `flags` marks an
//! optional record: a reader that does not know its type skips it. Any other unknown type or flag is refused. `length`
//! is at most 1 MiB + 8.
//!
//! | type | name | body |
//! |---|---|---|
//! | 1 | STREAM | stream UUID, UUID of the sender's tree, required features u64, optional features u64 |
//! | 2 | BEGIN | volume UUID, base UUID (zero: none), file system UUID (zero: none), size u64, block size u64 (0: unknown), resume offset u64, name, file system type (empty: none), number of labels u16, key and value of each label in ascending order of the keys |
//! | 3 | DATA | offset u64, 1 byte to 1 MiB of data |
//! | 4 | HOLE | offset u64, length u64 |
//! | 5 | ZERO | offset u64, length u64 |
//! | 6 | VOLUME_END | counts, digest |
//! | 7 | END | counts, number of volumes u64, digest |
//! | 8 | | reserved for compressed data, with bit 0 of the required features |
//!
//! A UUID is its 16 bytes in order. A string is its length u16 and that many bytes of UTF-8. Counts are six u64: number
//! of records and bytes of DATA, of HOLE, of ZERO; of the volume in VOLUME_END, of all volumes in END. The digest is
//! the SHA-256 of the stream up to the header of the record that has it.
//!
//! STREAM is first, END is last, and nothing follows it. Every volume is BEGIN, its ranges, VOLUME_END. Ranges ascend,
//! do not overlap, are not empty, lie within the volume's size, and begin at the resume offset or after it. What no
//! range covers is as in the base, or zero if there is none. The target maps nothing in a HOLE; a ZERO is mapped and
//! contains zeroes only. Both read as zeroes.

mod decoder;
mod encoder;
mod error;
mod header;
mod ranges;
mod record;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Event};
pub use encoder::Encoder;
pub use error::StreamError;
pub use header::{StreamFilesystem, StreamHeader, VolumeHeader};
pub use ranges::RangeChecker;
pub use record::{Counts, MAX_DATA, StreamSummary};
