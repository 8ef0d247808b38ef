//! Tables: what a target's constructor takes, and what the table says afterwards.

use std::path::Path;

use nix::errno::Errno;

use super::metadata::Metadata;
use super::number::{DM_MAJOR, dm_number};
use super::pool::{Features, Mode, Pool, digits, number, thin_id};
use super::target::{Kind, TARGETS, Table, Target, ThinPool};
use super::world::{Limits, World};
use crate::kernel::DeviceNumber;

/// Smallest data block in sectors (64 KiB); the others are multiples of it.
const BLOCK_MIN: u64 = 128;

/// Largest data block in sectors (1 GiB).
const BLOCK_MAX: u64 = 1 << 21;

/// Sectors of a metadata device that are used at most.
const METADATA_MAX: u64 = 255 * ((1 << 14) - 64) * METADATA_BLOCK;

/// Sectors of a metadata block.
const METADATA_BLOCK: u64 = 8;

/// Sectors of the largest table: its bytes have to fit a `loff_t`.
const LARGEST: u64 = (i64::MAX as u64) >> 9;

/// `dm_split_args`: split at blanks; a backslash takes the next byte as it is.
pub(super) fn split_args(text: &[u8]) -> Vec<Vec<u8>> {
    let blank = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
    let (mut args, mut word) = (Vec::new(), None::<Vec<u8>>);
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if blank(byte) {
            args.extend(word.take());
            continue;
        }
        let byte = if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte };
        word.get_or_insert_default().push(byte);
    }
    args.extend(word);
    args
}

impl World {
    /// A target's constructor, for a table of the device `minor`.
    pub(super) fn construct(
        &mut self,
        minor: u32,
        table: &Table,
        target_type: &[u8],
        parameters: &[u8],
        (start, length): (u64, u64),
    ) -> Result<Target, Errno> {
        let args = split_args(parameters);
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        // A thin pool has its table to itself.
        let alone = table.thin_pool().is_none();
        let end = table.targets.last().map_or(0, |last| last.start + last.length);
        if !alone || length == 0 {
            return Err(Errno::EINVAL);
        }
        let singleton = target_type == b"thin-pool";
        if singleton && (!table.targets.is_empty() || table.read_only) {
            return Err(Errno::EINVAL);
        }
        if !TARGETS.iter().any(|(name, _)| name.as_bytes() == target_type)
            || start != end
            || start.checked_add(length).is_none_or(|end| end > LARGEST)
        {
            return Err(Errno::EINVAL);
        }
        let kind = match target_type {
            b"error" => Kind::Error,
            b"zero" if args.is_empty() => Kind::Zero,
            b"linear" => match args[..] {
                [device, offset] => {
                    let offset = digits(offset)?;
                    Kind::Linear { device: self.get_device(minor, device)?, offset }
                }
                _ => return Err(Errno::EINVAL),
            },
            b"thin-pool" => Kind::ThinPool(self.construct_pool(minor, &args)?),
            b"thin" => self.construct_thin(minor, &args)?,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Target { start, length, kind })
    }

