//! `/dev/mapper/control`: the device-mapper driver.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::udev::{Cookie, UdevFlags, UdevPolicy};
use super::wire::{
    Command, DeviceStatus, DmVersion, EncodeError, ListedDevice, Payload, Request, Response, TargetVersion,
};
use super::{DmFlags, DmId, DmName, DmUuid, TargetLine, TargetSpec, TargetType, node};
use crate::error::{IoctlError, is_permission};
use crate::kernel::{Access, Arg, DeviceFile, DeviceNumber, Kernel, RealKernel};
use crate::units::Sectors;
use crate::{Error, Result};

/// Room for a request and its answer on the stack: enough for every message and table of this crate,
/// and less than a page's worth of copying each way.
const SMALL: usize = 480;
/// First room for an answer that is a list or a table; doubled as long as the kernel asks.
const LARGE: usize = 16 << 10;
/// No honest answer is larger: some 300,000 devices.
const LARGEST: usize = 64 << 20;

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Removal {
    /// The device is gone.
    Removed,
    /// It was open: the kernel removes it when it is closed for the last time.
    Deferred,
}

/// Which of a device's two tables is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// The one in use.
    Live,
    /// The one loaded, but not resumed yet.
    Inactive,
}

/// The device-mapper driver. Cheap to share between threads behind an [`Arc`]; each method is one
/// ioctl, plus, when devices come, go or change their name, what it takes until the node under
/// `/dev/mapper` shows that.
#[derive(Debug)]
pub struct DeviceMapper {
    kernel: Arc<dyn Kernel>,
    control: DeviceFile,
    version: DmVersion,
    udev: UdevPolicy,
}

impl DeviceMapper {
    /// Open `/dev/mapper/control` of the running kernel.
    ///
    /// # Errors
    /// [`Error::NoDeviceMapper`], [`Error::NotPermitted`]; [`Error::TooOld`] if the interface is not
    /// version 4.
    pub fn open() -> Result<Self> {
        Self::with_kernel(Arc::new(RealKernel), UdevPolicy::default())
    }

