//! A thin pool at work: its mode, its messages, its commits.

use nix::errno::Errno;

use super::metadata::{Change, Metadata};
use crate::kernel::DeviceNumber;

/// The mode of a thin pool, the better ones first.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Status `rw`.
    Write,
    /// Status `out_of_data_space`.
    OutOfDataSpace,
    /// Status `ro`: no metadata block is free.
    OutOfMetadataSpace,
    /// Status `ro`.
    ReadOnly,
    /// Status `Fail`.
    Fail,
}

/// What a table line asks of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) zero_new_blocks: bool,
    pub(super) discard: bool,
    pub(super) discard_passdown: bool,
    pub(super) read_only: bool,
    pub(super) error_if_no_space: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            zero_new_blocks: true,
            discard: true,
            discard_passdown: true,
            read_only: false,
            error_if_no_space: false,
        }
    }
}

impl Features {
    pub(super) fn mode(self) -> Mode {
        if self.read_only { Mode::ReadOnly } else { Mode::Write }
    }
}

/// Where a write to a block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// It is mapped to this data block alone.
    InPlace(u64),
    /// It is mapped and shared.
    Copy {
        /// The data block with its contents.
        from: u64,
        /// A free one.
        to: u64,
    },
    /// It is not mapped; this data block is free.
    Fresh(u64),
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) metadata_device: DeviceNumber,
    pub(super) data_device: DeviceNumber,
    /// Where the committed metadata is kept.
    pub(super) marker: u64,
    pub(super) current: Metadata,
    pending: Vec<Change>,
    pub(super) features: Features,
    pub(super) mode: Mode,
    pub(super) low_water: u64,
    low_water_triggered: bool,
    metadata_low_triggered: bool,
    pub(super) suspended: bool,
    /// Length of the target that controls it, once one was resumed.
    pub(super) bound: Option<u64>,
    /// Events that its device has not been told yet.
    pub(super) raised: u32,
    /// A commit makes the data device's data durable first: that is still to be done.
    pub(super) flushes_data: bool,
    /// Commits fail: a test wants it so.
    pub(super) commits_fail: bool,
}

impl Pool {
    pub(super) fn new(
        metadata_device: DeviceNumber,
        data_device: DeviceNumber,
        marker: u64,
        stored: &Metadata,
    ) -> Self {
        Self {
            metadata_device,
            data_device,
            marker,
            current: stored.clone(),
            pending: Vec::new(),
            features: Features::default(),
            mode: Mode::Write,
            low_water: 0,
            low_water_triggered: false,
            metadata_low_triggered: false,
            suspended: true,
            bound: None,
            raised: 0,
            flushes_data: false,
            commits_fail: false,
        }
    }

    /// `set_pool_mode`: a failed pool stays failed, and one that needs a check does not become writable.
    pub(super) fn set_mode(&mut self, new: Mode) {
        let mut new = new;
        if new == Mode::Write && self.current.contents.needs_check {
            new = if self.mode == Mode::Write { Mode::ReadOnly } else { self.mode };
        }
        if self.mode == Mode::Fail {
            new = Mode::Fail;
        }
        if self.mode != new {
            self.mode = new;
            self.raised += 1;
        }
    }

    fn change(&mut self, change: Change) -> Result<(), Errno> {
        self.current.apply(&change)?;
        self.pending.push(change);
        let low = self.current.free_metadata() <= self.metadata_low_water();
        if low && !self.metadata_low_triggered {
            self.raised += 1;
        }
        self.metadata_low_triggered = low;
        Ok(())
    }

    /// 4 MiB, or a quarter of the device if that is less.
    pub(super) fn metadata_low_water(&self) -> u64 {
        (self.current.contents.metadata_blocks / 4).min(1024)
    }