    /// `dm_get_device`: by number or by path; not what is mounted or claimed, nor the device itself.
    fn get_device(&self, minor: u32, text: &[u8]) -> Result<DeviceNumber, Errno> {
        let text = std::str::from_utf8(text).map_err(|_| Errno::ENOENT)?;
        let by_number = text.split_once(':').and_then(|(major, minor)| {
            Some((digits(major.as_bytes()).ok()?, digits(minor.as_bytes()).ok()?))
        });
        let number = match by_number {
            Some((major, minor)) if major < 1 << 12 && minor < 1 << 20 => DeviceNumber {
                major: u32::try_from(major).map_err(|_| Errno::EOVERFLOW)?,
                minor: u32::try_from(minor).map_err(|_| Errno::EOVERFLOW)?,
            },
            Some(_) => return Err(Errno::EOVERFLOW),
            None => match self.block_device(Path::new(text)) {
                Ok(number) => number,
                // Before 6.5 it was then taken for a hexadecimal number, as on the kernel's command line.
                Err(_) if self.options.interface_minor < 48 => {
                    let number = u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16);
                    number.ok().filter(|&number| number > 0).map(from_hexadecimal).ok_or(Errno::ENODEV)?
                }
                Err(errno) => return Err(errno),
            },
        };
        if number == dm_number(minor) {
            return Err(Errno::EINVAL);
        }
        if !self.exists(number) {
            return Err(Errno::ENXIO);
        }
        if self.is_mounted(number) || self.is_open_exclusively(number) {
            return Err(Errno::EBUSY);
        }
        Ok(number)
    }

    fn construct_pool(&mut self, minor: u32, args: &[&[u8]]) -> Result<ThinPool, Errno> {
        let [metadata, data, block, low_water, features @ ..] = args else { return Err(Errno::EINVAL) };
        if metadata == data {
            return Err(Errno::EINVAL);
        }
        let requested = pool_features(features)?;
        let metadata = self.get_device(minor, metadata)?;
        let data = self.get_device(minor, data)?;
        let block = number(block)?;
        if !(BLOCK_MIN..=BLOCK_MAX).contains(&block) || !block.is_multiple_of(BLOCK_MIN) {
            return Err(Errno::EINVAL);
        }
        let low_water = number(low_water)?;

        let holder = self.pools.iter().find(|(_, pool)| pool.metadata_device == metadata);
        let existing = match (holder, self.pools.get(&minor)) {
            (Some((&holder, pool)), _) if holder != minor || pool.data_device != data => {
                return Err(Errno::EBUSY);
            }
            (Some((_, pool)), _) => Some(pool),
            (None, Some(_)) => return Err(Errno::EINVAL),
            (None, None) => None,
        };
        match existing {
            Some(pool) if pool.features.discard != requested.discard => return Err(Errno::EINVAL),
            Some(_) => {}
            None => {
                let marker = self.open_metadata(metadata, block, !requested.read_only)?;
                let stored = self.storage.get(&marker).ok_or(Errno::EIO)?;
                self.pools.insert(minor, Pool::new(metadata, data, marker, stored));
            }
        }
        Ok(ThinPool { metadata, data, low_water, requested, mode: requested.mode() })
    }

    /// `dm_pool_metadata_open`: find the metadata on a device, or format it.
    fn open_metadata(&mut self, device: DeviceNumber, block: u64, format: bool) -> Result<u64, Errno> {
        if let Some(marker) = self.read_marker(device)? {
            // Bytes that are no superblock of this kernel.
            let stored = self.storage.get(&marker).ok_or(Errno::EILSEQ)?;
            return if stored.block_sectors() == block { Ok(marker) } else { Err(Errno::EINVAL) };
        }
        if !format {
            return Err(Errno::EPERM);
        }
        let metadata = Metadata::format(block, self.metadata_blocks(device))?;
        let marker = new_marker();
        self.write_marker(device, marker)?;
        self.storage.insert(marker, metadata);
        Ok(marker)
    }

    fn metadata_blocks(&self, device: DeviceNumber) -> u64 {
        self.sectors(device).unwrap_or(0).min(METADATA_MAX) / METADATA_BLOCK
    }

    fn construct_thin(&mut self, minor: u32, args: &[&[u8]]) -> Result<Kind, Errno> {
        let (device, id, origin) = match *args {
            [device, id] => (device, id, None),
            [device, id, origin] if device != origin => (device, id, Some(origin)),
            _ => return Err(Errno::EINVAL),
        };
        let origin = origin.map(|origin| self.get_device(minor, origin)).transpose()?;
        let device = self.get_device(minor, device)?;
        let id = thin_id(id)?;
        let pool = (device.major == DM_MAJOR).then(|| self.pools.get(&device.minor)).flatten();
        let pool = pool.ok_or(Errno::EINVAL)?;
        if pool.mode == Mode::Fail {
            return Err(Errno::EINVAL);
        }
        if !pool.current.exists(id) {
            return Err(Errno::ENODATA);
        }
        if pool.suspended {
            return Err(Errno::EINVAL);
        }
        Ok(Kind::Thin { pool: device, id, origin })
    }

    /// `dm_calculate_queue_limits`: a look at what a new table lies on.
    pub(super) fn calculate_limits(&self, table: &Table) -> Result<Limits, Errno> {
        for target in &table.targets {
            let (device, start, length) = match &target.kind {
                Kind::Linear { device, offset } => (*device, *offset, target.length),
                Kind::ThinPool(pool) => (pool.data, 0, target.length),
                // A thin device is as large as it likes.
                Kind::Thin { .. } | Kind::Error | Kind::Zero => continue,
            };
            let size = self.sectors(device).unwrap_or(0);
            let sectors = u64::from(self.sector_size(device) / 512);
            let inside = start.checked_add(length).is_some_and(|end| end <= size) && start < size;
            let aligned = start.is_multiple_of(sectors) && length.is_multiple_of(sectors);
            if size > 0 && !(inside && aligned) {
                return Err(Errno::EINVAL);
            }
        }
        Ok(self.limits(table))
    }

    /// A thin pool's preresume: its settings and its growth.
    pub(super) fn bind_pool(&mut self, minor: u32) -> Result<(), Errno> {
        let live = self.devices.get(&minor).and_then(|device| device.live.as_ref());
        let Some(Target { length, kind: Kind::ThinPool(line), .. }) = live.and_then(Table::thin_pool) else {
            return Ok(());
        };
        let (length, mut line) = (*length, line.clone());
        line.requested.discard_passdown &= self.discards(line.data);
        let metadata_blocks = self.metadata_blocks(line.metadata);
        let (pool, stored) = self.pool(minor).ok_or(Errno::EINVAL)?;
        let result = pool.bind(stored, length, line.mode, line.requested, line.low_water, metadata_blocks);
        self.sync_mode(minor);
        result
    }

    /// The pool's mode is kept in its live line, so that a plain resume does not change it.
    pub(super) fn sync_mode(&mut self, minor: u32) {
        let Some(mode) = self.pools.get(&minor).map(|pool| pool.mode) else { return };
        let live = self.devices.get_mut(&minor).and_then(|device| device.live.as_mut());
        for target in live.into_iter().flat_map(|table| &mut table.targets) {
            if let Kind::ThinPool(line) = &mut target.kind {
                line.mode = mode;
            }
        }
    }
}

