//! Sealed snapshots as a stream.

use std::collections::HashMap;
use std::fmt;
use std::io::{Write, sink};

use uuid::Uuid;
use zerocopy::IntoBytes;

use crate::kernel::AlignedBlock;
use crate::thin::metadata::ChangeKind;
use crate::tree::ops::changed::Compared;
use crate::tree::ops::reader::BLOCK;
use crate::tree::stream::{Encoder, StreamFilesystem, StreamHeader, StreamSummary, VolumeHeader};
use crate::tree::{ChangedRange, Lineage, Node, SnapshotId, SnapshotReader, SnapshotTree};
use crate::tree::{Error, Result};
use crate::units::Bytes;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// How far a send or a receive has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Identity of the volume's content.
    pub volume: Uuid,
    /// Everything before this offset of the volume is done.
    pub offset: Bytes,
    /// Size of the volume.
    pub size: Bytes,
    /// Size of the stream so far.
    pub stream: Bytes,
}

/// Callback for progress.
#[derive(Default)]
pub(in crate::tree) struct Observer<'a>(pub(in crate::tree) Option<Box<dyn FnMut(Progress) + 'a>>);

impl Observer<'_> {
    pub(in crate::tree) fn tell(&mut self, progress: Progress) {
        if let Some(observer) = &mut self.0 {
            observer(progress);
        }
    }
}

impl fmt::Debug for Observer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "none" })
    }
}

/// How a snapshot is sent.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SendOptions<'a> {
    progress: Observer<'a>,
    resume_from: Bytes,
    allow_unzeroed: bool,
}

impl<'a> SendOptions<'a> {
    /// Everything, from the beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `observer` after each MiB at the latest.
    #[must_use]
    pub fn progress(mut self, observer: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Observer(Some(Box::new(observer)));
        self
    }

    /// Sends only what is at this offset of the volume or after it, rounded down to 4096: where the receiver
    /// [has come to](crate::tree::PartialReceive::offset). Not for [`send_tree`](SnapshotTree::send_tree).
    #[must_use]
    pub fn resume_from(mut self, offset: Bytes) -> Self {
        self.resume_from = Bytes(offset.0 / BLOCK as u64 * BLOCK as u64);
        self
    }

    /// Sends from a pool that does not zero new blocks, too. What was never written in a block of which a part was
    /// written is sent with what its last owner left there: maybe data of another snapshot.
    #[must_use]
    pub fn allow_unzeroed(mut self, allow: bool) -> Self {
        self.allow_unzeroed = allow;
        self
    }
}

impl SnapshotTree {
    /// Writes a sealed snapshot as a [stream]: all of it, or its difference to `base`, another sealed snapshot that the
    /// receiver has. What differs is determined from the pool's mappings ([`changed`](Self::changed)); runs of 4096
    /// zeroes are not written. Both snapshots stay active meanwhile; they may be renamed. Returns what the stream has.
    ///
    /// ```no_run
    /// use dm_thin::tree::{ReceiveOptions, SendOptions, SnapshotTree};
    ///
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// let tree = SnapshotTree::open("/var/lib/example", Default::default())?;
    /// tree.seal("image")?;
    /// let mut stream = Vec::new();
    /// tree.send("image", None, &mut stream, SendOptions::new())?;
    ///
    /// let other = SnapshotTree::open("/var/lib/other", Default::default())?;
    /// other.receive(stream.as_slice(), ReceiveOptions::new())?;
    /// assert_eq!(other.get("image")?.sealed, tree.get("image")?.sealed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [stream]: crate::tree::stream
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the base is larger than the snapshot; [`Error::UnknownSnapshot`];
    /// [`Error::NotSealed`]; [`Error::NotZeroed`]; [`Error::Stream`] if `out` fails; [`Error::Io`] if a device does;
    /// [`thin::Error::MetadataSnapHeld`](crate::thin::Error::MetadataSnapHeld) if another program reads the pool's
    /// metadata.
    pub fn send(
        &self,
        target: impl AsRef<str>,
        base: Option<&str>,
        out: impl Write,
        options: SendOptions<'_>,
    ) -> Result<StreamSummary> {
        let target = target.as_ref();
        self.send_all(&[(target, base)], out, options)
    }