    /// The same with another [`Kernel`], and a choice about udev.
    pub fn with_kernel(kernel: Arc<dyn Kernel>, udev: UdevPolicy) -> Result<Self> {
        let path = Path::new("/dev/mapper/control");
        let control = kernel.open(path, Access::ReadWrite).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::ENOTDIR => {
                Error::NoDeviceMapper { path: path.into(), errno }
            }
            errno if is_permission(errno) => Error::NotPermitted { what: format!("open {}", path.display()) },
            errno => Error::Open { path: path.into(), errno },
        })?;
        let version = DmVersion { major: crate::abi::dm::DM_VERSION_MAJOR, minor: 0, patch: 0 };
        let mut dm = Self { kernel, control, version, udev };
        dm.version = dm.transact(&Request::new(Command::VERSION), |answer| Ok(answer.version()))?;
        Ok(dm)
    }

    /// The kernel behind it.
    pub fn kernel(&self) -> &Arc<dyn Kernel> {
        &self.kernel
    }

    /// The kernel's interface version, asked once when this was opened.
    #[doc(alias = "DM_VERSION")]
    pub fn version(&self) -> DmVersion {
        self.version
    }

    /// All devices.
    #[doc(alias = "DM_LIST_DEVICES")]
    pub fn list(&self) -> Result<Vec<ListedDevice>> {
        // Without the flag, the kernel leaves the uuids out.
        let request = Request::new(Command::LIST_DEVICES).flags(DmFlags::UUID);
        self.transact(&request, |answer| answer.devices())
    }

    /// Create a device without a table. Its node is there when this returns, unless udev makes it,
    /// which it does at the first [`resume`](Self::resume).
    ///
    /// # Errors
    /// EBUSY if the name or the uuid is taken: [`Error::is_busy`].
    #[doc(alias = "DM_DEV_CREATE")]
    pub fn create(&self, name: &DmName, uuid: Option<&DmUuid>) -> Result<DeviceStatus> {
        self.create_with_number(name, uuid, None)
    }

    /// The same with a device number of the caller's choice; the major number is device mapper's own.
    ///
    /// # Errors
    /// As [`create`](Self::create); EBUSY also if the minor number is taken.
    #[doc(alias = "DM_PERSISTENT_DEV_FLAG")]
    pub fn create_with_number(
        &self,
        name: &DmName,
        uuid: Option<&DmUuid>,
        number: Option<DeviceNumber>,
    ) -> Result<DeviceStatus> {
        let status = self.transact(&Request::create(name, uuid, number), |answer| answer.device())?;
        if !self.waits_for_udev()
            && let Err(error) = node::ensure(&*self.kernel, name, status.number)
        {
            let _ = self.transact(&Request::on(Command::DEV_REMOVE, name.into()), |_| Ok(()));
            return Err(error);
        }
        Ok(status)
    }

    /// Create a device, load its table and resume it; undone if any of that fails.
    ///
    /// The state before the resume is returned, with the number that the device got.
    pub fn create_active(
        &self,
        name: &DmName,
        uuid: &DmUuid,
        table: &[TargetSpec<'_>],
        flags: DmFlags,
    ) -> Result<DeviceStatus> {
        let status = self.create(name, Some(uuid))?;
        let active = self
            .load_table(status.number.into(), table, flags)
            .and_then(|()| self.resume(name))
            .and_then(|_| self.ensure_node(name, status.number));
        match active {
            Ok(_) => Ok(status),
            Err(error) => {
                // What failed is the news; a device that cannot be removed either has its own.
                let _ = self.remove(name);
                Err(error)
            }
        }
    }

    /// Remove a device and its node.
    ///
    /// # Errors
    /// EBUSY if it is open ([`Error::is_busy`]), ENXIO if it is not there ([`Error::is_not_found`]).
    #[doc(alias = "DM_DEV_REMOVE")]
    pub fn remove(&self, name: &DmName) -> Result<()> {
        self.remove_with(name, DmFlags::empty()).map(drop)
    }

    /// Remove a device now if it is closed, else when it is closed for the last time.
    ///
    /// A device waiting for that can still be used, until [`cancel_deferred_remove`](Self::cancel_deferred_remove)
    /// or its end. Since interface 4.27.
    #[doc(alias = "DM_DEFERRED_REMOVE")]
    pub fn remove_deferred(&self, name: &DmName) -> Result<Removal> {
        self.remove_with(name, DmFlags::DEFERRED_REMOVE)
    }

    fn remove_with(&self, name: &DmName, flags: DmFlags) -> Result<Removal> {
        let minor = if flags.contains(DmFlags::DEFERRED_REMOVE) { 27 } else { 0 };
        let request = Request::on(Command::DEV_REMOVE, name.into()).flags(flags).since(minor);
        let answered = self.with_udev(request)?;
        if answered.contains(DmFlags::DEFERRED_REMOVE) {
            return Ok(Removal::Deferred);
        }
        node::remove(&*self.kernel, name)?;
        Ok(Removal::Removed)
    }

    /// Take back a deferred removal.
    ///
    /// # Errors
    /// ENXIO if the device is gone, EBUSY if it is going right now. That none is pending is no error.
    #[doc(alias = "@cancel_deferred_remove")]
    pub fn cancel_deferred_remove(&self, id: DmId<'_>) -> Result<()> {
        self.message(id, Sectors(0), &"@cancel_deferred_remove").map(drop)
    }

    /// Give a device another name; its node moves along.
    ///
    /// # Errors
    /// EBUSY if the new name is taken, ENXIO if there is no device of the old one.
    #[doc(alias = "DM_DEV_RENAME")]
    pub fn rename(&self, from: &DmName, to: &DmName) -> Result<()> {
        let request = Request::on(Command::DEV_RENAME, from.into()).payload(Payload::NewName(to));
        self.with_udev(request)?;
        let number = self.status(to.into())?.number;
        node::remove(&*self.kernel, from)?;
        self.ensure_node(to, number).map(drop)
    }

    /// Suspend a device: new I/O waits until [`resume`](Self::resume). A suspended one stays so.
    ///
    /// With no flag, a mounted file system is frozen and I/O on its way is finished first;
    /// [`DmFlags::SKIP_LOCKFS`] and [`DmFlags::NOFLUSH`] leave that out. Other flags are ignored. A
    /// signal that interrupts the wait does not end it.
    #[doc(alias = "DM_DEV_SUSPEND")]
    pub fn suspend(&self, id: DmId<'_>, flags: DmFlags) -> Result<DeviceStatus> {
        let flags = flags & (DmFlags::SKIP_LOCKFS | DmFlags::NOFLUSH) | DmFlags::SUSPEND;
        let request = Request::on(Command::DEV_SUSPEND, id).flags(flags);
        loop {
            match self.transact(&request, |answer| answer.device()) {
                Err(error) if error.errno() == Some(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Resume a device; an inactive table becomes the live one.
    ///
    /// # Errors
    /// If the table cannot be put to use it is dropped.
    #[doc(alias = "DM_DEV_SUSPEND")]
    pub fn resume(&self, name: &DmName) -> Result<()> {
        self.with_udev(Request::on(Command::DEV_SUSPEND, name.into())).map(drop)
    }

    /// The state of a device.
    ///
    /// # Errors
    /// ENXIO if it is not there ([`Error::is_not_found`]).
    #[doc(alias = "DM_DEV_STATUS")]
    pub fn status(&self, id: DmId<'_>) -> Result<DeviceStatus> {
        self.transact(&Request::on(Command::DEV_STATUS, id), |answer| answer.device())
    }

    /// The state of a device, or `None` if it is not there.
    pub fn find(&self, id: DmId<'_>) -> Result<Option<DeviceStatus>> {
        match self.status(id) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Load a table into the inactive slot; [`resume`](Self::resume) puts it to use. Of the flags,
    /// [`DmFlags::READONLY`] counts.
    ///
    /// # Errors
    /// EINVAL for parameters that the target does not take: the kernel log says why.
    #[doc(alias = "DM_TABLE_LOAD")]
    pub fn load_table(&self, id: DmId<'_>, table: &[TargetSpec<'_>], flags: DmFlags) -> Result<()> {
        let request = Request::on(Command::TABLE_LOAD, id)
            .flags(flags & DmFlags::READONLY)
            .payload(Payload::Table(table));
        self.transact(&request, |_| Ok(()))
    }

    /// Drop the inactive table.
    #[doc(alias = "DM_TABLE_CLEAR")]
    pub fn clear_table(&self, id: DmId<'_>) -> Result<()> {
        self.transact(&Request::on(Command::TABLE_CLEAR, id), |_| Ok(()))
    }

    /// The devices that a table uses.
    #[doc(alias = "DM_TABLE_DEPS")]
    pub fn dependencies(&self, id: DmId<'_>, table: TableKind) -> Result<Vec<DeviceNumber>> {
        let request = Request::on(Command::TABLE_DEPS, id);
        self.transact(&of_table(request, table), |answer| answer.dependencies())
    }

    /// The lines of a table, as they were loaded. Without a table: none.
    #[doc(alias("DM_TABLE_STATUS", "DM_STATUS_TABLE_FLAG"))]
    pub fn table(&self, id: DmId<'_>, table: TableKind) -> Result<Vec<TargetLine>> {
        let request = Request::on(Command::TABLE_STATUS, id).flags(DmFlags::STATUS_TABLE);
        self.transact(&of_table(request, table), |answer| answer.targets())
    }

    /// The status of each target of the live table, and the state of the device.
    ///
    /// [`DmFlags::NOFLUSH`] keeps a thin pool from committing first, other flags are ignored.
    #[doc(alias = "DM_TABLE_STATUS")]
    pub fn table_status(&self, id: DmId<'_>, flags: DmFlags) -> Result<(DeviceStatus, Vec<TargetLine>)> {
        let request = Request::on(Command::TABLE_STATUS, id).flags(flags & DmFlags::NOFLUSH);
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
        let versions = self
            .transact(&Request::target_version(target), |answer| answer.target_versions())
            .map_err(|error| match error.errno() {
                Some(Errno::EINVAL) => Error::NoTarget { target: target.to_string() },
                _ => error,
            })?;
        versions.into_iter().next().ok_or_else(|| Error::NoTarget { target: target.to_string() })
    }

    /// A message to the target that serves `sector`. The device's event number comes back with the
    /// answer, for free. Nothing is allocated, and nothing is ever sent twice.
    ///
    /// # Errors
    /// What the target says; EINVAL if it does not know the message, or there is no live table.
    #[doc(alias = "DM_TARGET_MSG")]
    pub fn message(&self, id: DmId<'_>, sector: Sectors, text: &dyn std::fmt::Display) -> Result<u32> {
        let request = Request::on(Command::TARGET_MSG, id).payload(Payload::Message { sector, text });
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

    /// Where the node of a device of that name is.
    pub fn node_path(&self, name: &DmName) -> PathBuf {
        node::path(name)
    }

    /// See to it that the node of an active device is there and means that device.
    pub fn ensure_node(&self, name: &DmName, number: DeviceNumber) -> Result<PathBuf> {
        node::ensure(&*self.kernel, name, number)
    }

    fn waits_for_udev(&self) -> bool {
        match self.udev {
            UdevPolicy::None => false,
            UdevPolicy::Auto => self.kernel.udev_runs(),
            UdevPolicy::Cookie => true,
        }
    }

    /// Send a request that makes the kernel tell udev, and wait until udev has done its part.
    fn with_udev(&self, request: Request<'_>) -> Result<DmFlags> {
        // Without a semaphore (none left in the system, or not allowed) it goes on without udev.
        let cookie = if self.waits_for_udev() { Cookie::new().ok() } else { None };
        let event_nr = cookie.as_ref().map_or(0, |cookie| cookie.event_nr(UdevFlags::NODE_ONLY));
        let flags = self.transact(&request.event_nr(event_nr), |answer| Ok(answer.flags()))?;
        if let Some(cookie) = cookie
            && flags.contains(DmFlags::UEVENT_GENERATED)
        {
            // If udev does not come, the caller's look at the node mends what it left.
            cookie.wait();
        }
        Ok(flags)
    }

    fn transact<T>(
        &self,
        request: &Request<'_>,
        decode: impl FnOnce(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let capacity = if request.command().is_query() { LARGE } else { SMALL };
        self.transact_in(request, capacity, decode)
    }

    fn transact_in<T>(
        &self,
        request: &Request<'_>,
        capacity: usize,
        decode: impl FnOnce(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let ioctl = request.command().ioctl;
        if request.minor() > self.version.minor {
            let (needed, kernel) = (request.minor(), self.version);
            return Err(Error::TooOld { ioctl: ioctl.name(), needed, kernel });
        }
        let mut stack = [0; SMALL];
        let mut heap = Vec::new();
        let mut capacity = capacity;
        loop {
            let buffer = if capacity <= SMALL {
                &mut stack[..]
            } else {
                heap.clear();
                heap.resize(capacity, 0);
                &mut heap[..]
            };
            let fits = match request.encode(buffer) {
                Ok(()) => true,
                Err(EncodeError::BufferTooSmall) => false,
                Err(EncodeError::NulInText) => return Err(unfit(request, "a NUL byte inside")),
                Err(EncodeError::NumberTooLarge) => return Err(unfit(request, "device number too large")),
            };
            if fits {
                self.kernel
                    .ioctl(&self.control, ioctl, Arg::Bytes(buffer))
                    .map_err(|errno| refused(request, errno))?;
                let answer = Response::decode(buffer)?;
                if !answer.flags().contains(DmFlags::BUFFER_FULL) {
                    return decode(answer);
                }
            }
            // What has had its effect must not have it twice.
            let sent = fits && !request.command().is_query();
            if sent || capacity >= LARGEST {
                let device = request.subject();
                return Err(Error::AnswerTooLarge { ioctl: ioctl.name(), device, capacity });
            }
            capacity = (capacity * 2).clamp(LARGE, LARGEST);
        }
    }
}

fn of_table(request: Request<'_>, table: TableKind) -> Request<'_> {
    match table {
        TableKind::Live => request,
        TableKind::Inactive => request.flags(DmFlags::QUERY_INACTIVE_TABLE).since(16),
    }
}

#[cold]
fn unfit(request: &Request<'_>, reason: &'static str) -> Error {
    let value =
        request.detail().map_or_else(|| request.subject(), |detail| detail.escape_debug().to_string());
    Error::InvalidOption { option: request.command().ioctl.name(), value, reason }
}

#[cold]
fn refused(request: &Request<'_>, errno: Errno) -> Error {
    let error = IoctlError {
        ioctl: request.command().ioctl.name(),
        device: request.subject(),
        detail: request.detail(),
        errno,
    };
    if is_permission(errno) {
        return Error::NotPermitted { what: error.to_string() };
    }
    Error::Ioctl(Box::new(error))
}
