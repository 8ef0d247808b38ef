//! A stream into the tree: each snapshot is there when all of it is there and verified, or not at all.

use std::io::Read;

use serde::Serialize;
use uuid::Uuid;

use crate::tree::ops::add::now;
use crate::tree::ops::writer::Purpose;
use crate::tree::state::record::{FsState, Making, Receiving, Snapshot};
use crate::tree::stream::{Decoder, Event, StreamError, StreamSummary, VolumeHeader};
use crate::tree::{
    AddOptions, Labels, Parent, Progress, ReceiveOptions, SnapshotId, SnapshotTree, SnapshotWriter,
};
use crate::tree::{Error, Result};
use crate::units::Bytes;

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiveReport {
    /// The new snapshots, in the order of the stream.
    pub snapshots: Vec<SnapshotId>,
    /// What the stream had.
    pub summary: StreamSummary,
}

/// A receive that failed and can be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PartialReceive {
    /// The id that the snapshot was to get.
    pub id: SnapshotId,
    /// Identity of the content.
    pub volume: Uuid,
    /// Identity of the base's content.
    pub base: Option<Uuid>,
    /// Size of the volume.
    pub size: Bytes,
    /// Everything before this offset is there: what to [resume from](crate::tree::SendOptions::resume_from).
    pub offset: Bytes,
}

/// A volume of the stream on its way into the tree.
struct Incoming<'a> {
    writer: SnapshotWriter<'a>,
    header: Box<VolumeHeader>,
    /// Everything before it is written.
    offset: u64,
    /// Written, and not synced yet.
    unsynced: u64,
    checkpoint_every: u64,
    /// Where nothing is mapped from, apart from what this receive writes: all of it reads as zeroes already.
    mapped_end: u64,
}

