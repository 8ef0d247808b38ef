//! dm-thin's own format.

use std::io::{Read, Write};

use dm_thin::tree::stream::{Decoder, Encoder, Event, StreamHeader, StreamSummary, VolumeHeader};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::{DiffEvent, DiffHeader, DiffSink, DiffSource, Error, Result};

const FORMAT: &str = "dm-thin";

/// Writes a stream with one volume. The header needs `volume`, `name` and `size`.
#[derive(Debug)]
pub struct StreamWriter<W> {
    state: State<W>,
}

#[derive(Debug)]
enum State<W> {
    New(Box<Encoder<W>>),
    InVolume(Box<Encoder<W>>),
    Finished(W, StreamSummary),
    Failed,
}

impl<W: Write> StreamWriter<W> {
    /// Begins a stream from `tree`: a nil UUID if the volume does not come from a tree.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(writer: W, tree: Uuid) -> Result<Self> {
        let header = StreamHeader { stream: Uuid::new_v4(), tree };
        Ok(Self { state: State::New(Box::new(Encoder::new(writer, &header)?)) })
    }

    /// Returns the writer below and the summary, if the stream was finished.
    pub fn into_inner(self) -> Option<(W, StreamSummary)> {
        match self.state {
            State::Finished(writer, summary) => Some((writer, summary)),
            _ => None,
        }
    }

    fn volume(&mut self) -> Result<&mut Encoder<W>> {
        match &mut self.state {
            State::InVolume(encoder) => Ok(encoder),
            _ => Err(Error::Order),
        }
    }
}

impl<W: Write> DiffSink for StreamWriter<W> {
    fn begin(&mut self, header: &DiffHeader) -> Result<()> {
        let missing = |field| Error::MissingField { format: FORMAT, field };
        // Without its UUID this would be a whole volume.
        if header.base.is_none() && header.base_name.is_some() {
            return Err(missing("base"));
        }
        let header = VolumeHeader {
            volume: header.volume.ok_or_else(|| missing("volume"))?,
            base: header.base,
            name: header.name.clone().ok_or_else(|| missing("name"))?,
            size: header.size.ok_or_else(|| missing("size"))?,
            block_size: header.block_size.unwrap_or_default(),
            filesystem: None,
            labels: Default::default(),
            resume: Bytes(0),
        };
        match std::mem::replace(&mut self.state, State::Failed) {
            State::New(mut encoder) => {
                encoder.begin(&header)?;
                self.state = State::InVolume(encoder);
                Ok(())
            }
            state => {
                self.state = state;
                Err(Error::Order)
            }
        }
    }

    fn data(&mut self, offset: Bytes, data: &[u8]) -> Result<()> {
        Ok(self.volume()?.data(offset, data)?)
    }

    fn hole(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        Ok(self.volume()?.hole(offset, length)?)
    }

    fn zero(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        Ok(self.volume()?.zero(offset, length)?)
    }

    fn finish(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::InVolume(mut encoder) => {
                encoder.end_volume()?;
                let (writer, summary) = encoder.finish()?;
                self.state = State::Finished(writer, summary);
                Ok(())
            }
            state => {
                self.state = state;
                Err(Error::Order)
            }
        }
    }
}

/// Reads a stream with one volume. File system and labels are not among the [`DiffHeader`]'s fields.
#[derive(Debug)]
pub struct StreamReader<R> {
    decoder: Decoder<R>,
    volume: VolumeHeader,
    header: DiffHeader,
    buffer: Vec<u8>,
    state: ReaderState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReaderState {
    InVolume,
    Ended,
    Failed,
}

impl<R: Read> StreamReader<R> {
    /// Reads up to the first range.
    ///
    /// # Errors
    /// [`Error::Stream`]; [`Error::NotOneVolume`] for a stream without volumes, or the rest of one.
    pub fn new(reader: R) -> Result<Self> {
        let mut decoder = Decoder::new(reader)?;
        let Some(Event::Begin(volume)) = decoder.next_event()? else {
            return Err(Error::NotOneVolume { found: "no volume" });
        };
        if volume.resume.0 != 0 {
            return Err(Error::NotOneVolume { found: "the rest of a volume" });
        }
        let header = DiffHeader {
            volume: Some(volume.volume),
            base: volume.base,
            name: Some(volume.name.clone()),
            base_name: None,
            size: Some(volume.size),
            block_size: Some(volume.block_size).filter(|size| size.0 != 0),
        };
        Ok(Self { decoder, volume: *volume, header, buffer: Vec::new(), state: ReaderState::InVolume })
    }

    /// Returns the volume's own header.
    pub fn volume(&self) -> &VolumeHeader {
        &self.volume
    }

    fn verify_end(&mut self) -> Result<()> {
        match self.decoder.next_event()? {
            Some(Event::End(_)) => {}
            _ => return Err(Error::NotOneVolume { found: "several volumes" }),
        }
        // Trailing data is an error.
        self.decoder.next_event()?;
        Ok(())
    }
}

impl<R: Read> DiffSource for StreamReader<R> {
    fn header(&self) -> &DiffHeader {
        &self.header
    }

    fn next_event(&mut self) -> Result<Option<DiffEvent<'_>>> {
        match std::mem::replace(&mut self.state, ReaderState::Failed) {
            ReaderState::InVolume => {}
            ReaderState::Ended => {
                self.state = ReaderState::Ended;
                return Ok(None);
            }
            ReaderState::Failed => return Err(Error::Failed),
        }
        // Data is copied: borrowed, it would keep the decoder from verifying the end.
        let event = match self.decoder.next_event()? {
            Some(Event::Data { offset, data }) => {
                self.buffer.clear();
                self.buffer.extend_from_slice(data);
                DiffEvent::Data { offset, data: &self.buffer }
            }
            Some(Event::Hole { offset, length }) => DiffEvent::Hole { offset, length },
            Some(Event::Zero { offset, length }) => DiffEvent::Zero { offset, length },
            _ => {
                self.verify_end()?;
                self.state = ReaderState::Ended;
                return Ok(None);
            }
        };
        self.state = ReaderState::InVolume;
        Ok(Some(event))
    }
}
