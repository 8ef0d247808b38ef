//! An active thin pool.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::guard_state::{GuardState, reload_count};
use super::identity::Identity;
use super::{Message, PoolMode, PoolStatus, PoolTable, SuspendedVolume, ThinId, TransactionId};
use crate::dm;
use crate::dm::{
    DeviceMapper, DeviceStatus, DmFlags, DmId, DmName, DmUuid, EventNr, TableKind, TargetLine, TargetSpec,
    TargetType,
};
use crate::kernel::DeviceNumber;
use crate::thin::{Error, Result};
use crate::units::Sectors;

/// What a snapshot is taken of.
#[derive(Debug)]
#[non_exhaustive]
pub enum Origin<'a> {
    /// A thin device that is not active. The kernel does not check that: a snapshot of one that is active can be
    /// corrupt.
    Inactive(ThinId),
    /// An active one, suspended meanwhile: else the snapshot would be corrupt.
    Suspended(&'a SuspendedVolume<'a>),
}

impl Origin<'_> {
    fn id(&self) -> ThinId {
        match self {
            Self::Inactive(id) => *id,
            Self::Suspended(volume) => volume.id(),
        }
    }
}

/// A thin pool that is active. Dropping it changes nothing; see [`deactivate`](Self::deactivate).
///
/// The kernel does not say whether the commit after a message worked. Every answer carries the pool's
/// event number, though, and the event number rises when the pool changes its mode. So a message costs
/// one ioctl, and only when the number moved the status is read: a success is one that is on disk.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use dm_thin::dm::{DeviceMapper, DmName};
/// use dm_thin::thin::{Origin, PoolStatus, ThinId, ThinPool};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // One that LVM, a script or another program has made; `create` makes one: see the module.
/// let dm = Arc::new(DeviceMapper::open()?);
/// let pool = ThinPool::open(dm, &DmName::new("vg-pool-tpool")?)?;
/// if let PoolStatus::Usage(usage) = pool.status()? {
///     println!("{} of {} data blocks", usage.used_data, usage.total_data);
/// }
/// pool.create_thin(ThinId::new(1)?)?;
/// pool.create_snap(ThinId::new(2)?, &Origin::Inactive(ThinId::new(1)?))?;
/// pool.delete(ThinId::new(2)?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ThinPool {
    pub(super) dm: Arc<DeviceMapper>,
    pub(super) identity: Identity,
    /// The event number of the last status, doubled, plus one if the metadata could be changed then. In one
    /// word, so that the two are never of different times.
    seen: AtomicU64,
    pub(super) guard: Option<GuardState>,
    /// There is one metadata snapshot.
    pub(super) holding: Mutex<()>,
}

impl ThinPool {
    /// Activates a pool of `size` sectors. A metadata device that begins with 4 KiB of zeroes is
    /// formatted.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a table that the kernel would not take,
    /// [`dm::Error::NoTarget`](crate::dm::Error::NoTarget) if it has no thin-pool target; EBUSY if the name is taken,
    /// or another pool uses the metadata device.
    pub fn create(
        dm: Arc<DeviceMapper>,
        name: &DmName,
        uuid: &DmUuid,
        table: &PoolTable,
        size: Sectors,
    ) -> Result<Self> {
        table.check_size(size)?;
        let target_type = TargetType::THIN_POOL;
        let line = TargetSpec { start: Sectors(0), length: size, target_type, parameters: table };
        let created = dm.create_active(name, uuid, &[line], DmFlags::empty());
        let status = created.map_err(|error| match error.errno() {
            // TABLE_LOAD answers EINVAL for an unknown target as for anything else.
            Some(Errno::EINVAL) => match dm.target_version(target_type) {
                Err(missing @ dm::Error::NoTarget { .. }) => missing,
                _ => error,
            },
            _ => error,
        })?;
        let pool = Self::of(dm, &status);
        pool.status().inspect_err(|_| {
            // Return the first error.
            let _ = pool.deactivate();
        })?;
        Ok(pool)
    }

    /// An active pool, by its name.
    ///
    /// The handle is of the device that has the name now: requests go by its uuid. A device without a uuid is
    /// addressed by name, after a look at its number.
    ///
    /// # Errors
    /// ENXIO if there is no such device, [`Error::WrongTarget`] if it is not a thin pool.
    pub fn open(dm: Arc<DeviceMapper>, name: &DmName) -> Result<Self> {
        let status = dm.status(name)?;
        let pool = Self::of(dm, &status);
        pool.status()?;
        Ok(pool)
    }