impl SnapshotTree {
    /// Reads a [stream](crate::tree::stream) that [`send`](Self::send) or [`send_tree`](Self::send_tree) wrote, and
    /// adds its snapshots, sealed, with the identity and the labels that they have at the sender. A difference is
    /// applied to a snapshot of the base, which is found by its identity and stays as it is.
    ///
    /// A snapshot is published by one durable record when it is complete, verified and durable: the last one when the
    /// stream has ended, each other one when the next one begins. The block sizes of the two pools may differ.
    /// `input` is read to its end, and nothing may follow the stream.
    ///
    /// # Errors
    /// Before anything is written: [`Error::NoBase`]; [`Error::SnapshotExists`]; [`Error::NotZeroed`];
    /// [`Error::NotResumable`] and [`Error::Receiving`]; [`Error::OptionConflict`] for another file system than the
    /// tree's; [`Error::InvalidOption`] for a volume smaller than its base; [`Error::Stream`]. After that
    /// [`Error::Receive`]: nothing is left of the volume that failed, unless the receive is
    /// [resumable](ReceiveOptions::resumable); those before it stay.
    pub fn receive(&self, input: impl Read, mut options: ReceiveOptions<'_>) -> Result<ReceiveReport> {
        self.check_open()?;
        self.check_zeroed(options.allow_unzeroed)?;
        let mut decoder = Decoder::new(input)?;
        let mut snapshots = Vec::new();
        let mut incoming: Option<Incoming<'_>> = None;
        let mut summary = None;
        loop {
            let applied = match decoder.next_event() {
                Ok(None) => break,
                Ok(Some(Event::Begin(header))) => {
                    if let Some(complete) = incoming.take() {
                        snapshots.push(complete.publish()?);
                    }
                    incoming = Some(self.begin(header, &options)?);
                    Ok(())
                }
                Ok(Some(Event::End(found))) => {
                    summary = Some(found);
                    Ok(())
                }
                Ok(Some(event)) => incoming.as_mut().map_or(Ok(()), |incoming| incoming.apply(&event)),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = applied {
                return Err(match incoming {
                    Some(incoming) => incoming.fail(error),
                    None => error,
                });
            }
            if let Some(Incoming { header, offset, .. }) = &incoming {
                let (volume, size, stream) = (header.volume, header.size, decoder.consumed());
                options.progress.tell(Progress { volume, offset: Bytes(*offset), size, stream });
            }
        }
        if let Some(complete) = incoming {
            snapshots.push(complete.publish()?);
        }
        // The decoder ends with END only.
        let summary = summary.ok_or(StreamError::Failed)?;
        Ok(ReceiveReport { snapshots, summary })
    }

    /// Receives that failed and can be continued, in the order in which they began.
    pub fn partial_receives(&self) -> Vec<PartialReceive> {
        self.store.read(|graph| {
            let partial =
                graph.making.iter().filter_map(|making| Some((making.size, making.receive.clone()?)));
            let partial = partial.map(|(size, Receiving { volume, base, id, offset })| PartialReceive {
                id,
                volume,
                base,
                size,
                offset,
            });
            partial.collect()
        })
    }

    /// Deletes what is here of a volume whose receive failed, from whatever base.
    ///
    /// # Errors
    /// [`Error::NoReceive`]; [`Error::Receiving`] if another call continues it.
    pub fn discard_receive(&self, volume: Uuid) -> Result<()> {
        self.check_open()?;
        let partial = self.partial(volume);
        if partial.is_empty() {
            return Err(Error::NoReceive { volume });
        }
        self.discard_partial(None, volume, partial)
    }

    /// Deletes these, for a receive under that name if there is one.
    fn discard_partial(
        &self,
        name: Option<&SnapshotId>,
        volume: Uuid,
        partial: Vec<(Making, Receiving)>,
    ) -> Result<()> {
        partial.into_iter().try_for_each(|(making, _)| {
            let _reservation = self.store.reserve_making(name.cloned(), making.thin_id, volume)?;
            self.deactivate_and_unmake(making.thin_id)
        })
    }

    fn partial(&self, volume: Uuid) -> Vec<(Making, Receiving)> {
        self.store.read(|graph| {
            let receives = graph.making.iter().filter_map(|it| Some((it.clone(), it.receive.clone()?)));
            receives.filter(|(_, receive)| receive.volume == volume).collect()
        })
    }

    /// Makes the volume for the ranges that follow, or goes on with the one that is there.
    fn begin(&self, header: Box<VolumeHeader>, options: &ReceiveOptions<'_>) -> Result<Incoming<'_>> {
        let id = options.id(&header.name)?;
        let labels = Labels::try_from(header.labels.clone())?;
        if let Some(filesystem) = &header.filesystem
            && Some(filesystem.kind.as_str()) != self.store.filesystem().kernel_name()
        {
            let (option, asked) = ("file system", filesystem.kind.clone());
            let recorded = self.store.filesystem().kernel_name().unwrap_or("none");
            return Err(Error::OptionConflict { option, recorded: recorded.to_owned(), asked });
        }
        let base = header
            .base
            .map(|uuid| self.store.read(|graph| graph.sealed_as(uuid)).ok_or(Error::NoBase { uuid }));
        let base = base.transpose()?;
        let fits = |(making, receive): &(Making, Receiving)| {
            making.size == header.size && receive.base == header.base
        };
        let mut partial: Vec<_> = self.partial(header.volume).into_iter().filter(fits).collect();
        let had_partial = !partial.is_empty();
        if header.resume == Bytes(0) {
            // The stream has all of the volume: what is here may be from somebody else.
            self.discard_partial(Some(&id), header.volume, std::mem::take(&mut partial))?;
        }
        let partial = partial.into_iter().max_by_key(|(_, receive)| receive.offset);
        let received = partial.as_ref().map_or(Bytes(0), |(_, receive)| receive.offset);
        if header.resume > received {
            return Err(Error::NotResumable { volume: header.volume, asked: header.resume, received });
        }
        let resumable = options.resumable || had_partial;
        let purpose = Purpose::Receive { volume: header.volume, base: header.base, resumable };
        let writer = match partial {
            Some((making, _)) => {
                let reservation =
                    self.store.reserve_making(Some(id.clone()), making.thin_id, header.volume)?;
                let parent = base.as_ref().and_then(|base| self.get(base.as_str()).ok());
                let snapshot = Snapshot::new(making.thin_id, base, header.size, FsState::Ready);
                let snapshot = Snapshot { labels, created: now(), ..snapshot };
                self.write_making(id, (snapshot, parent.map(|parent| parent.thin_id)), purpose, reservation)?
            }
            None => {
                let parent = base.as_ref().map(|base| Parent::Snapshot(base.as_str()));
                let added = AddOptions::new().size(header.size).labels(labels);
                let mut writer = self.make(id, parent, &added, purpose)?;
                // The sender has grown it already.
                writer.set_ready();
                writer
            }
        };
        let mapped_end = match self.check_zeroed(false) {
            Ok(()) => writer.mapped_end()?.0,
            // New blocks contain something else than zeroes.
            Err(_) => header.size.0,
        };
        let (offset, checkpoint_every) = (header.resume.0, options.checkpoint_every.0);
        Ok(Incoming { writer, header, offset, unsynced: 0, checkpoint_every, mapped_end })
    }
}

impl Incoming<'_> {
    fn apply(&mut self, event: &Event<'_>) -> Result<()> {
        let (offset, length) = match event {
            Event::Data { offset, data } => {
                self.writer.write_at(*offset, data)?;
                (offset, Bytes(data.len() as u64))
            }
            Event::Hole { offset, length } | Event::Zero { offset, length } => {
                // A short stream can have a hole that a discard would take hours for.
                let mapped = length.0.min(self.mapped_end.saturating_sub(offset.0));
                self.writer.zero(*offset, Bytes(mapped))?;
                (offset, *length)
            }
            _ => return Ok(()),
        };
        self.offset = offset.0 + length.0;
        self.unsynced += length.0;
        if self.writer.is_kept() && self.unsynced >= self.checkpoint_every {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Makes what was written durable, and then the offset.
    fn checkpoint(&mut self) -> Result<()> {
        self.writer.sync()?;
        self.writer.received(Bytes(self.offset))?;
        self.unsynced = 0;
        Ok(())
    }

    fn publish(self) -> Result<SnapshotId> {
        let Self { writer, header, offset, .. } = self;
        let (id, resume) = (writer.id().clone(), writer.received_offset());
        writer.publish(Some(header.volume)).map_err(|source| Error::Receive {
            id: id.to_string(),
            offset: Bytes(offset),
            resume,
            source: Box::new(source),
        })?;
        Ok(id)
    }

    /// Keeps what is worth it.
    fn fail(mut self, source: Error) -> Error {
        use StreamError::{Checksum, Io, Sequence, Truncated};
        // What came before a cut, or a damaged or lost record, is right; anything else says that it may not be.
        let usable = !matches!(source, Error::Stream(ref error)
            if !matches!(error, Io(_) | Truncated { .. } | Checksum { .. } | Sequence { .. }));
        let mut resume = None;
        if self.writer.is_kept() && usable {
            // Without, it goes on from the last durable offset; the first error counts.
            let _ = self.checkpoint();
            resume = self.writer.received_offset();
        } else {
            self.writer.delete_at_drop();
        }
        let id = self.writer.id().to_string();
        Error::Receive { id, offset: Bytes(self.offset), resume, source: Box::new(source) }
    }
}
