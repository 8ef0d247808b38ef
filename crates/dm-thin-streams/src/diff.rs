use dm_thin::units::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Result;

/// What a format says about the volume. Formats differ in what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffHeader {
    /// Identity of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Uuid>,
    /// Identity of the volume that this is the difference to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Uuid>,
    /// Name of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_name: Option<String>,
    /// Size of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Block size of the sender's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<Bytes>,
}

/// A range of the volume, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffEvent<'a> {
    /// Data, at most 1 MiB. One record of a format may become several events.
    Data {
        /// Where it begins.
        offset: Bytes,
        /// The data.
        data: &'a [u8],
    },
    /// Not mapped, reads as zeroes.
    Hole {
        /// Where it begins.
        offset: Bytes,
        /// Its length.
        length: Bytes,
    },
    /// Mapped, contains only zeroes.
    Zero {
        /// Where it begins.
        offset: Bytes,
        /// Its length.
        length: Bytes,
    },
}

/// Reads a volume, or a difference, from a stream.
pub trait DiffSource {
    /// Returns what the stream says about the volume.
    fn header(&self) -> &DiffHeader;

    /// Returns the next range; `None` after the last one, when the end of the stream was verified.
    ///
    /// # Errors
    /// What is wrong with the stream; [`Error::Failed`](crate::Error::Failed) in any call after that.
    fn next_event(&mut self) -> Result<Option<DiffEvent<'_>>>;
}

/// Writes a volume, or a difference, to a stream: `begin`, ranges in ascending order, `finish`.
pub trait DiffSink {
    /// Begins the stream.
    ///
    /// # Errors
    /// [`Error::MissingField`](crate::Error::MissingField) if the format needs more than the header has.
    fn begin(&mut self, header: &DiffHeader) -> Result<()>;

    /// Writes data.
    ///
    /// # Errors
    /// [`StreamError::OutOfRange`](dm_thin::tree::stream::StreamError::OutOfRange) in
    /// [`Error::Stream`](crate::Error::Stream); [`Error::Order`](crate::Error::Order);
    /// [`Error::Io`](crate::Error::Io).
    fn data(&mut self, offset: Bytes, data: &[u8]) -> Result<()>;

    /// Writes a range that is not mapped.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    fn hole(&mut self, offset: Bytes, length: Bytes) -> Result<()>;

    /// Writes a mapped range of zeroes. By default this is data.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    fn zero(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < length.0 {
            let piece = usize::try_from(length.0 - done).unwrap_or(ZEROES.len()).min(ZEROES.len());
            self.data(Bytes(offset.0.saturating_add(done)), &ZEROES[..piece])?;
            done += piece as u64;
        }
        Ok(())
    }

    /// Ends the stream and flushes the writer. A stream that was not ended is incomplete.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    fn finish(&mut self) -> Result<()>;
}

/// Converts a stream to another format.
///
/// # Errors
/// Those of the source and the sink. Then the sink's stream is incomplete.
pub fn copy(source: &mut dyn DiffSource, sink: &mut dyn DiffSink) -> Result<()> {
    let header = source.header().clone();
    copy_as(source, &header, sink)
}

/// Converts a stream to another format, with another header: a UUID for a volume that has a name only, for example.
///
/// # Errors
/// As [`copy`].
pub fn copy_as(source: &mut dyn DiffSource, header: &DiffHeader, sink: &mut dyn DiffSink) -> Result<()> {
    sink.begin(header)?;
    while let Some(event) = source.next_event()? {
        match event {
            DiffEvent::Data { offset, data } => sink.data(offset, data)?,
            DiffEvent::Hole { offset, length } => sink.hole(offset, length)?,
            DiffEvent::Zero { offset, length } => sink.zero(offset, length)?,
        }
    }
    sink.finish()
}
