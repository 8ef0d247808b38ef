use std::io;

use dm_thin::tree::stream::StreamError;

/// The result of reading or writing a stream.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of reading or writing a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reader or writer below failed.
    #[error("{0}")]
    Io(#[from] io::Error),

    /// A stream of dm-thin's own format, or a range.
    #[error(transparent)]
    Stream(#[from] StreamError),

    /// The input ends before the stream does.
    #[error("{format} stream ends at byte {offset}")]
    Truncated {
        /// The format.
        format: &'static str,
        /// Where the incomplete part begins.
        offset: u64,
    },

    /// The input does not begin as the format does.
    #[error("not a {format} stream")]
    BadMagic {
        /// The format.
        format: &'static str,
    },

    /// A version of a format that is not read.
    #[error("{format} stream of version {version}; {supported} can be read")]
    Version {
        /// The format.
        format: &'static str,
        /// The stream's version.
        version: &'static str,
        /// The versions that are read.
        supported: &'static str,
    },

    /// The stream violates its format.
    #[error("{format} stream, byte {offset}: {reason}")]
    Malformed {
        /// The format.
        format: &'static str,
        /// Where in the stream.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },

    /// A counter at the end differs from what was read.
    #[error("{format} stream: {counter} is {expected} at its end, {found} were read")]
    Counter {
        /// The format.
        format: &'static str,
        /// The counter.
        counter: &'static str,
        /// What the end of the stream says.
        expected: u64,
        /// What was read.
        found: u64,
    },

    /// The digest at the end differs from that of what was read.
    #[error("{format} stream: its digest differs from that of its content")]
    Digest {
        /// The format.
        format: &'static str,
    },

    /// Bytes after the end of the stream.
    #[error("data after the end of the {format} stream at byte {offset}")]
    TrailingData {
        /// The format.
        format: &'static str,
        /// Where they begin.
        offset: u64,
    },

    /// The format needs a field of the header that is not known.
    #[error("a {format} stream needs the volume's {field}")]
    MissingField {
        /// The format.
        format: &'static str,
        /// The field of [`DiffHeader`](crate::DiffHeader).
        field: &'static str,
    },

    /// A field of the header that the format cannot hold.
    #[error("{field} is too long for a {format} stream")]
    TooLong {
        /// The format.
        format: &'static str,
        /// The field.
        field: &'static str,
    },

    /// The stream has no volume, or several; foreign formats hold one.
    #[error("the stream has {found}; one volume can be converted")]
    NotOneVolume {
        /// What it has.
        found: &'static str,
    },

    /// A line is not the JSON that is expected.
    #[error("line {line}: {source}")]
    Json {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },

    /// A sink was used before `begin` or after `finish`.
    #[error("stream not begun, begun twice, or finished already")]
    Order,

    /// The reader returned an error before; nothing can be read after it.
    #[error("stream failed before")]
    Failed,
}
