//! The device: labelled, found again, split, grown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use uuid::Uuid;

use super::label::{COPIES, Label, RESERVED, SIZE, SubDevice};
use super::{DeviceShares, LabelledOptions, blank};
use crate::dm;
use crate::dm::targets::{Linear, Target};
use crate::dm::{DeviceMapper, DmFlags, DmName, DmUuid, TargetSpec};
use crate::kernel::{Access, DeviceFile, DeviceNumber, FileLock, Kernel};
use crate::thin::space::percent_of;
use crate::thin::{Error, Result};
use crate::thin::{METADATA_BLOCK_SIZE, METADATA_MAX, METADATA_MIN};
use crate::thin::{PoolFeatures, PoolTable, check_block_size, metadata_size};
use crate::units::{Blocks, Sectors};

/// A block device that is split into a pool's metadata and data. Dropping it changes nothing.
#[derive(Debug)]
pub struct LabelledDevice {
    pub(super) dm: Arc<DeviceMapper>,
    path: PathBuf,
    pub(super) number: DeviceNumber,
    label: Mutex<Label>,
}

impl LabelledDevice {
    /// Labels a device.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] unless its first and last 4 MiB are zero, or [`LabelledOptions::force`] is set; EBUSY
    /// if it is claimed (by a mount or another mapping); [`Error::InvalidOption`] for
    /// sizes that do not fit. Nothing is written then.
    pub fn format(
        dm: Arc<DeviceMapper>,
        path: impl Into<PathBuf>,
        options: &LabelledOptions,
    ) -> Result<Self> {
        let path = path.into();
        let (file, number, size) = examine(&dm, &path, options)?;
        let label = plan(size, options)?;
        // What a forced one carried must not be found again, nor an old pool in the metadata.
        // All of a new label that is not zero is in one sector: over zeroes it is there, or it is not.
        blank::wipe(&**dm.kernel(), &file, &path)?;
        write(&**dm.kernel(), &file, &path, &label)?;
        Ok(Self { dm, path, number, label: Mutex::new(label) })
    }

    /// The label that [`format`](Self::format) would write. Nothing is written.
    ///
    /// # Errors
    /// As [`format`](Self::format).
    pub fn plan(dm: &DeviceMapper, path: &Path, options: &LabelledOptions) -> Result<Label> {
        let (_, _, size) = examine(dm, path, options)?;
        plan(size, options)
    }

    /// Writes both copies of the label again: one may be missing after a crash.
    pub(crate) fn rewrite(&self) -> Result<()> {
        let kernel = &**self.dm.kernel();
        write(kernel, &open(kernel, &self.path, Access::READ_WRITE)?, &self.path, &self.known())
    }

    /// Removes both copies of the label, and what was written to the device's first and last 4 MiB since.
    pub(crate) fn wipe(&self) -> Result<()> {
        let kernel = &**self.dm.kernel();
        blank::wipe(kernel, &open(kernel, &self.path, Access::READ_WRITE.exclusive())?, &self.path)
    }

    /// A device that is labelled.
    ///
    /// # Errors
    /// [`Error::NoLabel`]; [`Error::Malformed`] if there is one, and no copy can be trusted;
    /// [`Error::BackingFile`] if the device is smaller than the label says.
    pub fn open(dm: Arc<DeviceMapper>, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let number = block_device(&dm, &path)?;
        let file = open(&**dm.kernel(), &path, Access::READ)?;
        let label =
            read(&**dm.kernel(), &file, &path)?.ok_or_else(|| Error::NoLabel { device: path.clone() })?;
        if size_of(&**dm.kernel(), &file, &path)? < label.end() {
            return Err(Error::BackingFile { path, reason: "is smaller than its label says" });
        }
        Ok(Self { dm, path, number, label: Mutex::new(label) })
    }

