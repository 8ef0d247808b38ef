//! The commands about tables and targets, and messages to targets.

use nix::errno::Errno;

use super::control::{LARGEST, SMALL};
use super::wire::{Command, DeviceStatus, EventNr, Payload, Request, Response, TargetVersion};
use super::{DeviceMapper, DmFlags, DmId, Exclusive, TargetLine, TargetSpec, TargetType};
use crate::dm::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

/// Which of a device's two tables is meant.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// The one in use.
    Live,
    /// The one loaded, but not resumed yet.
    Inactive,
}

impl DeviceMapper {
    /// Loads a table into the inactive slot; [`resume`](Self::resume) puts it to use.
    ///
    /// Of the flags, [`DmFlags::READONLY`] counts, and [`DmFlags::SECURE_DATA`] (interface 4.20) for a
    /// table with a key in it: the kernel's and this crate's copies of it are wiped, and no error shows
    /// it. The text that is rendered is the caller's to wipe.
    ///
    /// # Errors
    /// EINVAL for parameters that the target does not take: the kernel log says why.
    #[doc(alias = "DM_TABLE_LOAD")]
    pub fn load_table<'a>(
        &self,
        id: impl Into<DmId<'a>>,
        table: &[TargetSpec<'_>],
        flags: DmFlags,
    ) -> Result<()> {
        let id = id.into();
        let held = self.exclusive(id);
        self.load_held(&held, id, table, flags)
    }

    pub(crate) fn load_held(
        &self,
        _held: &Exclusive,
        id: DmId<'_>,
        table: &[TargetSpec<'_>],
        flags: DmFlags,
    ) -> Result<()> {
        let minor = if flags.contains(DmFlags::SECURE_DATA) { 20 } else { 0 };
        let request = Request::on(Command::TABLE_LOAD, id)
            .since(minor)
            .flags(flags & (DmFlags::READONLY | DmFlags::SECURE_DATA))
            .payload(Payload::Table(table));
        self.transact(&request, |_| Ok(()))
    }

    /// Drops the inactive table.
    ///
    /// A device that is [renamed](Self::rename) after this, with no other table loaded in between, can crash
    /// kernels with IMA (`CONFIG_IMA`, 5.15 to 6.12 at least) when it is removed: dm-ima.c frees its name twice.
    #[doc(alias = "DM_TABLE_CLEAR")]
    pub fn clear_table<'a>(&self, id: impl Into<DmId<'a>>) -> Result<()> {
        let id = id.into();
        let held = self.exclusive(id);
        self.clear_held(&held, id)
    }

    pub(crate) fn clear_held(&self, _held: &Exclusive, id: DmId<'_>) -> Result<()> {
        self.transact(&Request::on(Command::TABLE_CLEAR, id), |_| Ok(()))
    }