    fn of(dm: Arc<DeviceMapper>, status: &DeviceStatus) -> Self {
        let (identity, seen) = (status.into(), AtomicU64::new(0));
        Self { dm, identity, seen, guard: None, holding: Mutex::new(()) }
    }

    /// Its name.
    pub fn name(&self) -> &DmName {
        &self.identity.name
    }

    /// Its uuid, by which requests address it.
    pub fn uuid(&self) -> Option<&DmUuid> {
        self.identity.uuid.as_ref()
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.identity.number
    }

    /// How requests address it.
    fn id(&self) -> dm::Result<DmId<'_>> {
        self.identity.id(&self.dm)
    }

    fn named(&self, error: dm::Error) -> dm::Error {
        self.identity.named(error)
    }

    /// The device mapper behind it.
    pub fn device_mapper(&self) -> &Arc<DeviceMapper> {
        &self.dm
    }

    /// The table it runs with, and its size.
    pub fn table(&self) -> Result<(PoolTable, Sectors)> {
        let lines = self.dm.table(self.id()?, TableKind::Live).map_err(|error| self.named(error))?;
        let line = self.only_line(&lines)?;
        Ok((line.text.parse()?, line.length))
    }

    /// Usage and mode. Nothing is committed for it.
    pub fn status(&self) -> Result<PoolStatus> {
        self.look().map(|(status, _)| status)
    }

    /// The status, and the device that gave it; its event number is from before the status.
    pub(super) fn look(&self) -> Result<(PoolStatus, DeviceStatus)> {
        let reloads = reload_count();
        let (device, lines) =
            self.dm.table_status(self.id()?, DmFlags::NOFLUSH).map_err(|error| self.named(error))?;
        let status: PoolStatus = self.only_line(&lines)?.text.parse()?;
        self.seen.store(seen(device.event_nr, status.mode().is_sound()), Ordering::Release);
        if let Some(guard) = &self.guard {
            guard.record(&status, reloads);
        }
        Ok((status, device))
    }

    fn only_line<'a>(&self, lines: &'a [TargetLine]) -> Result<&'a TargetLine> {
        match lines {
            [line] if line.target_type == TargetType::THIN_POOL => Ok(line),
            _ => Err(Error::WrongTarget {
                device: self.name().to_string(),
                found: lines.first().map(|line| line.target_type.to_string()).unwrap_or_default(),
                expected: "thin-pool",
            }),
        }
    }

    /// Makes an empty thin device.
    ///
    /// # Errors
    /// EEXIST if the id is taken ([`Error::is_exists`]), [`Error::PoolMode`] if the pool cannot.
    pub fn create_thin(&self, id: ThinId) -> Result<()> {
        self.message(Message::CreateThin { id })
    }

    /// Makes a snapshot.
    ///
    /// # Errors
    /// EEXIST if the id is taken, ENODATA if there is no such origin ([`Error::is_not_found`]),
    /// [`Error::PoolMode`] if the pool cannot; [`Error::InvalidOption`] if the suspended origin is a volume of another
    /// pool.
    pub fn create_snap(&self, id: ThinId, origin: &Origin<'_>) -> Result<()> {
        if let Origin::Suspended(suspended) = origin
            && !suspended.pool().is(&self.identity)
        {
            let (option, value) = ("origin", suspended.name().to_string());
            return Err(Error::InvalidOption { option, value, reason: "is a volume of another pool" });
        }
        self.message(Message::CreateSnap { id, origin: origin.id() })
    }

    /// Deletes a thin device.
    ///
    /// # Errors
    /// EBUSY if it is active ([`Error::is_busy`]), ENODATA if there is none ([`Error::is_not_found`]),
    /// [`Error::PoolMode`] if the pool cannot.
    pub fn delete(&self, id: ThinId) -> Result<()> {
        self.message(Message::Delete { id })
    }

    /// Changes the transaction id.
    ///
    /// # Errors
    /// EINVAL if it is not `current`.
    pub fn set_transaction_id(&self, current: TransactionId, new: TransactionId) -> Result<()> {
        self.message(Message::SetTransactionId { current, new })
    }

    /// Keeps the metadata as it is now readable for other programs, until it is
    /// [released](Self::release_metadata_snap); [`PoolUsage::held_metadata_root`](super::PoolUsage)
    /// tells where.
    ///
    /// # Errors
    /// [`Error::MetadataSnapHeld`] if one is held already.
    pub fn reserve_metadata_snap(&self) -> Result<()> {
        self.message(Message::ReserveMetadataSnap).map_err(|error| match error.errno() {
            Some(Errno::EBUSY) => Error::MetadataSnapHeld { pool: self.name().to_string() },
            _ => error,
        })
    }

    /// Releases the metadata snapshot, whoever holds it: a program that still reads it may read blocks that were
    /// reused.
    ///
    /// # Errors
    /// EINVAL if none is held.
    pub fn release_metadata_snap(&self) -> Result<()> {
        self.message(Message::ReleaseMetadataSnap)
    }

    /// Sends any message. Returning `Ok` means that the kernel did it and committed it.
    ///
    /// # Errors
    /// What the kernel says. [`Error::PoolMode`] if the pool cannot change its metadata any more: either the
    /// message was refused, or it was obeyed and may be lost. [`Error::LowSpace`] if it allocates, and a
    /// [guard](Self::with_guard) forbids it.
    pub fn message(&self, message: Message) -> Result<()> {
        if matches!(message, Message::CreateThin { .. } | Message::CreateSnap { .. }) {
            self.check_space()?;
        }
        self.conclude(self.send(message))
    }

    /// Sends the message and nothing else, while the origin is suspended: neither the guard nor the pool's
    /// mode is asked. [`conclude`](Self::conclude) interprets the result, after the resume.
    pub(crate) fn send(&self, message: Message) -> Sent {
        let answer = self.id().and_then(|id| self.dm.message(id, Sectors(0), &message));
        Sent { message, answer: answer.map_err(|error| self.named(error)) }
    }

    /// The result of a message.
    pub(crate) fn conclude(&self, Sent { message, answer }: Sent) -> Result<()> {
        let event = match answer {
            Ok(event) => event,
            // These are about the thin device. The answer to an error has no event number, so for any
            // other the status shows whether the pool is the reason.
            Err(error) if matches!(error.errno(), Some(Errno::EEXIST | Errno::ENODATA | Errno::EBUSY)) => {
                return Err(error.into());
            }
            Err(error) => {
                return match self.status() {
                    Ok(PoolStatus::Usage(usage)) if usage.needs_check => Err(self.mode_error(
                        usage.mode,
                        "the message was refused; once it is deactivated, thin::tools::clear_needs_check may heal it",
                    )),
                    Ok(status) if !status.mode().is_sound() => {
                        Err(self.mode_error(status.mode(), "the message was refused"))
                    }
                    _ => Err(error.into()),
                };
            }
        };
        if self.seen.load(Ordering::Acquire) == seen(event, true) {
            return Ok(());
        }
        let mode = self.status()?.mode();
        if mode.is_sound() {
            return self.take_back_if_low(message);
        }
        Err(self.mode_error(mode, "the message may not have been committed"))
    }

    /// How often its guard has refused to allocate.
    #[cfg_attr(not(feature = "tree"), allow(dead_code))] // the tree's metrics
    pub(crate) fn refusals(&self) -> u64 {
        self.guard.as_ref().map_or(0, GuardState::refusals)
    }

    /// Deletes what a message created if its answer carried the event of too little space. If that fails,
    /// the message has had its effect.
    fn take_back_if_low(&self, message: Message) -> Result<()> {
        let (Message::CreateThin { id } | Message::CreateSnap { id, .. }) = message else { return Ok(()) };
        let Some(Err(low)) = self.guard.as_ref().map(|guard| guard.check(self.name())) else { return Ok(()) };
        match self.delete(id) {
            Ok(()) => Err(low),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn mode_error(&self, mode: PoolMode, consequence: &'static str) -> Error {
        Error::PoolMode { pool: self.name().to_string(), mode, consequence }
    }

    /// Removes the device. The pool's contents stay on its data and metadata devices.
    ///
    /// # Errors
    /// EBUSY while a volume of it is active ([`Error::is_busy`]).
    pub fn deactivate(&self) -> Result<()> {
        Ok(self.identity.remove(&self.dm, DmFlags::empty()).map(drop)?)
    }
}

/// A message that was sent, and the kernel's answer.
#[derive(Debug)]
pub(crate) struct Sent {
    message: Message,
    answer: dm::Result<EventNr>,
}

impl Sent {
    /// Whether the kernel has obeyed.
    pub(crate) fn is_obeyed(&self) -> bool {
        self.answer.is_ok()
    }
}

fn seen(event: EventNr, sound: bool) -> u64 {
    u64::from(event.0) << 1 | u64::from(sound)
}