    /// What its label says.
    pub fn label(&self) -> Label {
        self.known().clone()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn known(&self) -> MutexGuard<'_, Label> {
        self.label.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the two devices `<name>-tmeta` and `<name>-tdata`, or takes them as they are, and the table of a
    /// pool over them. Nothing is left if that fails.
    ///
    /// # Errors
    /// EBUSY if a name is taken, or the device is claimed (by a mount or another mapping).
    pub fn activate(&self, name: &DmName) -> Result<PoolTable> {
        let _locked = self.claim()?;
        let metadata = self.activate_part(name, SubDevice::Metadata)?;
        let data = self.activate_part(name, SubDevice::Data).inspect_err(|_| {
            // Best effort: return the original error.
            let _ = self.deactivate();
        })?;
        let (block_size, features) = (self.known().block_size, PoolFeatures::default());
        Ok(PoolTable { metadata, data, block_size, low_water_mark: Blocks(0), features })
    }

    /// Checks that nobody uses the device, unless that is a part: tables alone would share it. Who does the same waits
    /// until the returned lock is dropped.
    fn claim(&self) -> Result<FileLock> {
        let kernel = &**self.dm.kernel();
        let locked = self.lock(&open(kernel, &self.path, Access::READ)?)?;
        for part in Self::sub_device_uuids(self.known().uuid)? {
            if self.dm.find(&part)?.is_some() {
                return Ok(locked);
            }
        }
        let claimed = open(kernel, &self.path, Access::READ.exclusive())?;
        self.check_number(&claimed)?;
        Ok(locked)
    }

    fn activate_part(&self, name: &DmName, part: SubDevice) -> Result<DeviceNumber> {
        let (name, uuid) = (part_name(name, part)?, self.part_uuid(part)?);
        if let Some(status) = self.dm.find(&uuid)? {
            if status.has_live_table() && status.name == name {
                return Ok(status.number);
            }
            // Left by a process that died before it had a table.
            self.dm.remove(&uuid)?;
        }
        Ok(self
            .with_lines(part, |lines| self.dm.create_active(&name, &uuid, lines, DmFlags::empty()))
            .map(|status| status.number)?)
    }

    /// Removes the two devices, whatever they are called. That they are not there is no error.
    ///
    /// # Errors
    /// EBUSY while a pool uses them ([`Error::is_busy`]).
    pub fn deactivate(&self) -> Result<()> {
        for part in Self::sub_device_uuids(self.known().uuid)? {
            match self.dm.remove(&part) {
                Err(error) if error.errno() != Some(Errno::ENXIO) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The uuids of the two devices.
    pub(crate) fn sub_device_uuids(label: Uuid) -> Result<[DmUuid; 2]> {
        Ok([part_uuid(label, SubDevice::Data)?, part_uuid(label, SubDevice::Metadata)?])
    }

    fn part_uuid(&self, part: SubDevice) -> Result<DmUuid> {
        part_uuid(self.known().uuid, part)
    }

    fn with_lines<T>(&self, part: SubDevice, work: impl FnOnce(&[TargetSpec<'_>]) -> T) -> T {
        let segments: Vec<_> = self.known().of(part).copied().collect();
        let linear: Vec<_> =
            segments.iter().map(|segment| Linear { device: self.number, start: segment.start }).collect();
        let mut start = Sectors(0);
        let lines: Vec<_> = linear
            .iter()
            .zip(&segments)
            .map(|(linear, segment)| {
                let line = linear.over(start, segment.length);
                start = start + segment.length;
                line
            })
            .collect();
        work(&lines)
    }

    /// What is left behind the last segment.
    pub fn free(&self) -> Result<Sectors> {
        let kernel = &**self.dm.kernel();
        let size = size_of(kernel, &open(kernel, &self.path, Access::READ)?, &self.path)?;
        Ok(Sectors(size.0.saturating_sub(self.known().end().0)))
    }

    /// Gives a part what it takes to be `size` large, from what is free on the device. The label is on the
    /// device before the part, if it is active, has its new size. Meanwhile the device is locked (`flock(2)` on its
    /// directory in sysfs, which all of its nodes have in common): whoever else extends it, in this process or another
    /// one, waits, and sees what this took.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if not so much is free; [`Error::NoLabel`] if the label is another one now.
    pub fn extend(&self, part: SubDevice, size: Sectors) -> Result<()> {
        let kernel = &**self.dm.kernel();
        let file = open(kernel, &self.path, Access::READ)?;
        let _locked = self.lock(&file)?;
        let same = read(kernel, &file, &self.path)?.filter(|label| label.uuid == self.known().uuid);
        let mut label = same.ok_or_else(|| Error::NoLabel { device: self.path.clone() })?;
        let free = Sectors(size_of(kernel, &file, &self.path)?.0.saturating_sub(label.end().0));
        let more = Sectors(size.0.saturating_sub(label.size(part).0));
        if more > free {
            let option = if part == SubDevice::Data { "data size" } else { "metadata size" };
            let reason = "more than is free on the device";
            return Err(Error::InvalidOption { option, value: size.to_string(), reason });
        }
        if more.0 > 0 {
            label.append(part, more)?;
            label.generation += 1;
            write(kernel, &open(kernel, &self.path, Access::READ_WRITE)?, &self.path, &label)?;
        }
        *self.known() = label;
        self.resize_active(part)
    }

    /// Takes over what the device grew by: first what the metadata needs by rule, all the rest for data. The
    /// pool is told by [`ThinPool::grow_metadata`](crate::thin::ThinPool::grow_metadata) and
    /// [`grow_data`](crate::thin::ThinPool::grow_data). The label with the new sizes is returned.
    pub fn grow(&self) -> Result<Label> {
        let (label, free) = (self.label(), self.free()?);
        let (metadata, data) = (label.size(SubDevice::Metadata), label.size(SubDevice::Data));
        let wanted = metadata_size(data + free, label.block_size).max(metadata);
        let metadata = Sectors(wanted.0.min(metadata.0 + free.0));
        self.extend(SubDevice::Metadata, metadata)?;
        let whole = data + self.free()?;
        let data = data.max(Sectors(whole.0 - whole.0 % label.block_size.0));
        self.extend(SubDevice::Data, data)?;
        Ok(self.label())
    }

    /// Locks the device that is open, whichever of its nodes led to it.
    fn lock(&self, file: &DeviceFile) -> Result<FileLock> {
        self.check_number(file)?;
        self.dm.kernel().lock_device(file).map_err(|errno| Error::io("lock", &self.path)(errno))
    }

    fn check_number(&self, file: &DeviceFile) -> Result<()> {
        let (expected, found) = (self.number, file.number());
        if found == expected {
            return Ok(());
        }
        Err(dm::Error::Replaced { device: self.path.display().to_string(), expected, found }.into())
    }

    fn resize_active(&self, part: SubDevice) -> Result<()> {
        let uuid = self.part_uuid(part)?;
        let held = self.dm.exclusive(&uuid);
        if self.dm.find(&uuid)?.is_none() {
            return Ok(());
        }
        Ok(self.with_lines(part, |lines| {
            crate::thin::reload::reload(&self.dm, &held, (&uuid).into(), lines, DmFlags::empty())
        })?)
    }

    pub(super) fn active_number(&self, part: SubDevice) -> Result<DeviceNumber> {
        Ok(self.dm.status(&self.part_uuid(part)?)?.number)
    }
}

fn suffix(part: SubDevice) -> &'static str {
    match part {
        SubDevice::Metadata => "tmeta",
        SubDevice::Data => "tdata",
    }
}

fn part_uuid(label: Uuid, part: SubDevice) -> Result<DmUuid> {
    Ok(DmUuid::format(format_args!("DMTHIN-{}-{}", label.simple(), suffix(part)))?)
}

fn part_name(name: &DmName, part: SubDevice) -> Result<DmName> {
    Ok(DmName::format(format_args!("{name}-{}", suffix(part)))?)
}

/// The device, for this process alone, and its size, if it may be labelled.
fn examine(
    dm: &DeviceMapper,
    path: &Path,
    options: &LabelledOptions,
) -> Result<(DeviceFile, DeviceNumber, Sectors)> {
    let kernel = &**dm.kernel();
    check_block_size(options.block_size)?;
    // O_EXCL on a block device: not if it is mounted or mapped.
    let file = open(kernel, path, Access::READ_WRITE.exclusive())?;
    if !options.force {
        blank::check_blank(kernel, &file, path)?;
    }
    let (number, size) = (file.number(), size_of(kernel, &file, path)?);
    Ok((file, number, size))
}

fn plan(size: Sectors, options: &LabelledOptions) -> Result<Label> {
    let (uuid, block_size) = (options.uuid.unwrap_or_else(Uuid::new_v4), options.block_size);
    let mut label = Label { uuid, generation: 1, block_size, segments: Vec::new() };
    let room = Sectors(size.0.saturating_sub(RESERVED.0));
    options.shares.map_or(Ok(()), DeviceShares::check)?;
    let share = |percent: fn(DeviceShares) -> u8| {
        options.shares.map(|shares| Sectors(percent_of(room.0, percent(shares))))
    };
    let metadata_share = share(|shares| shares.metadata).map(|size| {
        let block = METADATA_BLOCK_SIZE.sectors().0;
        Sectors(size.0 - size.0 % block).clamp(METADATA_MIN, METADATA_MAX)
    });
    let metadata = options
        .metadata
        .or(metadata_share)
        .unwrap_or_else(|| metadata_size(options.data.unwrap_or(room), block_size));
    let invalid = |option, value: Sectors, reason| {
        Err(Error::InvalidOption { option, value: value.to_string(), reason })
    };
    if metadata < METADATA_MIN || !metadata.0.is_multiple_of(METADATA_BLOCK_SIZE.sectors().0) {
        return invalid("metadata size", metadata, "not 2 MiB or more in multiples of 4 KiB");
    }
    let rest = Sectors(room.0.saturating_sub(metadata.0));
    let data_share = share(|shares| shares.data).map(|size| size.min(rest));
    let data = options.data.or(data_share).unwrap_or(rest);
    let data = Sectors(data.0 - data.0 % block_size.0);
    if data.0 == 0 || data > rest {
        return invalid("data size", data, "does not fit on the device beside label and metadata");
    }
    label.append(SubDevice::Metadata, metadata)?;
    label.append(SubDevice::Data, data)?;
    Ok(label)
}

fn block_device(dm: &DeviceMapper, path: &Path) -> Result<DeviceNumber> {
    dm.kernel().block_device(path).map_err(|errno| Error::Open { path: path.into(), errno })
}

/// Opens for writing only to write: closing it makes udev look at the device again.
fn open(kernel: &dyn Kernel, path: &Path, access: Access) -> Result<DeviceFile> {
    kernel.open(path, access).map_err(|errno| Error::Open { path: path.into(), errno })
}

fn size_of(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> Result<Sectors> {
    Ok(blank::size_of(kernel, file, path)?.sectors())
}

/// The newer of the copies that can be trusted.
fn read(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> Result<Option<Label>> {
    let mut newest: Option<Label> = None;
    let mut bad = None;
    for at in COPIES {
        let mut bytes = [0; SIZE];
        match blank::read_exact(kernel, file, at, &mut bytes) {
            // Smaller than what is reserved: not ours.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => continue,
            result => result.map_err(Error::io("read", path))?,
        }
        match Label::decode(&bytes) {
            Ok(Some(label)) if newest.as_ref().is_none_or(|other| label.generation > other.generation) => {
                newest = Some(label);
            }
            Ok(_) => {}
            Err(error) => bad = Some(error),
        }
    }
    match (newest, bad) {
        (None, Some(error)) => Err(error),
        (newest, _) => Ok(newest),
    }
}

/// One copy after the other: one is whole at every moment.
fn write(kernel: &dyn Kernel, file: &DeviceFile, path: &Path, label: &Label) -> Result<()> {
    for at in COPIES {
        let written = blank::write_all(kernel, file, at, &label.encode());
        let written = written.and_then(|()| kernel.sync(file).map_err(Into::into));
        written.map_err(Error::io("write the label to", path))?;
    }
    Ok(())
}