    /// The devices that a table uses.
    #[doc(alias = "DM_TABLE_DEPS")]
    pub fn dependencies<'a>(&self, id: impl Into<DmId<'a>>, table: TableKind) -> Result<Vec<DeviceNumber>> {
        let request = Request::on(Command::TABLE_DEPS, id.into());
        self.transact(&of_table(request, table), |answer| answer.dependencies())
    }

    /// The lines of a table, as they were loaded. Without a table: none.
    ///
    /// A line can hold a key (dm-crypt's does). All copies but the one returned are wiped.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a line that is not UTF-8: it could not be loaded again as text.
    #[doc(alias("DM_TABLE_STATUS", "DM_STATUS_TABLE_FLAG"))]
    pub fn table<'a>(&self, id: impl Into<DmId<'a>>, table: TableKind) -> Result<Vec<TargetLine>> {
        let request = Request::on(Command::TABLE_STATUS, id.into())
            .since(20)
            .flags(DmFlags::STATUS_TABLE | DmFlags::SECURE_DATA);
        self.transact(&of_table(request, table), |answer| answer.targets())
    }

    /// The lines of a table as the kernel's integrity measurement (IMA) sees them. Since interface 4.45
    /// and Linux 5.15; the kernels between answer with the status.
    #[doc(alias("DM_TABLE_STATUS", "DM_IMA_MEASUREMENT_FLAG"))]
    pub fn ima_measurement<'a>(&self, id: impl Into<DmId<'a>>, table: TableKind) -> Result<Vec<TargetLine>> {
        let request = Request::on(Command::TABLE_STATUS, id.into()).since(45).flags(DmFlags::IMA_MEASUREMENT);
        self.transact(&of_table(request, table), |answer| answer.targets())
    }

    /// The status of each target of the live table, and the state of the device.
    ///
    /// [`DmFlags::NOFLUSH`] keeps a thin pool from committing first, other flags are ignored.
    #[doc(alias = "DM_TABLE_STATUS")]
    pub fn table_status<'a>(
        &self,
        id: impl Into<DmId<'a>>,
        flags: DmFlags,
    ) -> Result<(DeviceStatus, Vec<TargetLine>)> {
        let request = Request::on(Command::TABLE_STATUS, id.into()).flags(flags & DmFlags::NOFLUSH);
        self.transact(&request, |answer| Ok((answer.device()?, answer.targets()?)))
    }

    /// The target types that are loaded.
    #[doc(alias = "DM_LIST_VERSIONS")]
    pub fn target_versions(&self) -> Result<Vec<TargetVersion>> {
        self.transact(&Request::new(Command::LIST_VERSIONS), |answer| answer.target_versions())
    }

    /// The version of one target type; its module is loaded for it. Since interface 4.41.
    ///
    /// # Errors
    /// [`Error::NoTarget`] if the kernel does not have it.
    #[doc(alias = "DM_GET_TARGET_VERSION")]
    pub fn target_version(&self, target: TargetType) -> Result<TargetVersion> {
        let missing = || Error::NoTarget { target: target.to_string(), module: target.module() };
        let versions = self
            .transact(&Request::target_version(target), |answer| answer.target_versions())
            .map_err(|error| match error.errno() {
                Some(Errno::EINVAL) => missing(),
                _ => error,
            })?;
        versions.into_iter().next().ok_or_else(missing)
    }

    /// A message to the target that serves `sector`. The device's event number comes back with the
    /// answer, for free. Nothing is allocated, and nothing is ever sent twice.
    ///
    /// # Errors
    /// What the target says; EINVAL if it does not know the message, or there is no live table.
    /// [`Error::InvalidOption`] if the text has a NUL byte inside. [`Error::AnswerTooLarge`] if the
    /// target answered with a text for which there was no room: the message had its effect.
    #[doc(alias = "DM_TARGET_MSG")]
    pub fn message<'a>(
        &self,
        id: impl Into<DmId<'a>>,
        sector: Sectors,
        text: &dyn std::fmt::Display,
    ) -> Result<EventNr> {
        let request = Request::on(Command::TARGET_MSG, id.into()).payload(Payload::Message { sector, text });
        self.transact(&request, |answer| Ok(answer.event_nr()))
    }

    /// The same for a message with a secret in it, such as dm-crypt's `key set …`: the kernel's and this
    /// crate's copies are wiped, and no error shows it. Since interface 4.20.
    ///
    /// # Errors
    /// As [`message`](Self::message).
    #[doc(alias("DM_TARGET_MSG", "DM_SECURE_DATA_FLAG"))]
    pub fn message_secure(
        &self,
        id: DmId<'_>,
        sector: Sectors,
        text: &dyn std::fmt::Display,
    ) -> Result<EventNr> {
        let request = Request::on(Command::TARGET_MSG, id)
            .since(20)
            .flags(DmFlags::SECURE_DATA)
            .payload(Payload::Message { sector, text });
        self.transact(&request, |answer| Ok(answer.event_nr()))
    }

    /// The same for a message that answers with text, such as `@stats_list`.
    ///
    /// # Errors
    /// [`Error::AnswerTooLarge`] if the text is longer than `capacity`: the message had its effect.
    #[doc(alias("DM_TARGET_MSG", "DM_DATA_OUT_FLAG"))]
    pub fn message_with_answer(
        &self,
        id: DmId<'_>,
        sector: Sectors,
        text: &dyn std::fmt::Display,
        capacity: usize,
    ) -> Result<Option<String>> {
        let request =
            Request::on(Command::TARGET_MSG, id).since(25).payload(Payload::Message { sector, text });
        let decode = |answer: Response<'_>| answer.message().map(|text| text.map(str::to_owned));
        self.transact_in(&request, SMALL.saturating_add(capacity).min(LARGEST), decode)
    }
}

fn of_table(request: Request<'_>, table: TableKind) -> Request<'_> {
    match table {
        TableKind::Live => request,
        TableKind::Inactive => request.flags(DmFlags::QUERY_INACTIVE_TABLE).since(16),
    }
}
