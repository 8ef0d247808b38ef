use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use dm_thin::thin::{ThinId, TransactionId};
use dm_thin::tree::Filesystem;
use nix::sys::stat::{major, minor};
use serde::Serialize;
use uuid::Uuid;

use crate::device::{DeviceFiles, TransactionFile, name_of};
use crate::directory::Directory;
use crate::layers::Layers;
use crate::pool::Pool;
use crate::{Container, Device, DeviceName, DeviceState, Error, Finding, Image, Layer, PoolInfo, Result};

/// The pool's devices, where they are not in the directory: the `_tmeta` and `_tdata` volumes of an LVM pool, or copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFiles {
    /// The metadata.
    pub metadata: PathBuf,
    /// The data.
    pub data: PathBuf,
}

/// How the transaction id of Docker's files compares with the pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TransactionState {
    /// There is nothing to compare.
    Unknown,
    /// Equal, or Docker has none yet.
    Clean,
    /// Docker's is one above the pool's: its last operation was interrupted.
    Interrupted,
    /// Docker's is below the pool's: another pool, or restored files.
    PoolNewer,
    /// Docker's is several above the pool's: another pool, or a restored one.
    PoolOlder,
}

/// A Docker directory with the devicemapper storage driver's files, or a pool without them.
///
/// The directory is read once, when it is opened. Neither Docker nor the pool may be active meanwhile: what is read of
/// a pool that changes is inconsistent.
#[derive(Debug)]
pub struct Store {
    pub(crate) devices: BTreeMap<DeviceName, Device>,
    pub(crate) pool: Option<Pool>,
    layers: Layers,
    transaction: Option<TransactionId>,
    transaction_state: TransactionState,
    /// As Docker's files have it.
    base_filesystem: String,
    findings: Vec<Finding>,
}