    /// Measures the stream that [`send`](Self::send) would write. The snapshots are read for that.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_size(
        &self,
        target: impl AsRef<str>,
        base: Option<&str>,
        options: SendOptions<'_>,
    ) -> Result<StreamSummary> {
        let target = target.as_ref();
        self.send(target, base, sink(), options)
    }

    /// Writes a sealed snapshot and all of its sealed descendants, in one stream: `root` as a whole, each other one as
    /// its difference to the nearest sealed ancestor, which comes before it. One whose ancestor is larger, because that was
    /// [resized](Self::resize) since, is written as a whole, too.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`Error::InvalidOption`] with [`SendOptions::resume_from`].
    pub fn send_tree(
        &self,
        root: impl AsRef<str>,
        out: impl Write,
        options: SendOptions<'_>,
    ) -> Result<StreamSummary> {
        let root = root.as_ref();
        if options.resume_from > Bytes(0) {
            let reason = "a stream of several volumes cannot be continued";
            let value = options.resume_from.to_string();
            return Err(Error::InvalidOption { option: "resume_from", value, reason });
        }
        if self.get(root)?.sealed.is_none() {
            return Err(Error::NotSealed { id: root.to_owned() });
        }
        let mut volumes = Vec::new();
        // Of each snapshot so far: itself if it is sealed, else its nearest sealed ancestor.
        let mut nearest: HashMap<SnapshotId, SnapshotId> = HashMap::new();
        for Node { id, parent, .. } in self.walk_from(root)? {
            let base = match &parent {
                Lineage::Snapshot(parent) => nearest.get(parent).cloned(),
                _ => None,
            };
            let snapshot = self.get(id.as_str())?;
            if snapshot.sealed.is_some() {
                let larger =
                    |base: &SnapshotId| Ok::<_, Error>(self.get(base.as_str())?.size > snapshot.size);
                let is_larger = base.as_ref().map(larger).transpose()?.unwrap_or(false);
                volumes.push((id.clone(), base.filter(|_| !is_larger)));
                nearest.insert(id.clone(), id);
            } else if let Some(base) = base {
                nearest.insert(id, base);
            }
        }
        let volumes: Vec<_> = volumes
            .iter()
            .map(|(target, base)| (target.as_str(), base.as_ref().map(SnapshotId::as_str)))
            .collect();
        self.send_all(&volumes, out, options)
    }

    fn send_all(
        &self,
        volumes: &[(&str, Option<&str>)],
        out: impl Write,
        mut options: SendOptions<'_>,
    ) -> Result<StreamSummary> {
        self.check_open()?;
        self.check_zeroed(options.allow_unzeroed)?;
        let header = StreamHeader { stream: Uuid::new_v4(), tree: self.store.tree() };
        let mut encoder = Encoder::new(out, &header)?;
        for (target, base) in volumes {
            self.send_volume(target, *base, &mut encoder, &mut options)?;
        }
        Ok(encoder.finish()?.1)
    }

    /// Refuses a pool whose blocks contain data of others where they were never written. The owner of an adopted pool
    /// may have changed that since it was adopted.
    pub(in crate::tree) fn check_zeroed(&self, allow: bool) -> Result<()> {
        let recorded = self.store.read_state(|state| state.pool.features);
        let skips = || Ok::<_, Error>(self.pool.thin.table()?.0.features.skip_block_zeroing);
        if !allow && (recorded.skip_block_zeroing || skips()?) {
            return Err(Error::NotZeroed { pool: self.pool.thin.name().to_string() });
        }
        Ok(())
    }

    fn send_volume(
        &self,
        target: &str,
        base: Option<&str>,
        encoder: &mut Encoder<impl Write>,
        options: &mut SendOptions<'_>,
    ) -> Result<()> {
        let reader = self.open_snapshot(target)?;
        let base_reader = base.map(|base| self.open_snapshot(base)).transpose()?;
        if let (Some(id), Some(base)) = (base, &base_reader)
            && base.size() > reader.size()
        {
            // A receiver cannot make a volume that is smaller than its origin.
            let (option, value) = ("base", format!("{id:?} ({:#})", base.size()));
            return Err(Error::InvalidOption {
                option,
                value,
                reason: "larger than the snapshot that is sent",
            });
        }
        let kind = self.store.filesystem().kernel_name();
        let header = VolumeHeader {
            volume: reader.uuid(),
            base: base_reader.as_ref().map(SnapshotReader::uuid),
            name: target.to_owned(),
            size: reader.size(),
            block_size: self.store.read_state(|state| state.pool.block_size),
            filesystem: kind.map(|kind| StreamFilesystem { kind: kind.to_owned(), uuid: None }),
            labels: reader.labels().clone().into(),
            resume: options.resume_from,
        };
        encoder.begin(&header)?;
        // By the volumes that are open: the snapshots may get other ids meanwhile.
        let since = base_reader.as_ref().map_or(Compared::Nothing, |base| Compared::Volume(base.volume()));
        let ranges = self.differences(since, reader.volume(), reader.size()).from_offset(options.resume_from);
        let mut sender = Sender { encoder, reader: &reader, zeroes: None, progress: &mut options.progress };
        for range in ranges {
            sender.send(range?, options.resume_from.0)?;
        }
        sender.flush_zeroes()?;
        encoder.end_volume()?;
        Ok(())
    }
}