/// `new_decode_dev`.
fn from_hexadecimal(dev: u32) -> DeviceNumber {
    DeviceNumber { major: dev >> 8 & 0xfff, minor: dev & 0xff | dev >> 12 & 0xf_ff00 }
}

fn pool_features(args: &[&[u8]]) -> Result<Features, Errno> {
    let mut features = Features::default();
    let Some((count, words)) = args.split_first() else { return Ok(features) };
    let count = usize::try_from(digits(count)?).map_err(|_| Errno::EINVAL)?;
    if count > 4 {
        return Err(Errno::EINVAL);
    }
    for word in words.get(..count).ok_or(Errno::EINVAL)? {
        match word.to_ascii_lowercase().as_slice() {
            b"skip_block_zeroing" => features.zero_new_blocks = false,
            b"ignore_discard" => features.discard = false,
            b"no_discard_passdown" => features.discard_passdown = false,
            b"read_only" => features.read_only = true,
            b"error_if_no_space" => features.error_if_no_space = true,
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(features)
}

/// A number that no other metadata on this machine carries.
pub(super) fn new_marker() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = DefaultHasher::new();
    COUNT.fetch_add(1, Ordering::Relaxed).hash(&mut hasher);
    std::process::id().hash(&mut hasher);
    std::time::SystemTime::now().hash(&mut hasher);
    hasher.finish() | 1
}