    /// Commits. The kernel discards the result.
    pub(super) fn commit(&mut self, stored: &mut Metadata) {
        if self.mode >= Mode::OutOfMetadataSpace {
            return;
        }
        self.flushes_data = true;
        if self.commits_fail {
            // abort_transaction: what was not committed is lost; the flag is kept on disk if possible.
            stored.set_needs_check(true);
            self.current = stored.clone();
            self.pending.clear();
            self.set_mode(Mode::ReadOnly);
            return;
        }
        for change in self.pending.drain(..) {
            // It did on the same metadata before.
            let _ = stored.apply(&change);
        }
        if self.current.free_metadata() == 0 {
            self.set_mode(Mode::OutOfMetadataSpace);
        } else if self.mode == Mode::OutOfDataSpace && self.current.free_data() > 0 {
            self.set_mode(Mode::Write);
        }
    }

    /// A message. `active` tells which thin devices are in some table.
    pub(super) fn message(
        &mut self,
        stored: &mut Metadata,
        args: &[Vec<u8>],
        active: impl Fn(u32) -> bool,
    ) -> Result<(), Errno> {
        if self.mode >= Mode::OutOfMetadataSpace {
            return Err(Errno::EOPNOTSUPP);
        }
        let (verb, args) = args.split_first().ok_or(Errno::EINVAL)?;
        let change = match (verb.to_ascii_lowercase().as_slice(), args) {
            (b"create_thin", [id]) => Change::CreateThin(thin_id(id)?),
            (b"create_snap", [id, origin]) => {
                Change::CreateSnap { id: thin_id(id)?, origin: thin_id(origin)? }
            }
            (b"delete", [id]) => {
                let id = thin_id(id)?;
                if self.current.exists(id) && active(id) {
                    return Err(Errno::EBUSY);
                }
                Change::Delete(id)
            }
            (b"set_transaction_id", [current, new]) => {
                Change::SetTransaction { current: number(current)?, new: number(new)? }
            }
            (b"reserve_metadata_snap", []) => {
                self.commit(stored);
                Change::Hold
            }
            (b"release_metadata_snap", []) => Change::Release,
            _ => return Err(Errno::EINVAL),
        };
        self.change(change)?;
        self.commit(stored);
        Ok(())
    }

    /// `pool_preresume`: take over the table's settings, grow into what the devices have grown to.
    pub(super) fn bind(
        &mut self,
        stored: &mut Metadata,
        length: u64,
        mode: Mode,
        features: Features,
        low_water: u64,
        metadata_blocks: u64,
    ) -> Result<(), Errno> {
        self.bound = Some(length);
        self.features = features;
        self.low_water = low_water;
        self.set_mode(mode);
        let result = self.grow(stored, length / self.current.block_sectors(), metadata_blocks);
        if self.mode == Mode::Fail { Ok(()) } else { result }
    }

    fn grow(&mut self, stored: &mut Metadata, data: u64, metadata: u64) -> Result<(), Errno> {
        let before = self.pending.len();
        if data < self.current.contents.data_blocks {
            return Err(Errno::EINVAL);
        }
        if data > self.current.contents.data_blocks && !self.current.contents.needs_check {
            self.change(Change::ResizeData(data))?;
        }
        if metadata < self.current.contents.metadata_blocks {
            return Err(Errno::EINVAL);
        }
        if metadata > self.current.contents.metadata_blocks && !self.current.contents.needs_check {
            if self.mode == Mode::OutOfMetadataSpace {
                self.set_mode(Mode::Write);
            }
            self.change(Change::ResizeMetadata(metadata))?;
        }
        if self.pending.len() > before {
            self.commit(stored);
        }
        Ok(())
    }

    pub(super) fn resume(&mut self) {
        self.low_water_triggered = false;
        self.suspended = false;
    }