impl Store {
    /// Reads `/var/lib/docker`, or a copy of it, with its loop files. A directory with a pool's `metadata` and `data`
    /// alone can be read, too: then the devices have no names, sizes and parents.
    ///
    /// # Errors
    /// [`Error::Open`] if the directory cannot be opened; [`Error::NothingFound`] if nothing in it can be read.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        Self::read(directory.as_ref(), None)
    }

    /// Reads `/var/lib/docker`, or a copy of it, with the pool in other files or devices.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Open`] also for `pool`.
    pub fn open_with(directory: impl AsRef<Path>, pool: &PoolFiles) -> Result<Self> {
        let open =
            |path: &PathBuf| File::open(path).map_err(|source| Error::Open { path: path.clone(), source });
        Self::read(directory.as_ref(), Some((open(&pool.metadata)?, open(&pool.data)?)))
    }

    fn read(path: &Path, pool: Option<(File, File)>) -> Result<Self> {
        let root = Directory::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let mut findings = Vec::new();
        let files = DeviceFiles::read(&root, &mut findings);
        let layers = Layers::read(&root, &mut findings);
        let pool = pool.or_else(|| find_pool(&root, &mut findings));
        let has_pool = pool.is_some();
        if let Some(by) =
            pool.as_ref().and_then(|(metadata, data)| user_of(metadata).or_else(|| user_of(data)))
        {
            findings.push(Finding::PoolInUse { by });
        }
        let pool = pool.and_then(|(metadata, data)| Pool::open(metadata, data, &mut findings));
        if pool.is_none() && !files.any {
            if let Some(Finding::PoolUnreadable { reason }) = findings.pop() {
                return Err(Error::Unreadable { path: path.to_owned(), reason });
            }
            return Err(Error::NothingFound { path: path.to_owned() });
        }
        if !has_pool {
            findings.push(Finding::NoPool);
        }
        let DeviceFiles { devices, set, transaction, transaction_unreadable, any } = files;
        let mut store = Self {
            devices,
            pool,
            layers,
            transaction: transaction.as_ref().map(|file| TransactionId(file.open_transaction_id)),
            transaction_state: TransactionState::Unknown,
            base_filesystem: set.base_filesystem,
            findings,
        };
        store.compare(any);
        if any && !transaction_unreadable {
            store.compare_transaction(transaction);
        }
        store.compare_base(&set.base_uuid);
        store.layers.link(&mut store.devices, &mut store.findings);
        Ok(store)
    }

    /// Compares the devices of Docker's files with those of the pool.
    fn compare(&mut self, has_files: bool) {
        let Some(pool) = &self.pool else { return };
        let mut owners: BTreeMap<ThinId, DeviceName> = BTreeMap::new();
        for device in self.devices.values_mut() {
            let Some(thin_id) = device.thin_id else { continue };
            if let Some(first) = owners.insert(thin_id, device.name.clone()) {
                let second = device.name.clone();
                self.findings.push(Finding::SameThinId { first, second, thin_id });
            }
            device.mapped = pool.device(thin_id).map(|thin| pool.mapped(thin));
            if device.mapped.is_none() {
                device.state = DeviceState::Lost;
                self.findings.push(Finding::Lost { device: device.name.clone(), thin_id });
            }
        }
        for thin in pool.devices.iter().filter(|thin| !owners.contains_key(&thin.id)) {
            let (name, mapped) = (DeviceName::Thin(thin.id), pool.mapped(thin));
            if has_files {
                self.findings.push(Finding::Stranded { thin_id: thin.id, mapped });
            }
            let device = Device {
                name: name.clone(),
                thin_id: Some(thin.id),
                size: None,
                transaction_id: Some(thin.transaction_id),
                state: if has_files { DeviceState::Stranded } else { DeviceState::Ok },
                mapped: Some(mapped),
                parent: None,
            };
            self.devices.insert(name, device);
        }
    }

    fn compare_transaction(&mut self, file: Option<TransactionFile>) {
        let Some(pool) = &self.pool else { return };
        let pool = pool.metadata.superblock().transaction_id;
        let Some(file) = file else {
            if pool == TransactionId(0) {
                self.transaction_state = TransactionState::Clean;
            }
            return;
        };
        let open = TransactionId(file.open_transaction_id);
        self.transaction_state = match open.0.checked_sub(pool.0) {
            Some(0) => TransactionState::Clean,
            Some(1) => TransactionState::Interrupted,
            Some(_) => TransactionState::PoolOlder,
            None => TransactionState::PoolNewer,
        };
        match self.transaction_state {
            TransactionState::PoolNewer => self.findings.push(Finding::PoolNewer { open, pool }),
            TransactionState::PoolOlder => self.findings.push(Finding::PoolOlder { open, pool }),
            TransactionState::Interrupted => {
                let (device, thin_id) = (name_of(&file.device_hash), file.device_id);
                let is_it = |it: &&mut Device| {
                    Some(&it.name) == device.as_ref()
                        || it.thin_id.is_some_and(|id| i64::from(id.get()) == thin_id)
                };
                for found in self.devices.values_mut().filter(is_it) {
                    if found.mapped.is_some() {
                        found.state = DeviceState::Interrupted;
                    }
                }
                self.findings.push(Finding::Interrupted { device, thin_id, open, pool });
            }
            _ => {}
        }
    }

    /// Compares the file system of the base device with the one that Docker has made.
    fn compare_base(&mut self, recorded: &str) {
        let base = self.devices.get(&DeviceName::Base).filter(|base| base.state == DeviceState::Ok);
        let (Some(pool), Some(id), Ok(recorded)) =
            (&self.pool, base.and_then(|base| base.thin_id), Uuid::parse_str(recorded))
        else {
            return;
        };
        match pool.filesystem(id) {
            Ok(Some(found)) if found.uuid != recorded => {
                self.findings.push(Finding::OtherBase { recorded, found: found.uuid });
            }
            Ok(_) => {}
            Err(error) => self.findings.push(Finding::PoolUnreadable { reason: error.to_string() }),
        }
    }

    /// Refuses a pool that has another base device than Docker has recorded: its devices are not what their names say.
    pub(crate) fn check_base(&self) -> Result<()> {
        let other = self.findings.iter().find(|finding| matches!(finding, Finding::OtherBase { .. }));
        other.map_or(Ok(()), |finding| Err(Error::OtherBase { finding: finding.clone() }))
    }

    /// Returns the images, in the order of their ids.
    pub fn images(&self) -> &[Image] {
        &self.layers.images
    }

    /// Returns the layers of all images, in the order of their chain ids.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.layers.values()
    }

    /// Returns the containers, in the order of their ids.
    pub fn containers(&self) -> &[Container] {
        &self.layers.containers
    }

    /// Returns the devices: those of Docker's files, and those that only the pool has.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// Returns what the pool's metadata says of it, if it can be read.
    pub fn pool(&self) -> Option<PoolInfo> {
        self.pool.as_ref().map(Pool::info)
    }

    /// Returns the type of the devices' file systems: that of the base device, or what Docker's files say.
    pub fn filesystem(&self) -> Option<Filesystem> {
        let base = self.devices.get(&DeviceName::Base).and_then(|base| base.thin_id);
        let found = self.pool.as_ref().zip(base).and_then(|(pool, id)| pool.filesystem(id).ok().flatten());
        match found.map_or(self.base_filesystem.as_str(), |found| found.kind) {
            "ext4" => Some(Filesystem::Ext4),
            "xfs" => Some(Filesystem::Xfs),
            _ => None,
        }
    }

    /// Returns the transaction id in Docker's files, if there is one.
    pub fn transaction_id(&self) -> Option<TransactionId> {
        self.transaction
    }

    /// Returns how the transaction ids of Docker's files and of the pool compare.
    pub fn transaction_state(&self) -> TransactionState {
        self.transaction_state
    }

    /// Returns everything that is not as it should be.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns a device.
    pub fn device(&self, name: &DeviceName) -> Option<&Device> {
        self.devices.get(name)
    }

    /// Finds a device by the name of a container, the tag of an image (`:latest` can be left out), the id of a
    /// container, image, layer or device, or at least four digits of one, `-init` kept; or by `base` or `thin-<thin id>`,
    /// unless a container or image has that name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn find(&self, name: &str) -> Result<&Device> {
        let not_found = || Error::NotFound { name: name.to_owned() };
        let get = |device: &Option<DeviceName>| device.as_ref().and_then(|device| self.devices.get(device));
        let container = self.containers().iter().find(|it| it.name.as_deref() == Some(name));
        let latest = format!("{name}:latest");
        let has_tag = |image: &&Image| image.tags.iter().any(|tag| *tag == name || *tag == latest);
        let image = || self.images().iter().find(has_tag);
        let owner = container.map(|it| &it.device).or_else(|| image().map(|it| &it.device));
        let exact = || name.parse().ok().and_then(|name| self.devices.get(&name));
        if let Some(device) = owner.and_then(get).or_else(exact) {
            return Ok(device);
        }
        if owner.is_some() {
            return Err(not_found());
        }
        let id = name.strip_prefix("sha256:").unwrap_or(name);
        // The device of a container's init layer has the hash of the container's own.
        let (id, is_init) = id.strip_suffix("-init").map_or((id, false), |id| (id, true));
        if id.len() < 4 {
            return Err(not_found());
        }
        let mut found: Option<&Device> = None;
        let containers = self.containers().iter().map(|it| (&it.id, get(&it.device)));
        let images = self.images().iter().map(|it| (&it.id, get(&it.device)));
        let layers = self.layers().map(|it| (&it.id, get(&it.device)));
        let devices = self.devices.values().filter_map(|it| match &it.name {
            DeviceName::Hash(hash) if hash.ends_with("-init") == is_init => Some((hash, Some(it))),
            _ => None,
        });
        let owners = containers.chain(images).chain(layers).filter(|_| !is_init);
        for (_, device) in owners.chain(devices).filter(|it| it.0.starts_with(id)) {
            if let (Some(found), Some(device)) = (found, device)
                && found.name != device.name
            {
                return Err(Error::Ambiguous { name: name.to_owned() });
            }
            found = device.or(found);
        }
        found.ok_or_else(not_found)
    }
}