/// Writes the ranges of one volume.
struct Sender<'a, 'o, W> {
    encoder: &'a mut Encoder<W>,
    reader: &'a SnapshotReader<'a>,
    /// Begin and end of a run of zeroes that may go on.
    zeroes: Option<(u64, u64)>,
    progress: &'a mut Observer<'o>,
}

impl<W: Write> Sender<'_, '_, W> {
    /// Writes what is at `from` or after it.
    fn send(&mut self, range: ChangedRange, from: u64) -> Result<()> {
        let (mut at, end) = (range.offset.0.max(from), range.offset.0 + range.length.0);
        if at >= end {
            return Ok(());
        }
        if range.kind == ChangeKind::Hole {
            self.flush_zeroes()?;
            self.encoder.hole(Bytes(at), Bytes(end - at))?;
            self.tell(end);
            return Ok(());
        }
        let mut blocks = AlignedBlock::zeroed(CHUNK / BLOCK);
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let chunk = &mut blocks.as_mut_bytes()[..length];
            self.reader.read_blocks(at, chunk)?;
            self.send_chunk(at, chunk)?;
            at += length as u64;
            self.tell(at);
        }
        Ok(())
    }

    /// Writes runs of data, and remembers runs of zeroes until they end.
    fn send_chunk(&mut self, offset: u64, chunk: &[u8]) -> Result<()> {
        let is_zero = |block: &&[u8]| block.iter().all(|&byte| byte == 0);
        let mut from = 0;
        while from < chunk.len() {
            let rest = &chunk[from..];
            let zero = is_zero(&&rest[..BLOCK.min(rest.len())]);
            let run = rest.chunks(BLOCK).take_while(|block| is_zero(block) == zero).map(<[u8]>::len).sum();
            let at = offset + from as u64;
            if zero {
                self.add_zeroes(at, run as u64)?;
            } else {
                self.flush_zeroes()?;
                self.encoder.data(Bytes(at), &rest[..run])?;
            }
            from += run;
        }
        Ok(())
    }

    fn add_zeroes(&mut self, at: u64, length: u64) -> Result<()> {
        match &mut self.zeroes {
            Some((_, end)) if *end == at => *end += length,
            _ => {
                self.flush_zeroes()?;
                self.zeroes = Some((at, at + length));
            }
        }
        Ok(())
    }

    fn flush_zeroes(&mut self) -> Result<()> {
        if let Some((from, to)) = self.zeroes.take() {
            self.encoder.zero(Bytes(from), Bytes(to - from))?;
        }
        Ok(())
    }

    fn tell(&mut self, offset: u64) {
        let (volume, size) = (self.reader.uuid(), self.reader.size());
        self.progress.tell(Progress { volume, offset: Bytes(offset), size, stream: self.encoder.written() });
    }
}