    /// Where a write to one block of a thin device goes. Nothing is mapped yet: see [`insert`](Self::insert).
    pub(super) fn provision(&mut self, stored: &mut Metadata, id: u32, block: u64) -> Result<Write, Errno> {
        if self.mode == Mode::Fail || !self.current.exists(id) {
            return Err(Errno::EIO);
        }
        let found = self.current.find(id, block);
        if let Some((data, false)) = found {
            return Ok(Write::InPlace(data));
        }
        if self.mode >= Mode::OutOfMetadataSpace {
            return Err(Errno::EIO);
        }
        if self.mode == Mode::OutOfDataSpace {
            return Err(Errno::ENOSPC);
        }
        if self.current.free_data() <= self.low_water && !self.low_water_triggered {
            self.low_water_triggered = true;
            self.raised += 1;
        }
        let mut free = self.current.find_free(stored);
        if free.is_none() {
            self.commit(stored);
            free = self.current.find_free(stored);
        }
        let Some(data) = free else {
            self.set_mode(Mode::OutOfDataSpace);
            return Err(Errno::ENOSPC);
        };
        Ok(found.map_or(Write::Fresh(data), |(from, _)| Write::Copy { from, to: data }))
    }

    /// Maps a block to the data block that [`provision`](Self::provision) found.
    pub(super) fn insert(&mut self, id: u32, block: u64, data: u64) -> Result<(), Errno> {
        self.change(Change::Insert { id, block, data })
    }

    /// Unmaps a block. The data block that it had, if nothing else refers to it. A read-only pool takes the
    /// request and does nothing.
    pub(super) fn discard(&mut self, id: u32, block: u64) -> Result<Option<u64>, Errno> {
        if !self.features.discard {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.mode == Mode::Fail {
            return Err(Errno::EIO);
        }
        let Some((data, _)) = self.current.find(id, block).filter(|_| self.mode < Mode::OutOfMetadataSpace)
        else {
            return Ok(None);
        };
        self.change(Change::Discard { id, block })?;
        Ok(Some(data).filter(|&data| self.current.is_free(data)))
    }

    pub(super) fn set_needs_check(&mut self, stored: &mut Metadata, needed: bool) {
        stored.set_needs_check(needed);
        self.current.set_needs_check(needed);
    }

    /// The status line, with the space that ends it.
    pub(super) fn status(&self) -> String {
        if self.mode == Mode::Fail {
            return "Fail".to_owned();
        }
        let metadata = &self.current;
        let held = metadata.held_root().map_or_else(|| "-".to_owned(), |root| root.to_string());
        let mode = match self.mode {
            Mode::Write => "rw",
            Mode::OutOfDataSpace => "out_of_data_space",
            _ => "ro",
        };
        let discard = match self.features {
            Features { discard: false, .. } => "ignore_discard",
            Features { discard_passdown: true, .. } => "discard_passdown",
            _ => "no_discard_passdown",
        };
        let no_space =
            if self.features.error_if_no_space { "error_if_no_space" } else { "queue_if_no_space" };
        let check = if metadata.contents.needs_check { "needs_check" } else { "-" };
        format!(
            "{} {}/{} {}/{} {held} {mode} {discard} {no_space} {check} {} ",
            metadata.contents.transaction_id,
            metadata.used_metadata(),
            metadata.contents.metadata_blocks,
            metadata.used_data(),
            metadata.contents.data_blocks,
            self.metadata_low_water(),
        )
    }
}

/// `kstrtoull(…, 10, …)`: digits, a plus sign before them and a newline after them allowed.
pub(super) fn number(text: &[u8]) -> Result<u64, Errno> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_prefix(b"+").unwrap_or(text);
    digits(text)
}

/// Nothing but digits.
pub(super) fn digits(text: &[u8]) -> Result<u64, Errno> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(Errno::EINVAL);
    }
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Errno::EINVAL)
}

/// A thin device id: 24 bits.
pub(super) fn thin_id(text: &[u8]) -> Result<u32, Errno> {
    match u32::try_from(number(text)?) {
        Ok(id) if id < 1 << 24 => Ok(id),
        _ => Err(Errno::EINVAL),
    }
}