/// The loop files, or those of a pool alone.
fn find_pool(root: &Directory, findings: &mut Vec<Finding>) -> Option<(File, File)> {
    let below = root.below("devicemapper/devicemapper", findings);
    below.iter().chain([root]).find_map(|directory| pool_files(directory, findings))
}

/// A pool's metadata and data in a directory.
pub(crate) fn pool_files(directory: &Directory, findings: &mut Vec<Finding>) -> Option<(File, File)> {
    let mut open = |name| {
        // `devicemapper/metadata` is a directory, if the caller has named `devicemapper`.
        directory.file(name).unwrap_or_else(|finding| {
            findings.push(finding);
            None
        })
    };
    let (metadata, data) = (open("metadata"), open("data"));
    metadata.zip(data)
}

/// What uses a file or block device, as sysfs tells: a loop device, or a device above it.
fn user_of(file: &File) -> Option<String> {
    let status = file.metadata().ok()?;
    if status.file_type().is_block_device() {
        let (major, minor) = (major(status.rdev()), minor(status.rdev()));
        let above = fs::read_dir(format!("/sys/dev/block/{major}:{minor}/holders")).ok()?.next()?.ok()?;
        return Some(above.file_name().to_string_lossy().into_owned());
    }
    let own = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    fs::read_dir("/sys/class/block").ok()?.flatten().find_map(|device| {
        let path = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let path = Path::new(path.trim_end_matches('\n'));
        // Other files may be on servers that do not answer.
        if path.file_name() != own.file_name() {
            return None;
        }
        let found = fs::metadata(path).ok()?;
        let is_it = (found.dev(), found.ino()) == (status.dev(), status.ino());
        is_it.then(|| device.file_name().to_string_lossy().into_owned())
    })
}
