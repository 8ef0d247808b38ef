//! Everything that the model kernel knows, and the questions that its parts ask each other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::binding::Loop;
use super::cookie::Counter;
use super::file_tree::FileSystem;
use super::handle::{Handle, drop_closed};
use super::metadata::Metadata;
use super::mount::Mount;
use super::number::{DM_MAJOR, LOOP_CONTROL, LOOP_MAJOR, MAPPER_CONTROL, dm_number, loop_number};
use super::options::ModelOptions;
use super::pool::Pool;
use super::store::{self, Store};
use super::target::{Kind, Table};
use crate::kernel::{Access, DeviceFile, DeviceKind, DeviceNumber, ProcessName, Semaphore, loop_index};

/// A mapped device.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) name: Vec<u8>,
    pub(super) uuid: Vec<u8>,
    pub(super) live: Option<Table>,
    pub(super) inactive: Option<Table>,
    pub(super) suspended: bool,
    pub(super) read_only: bool,
    pub(super) deferred_remove: bool,
    /// Its first table makes the disk: before that there is no node, no entry in sysfs and no uevent.
    pub(super) has_disk: bool,
    pub(super) limits: Limits,
    pub(super) event_nr: u32,
    /// `diskseq`: how many disks there were before.
    pub(super) sequence: u64,
}

/// What a mapped device takes over from below when it gets a table: the first, or one that goes live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Logical sector size in bytes: the largest of what is below.
    pub(super) sector_size: u32,
    pub(super) discards: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sector_size: 512, discards: false }
    }
}

/// A plain disk.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) sectors: u64,
    /// Its bytes, sparse and in memory.
    pub(super) file: Arc<File>,
    pub(super) serial: Option<String>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) options: ModelOptions,
    pub(super) devices: BTreeMap<u32, Device>,
    pub(super) loops: BTreeMap<u32, Loop>,
    pub(super) disks: BTreeMap<DeviceNumber, Disk>,
    /// Pools by the minor number of the device that they belong to.
    pub(super) pools: BTreeMap<u32, Pool>,
    /// Committed metadata by marker: what a power cut leaves.
    pub(super) storage: BTreeMap<u64, Metadata>,
    pub(super) store: Store,
    pub(super) nodes: BTreeMap<PathBuf, DeviceNumber>,
    /// What is locked for a device.
    device_locks: BTreeMap<DeviceNumber, Arc<File>>,
    pub(super) mounts: Vec<Mount>,
    pub(super) next_mount: u32,
    /// What is mounted, as it is in memory.
    pub(super) filesystems: BTreeMap<DeviceNumber, FileSystem>,
    /// Programs that a machine without them would not have.
    pub(super) uninstalled: BTreeSet<String>,
    /// The next device's `diskseq`.
    pub(super) next_sequence: u64,
    pub(super) handles: Vec<Handle>,
    /// What processes are called, by index; `None` is called as the one that runs the model.
    pub(super) processes: Vec<Option<ProcessName>>,
    pub(super) semaphores: BTreeMap<Semaphore, Counter>,
    pub(super) next_semaphore: i32,
    /// Something was let go: unused pools, loop and deferred devices are looked for.
    pub(super) released: bool,
}

impl World {
    pub(super) fn new(
        options: ModelOptions,
        storage: BTreeMap<u64, Metadata>,
        disks: BTreeMap<DeviceNumber, Disk>,
    ) -> Self {
        let loops = (0..options.loop_devices).map(|index| (index, Loop::default())).collect();
        Self {
            options,
            devices: BTreeMap::new(),
            loops,
            disks,
            pools: BTreeMap::new(),
            storage,
            store: Store::default(),
            nodes: BTreeMap::new(),
            device_locks: BTreeMap::new(),
            mounts: vec![Mount::root()],
            next_mount: 2,
            filesystems: BTreeMap::new(),
            uninstalled: BTreeSet::new(),
            next_sequence: 1,
            handles: Vec::new(),
            processes: vec![None],
            semaphores: BTreeMap::new(),
            next_semaphore: 0,
            released: false,
        }
    }

    /// The block device of that path.
    pub(super) fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        if let Some(&number) = self.nodes.get(path) {
            return Ok(number);
        }
        if let Some((&number, _)) = self.disks.iter().find(|(_, disk)| disk.path == path) {
            return Ok(number);
        }
        if self.control_device(path).is_some() {
            return Err(Errno::ENOTBLK);
        }
        let name = path.strip_prefix("/dev").map_err(|_| Errno::ENOENT)?.as_os_str();
        if let Some(index) = loop_index(name).filter(|index| self.loops.contains_key(index)) {
            return Ok(loop_number(index));
        }
        let minor = name.as_bytes().strip_prefix(b"dm-").and_then(|minor| std::str::from_utf8(minor).ok());
        match minor.and_then(|minor| minor.parse().ok()) {
            Some(minor) if self.has_disk(minor) => Ok(dm_number(minor)),
            _ => Err(Errno::ENOENT),
        }
    }

    /// The node that the kernel itself gives a device.
    pub(super) fn device_node(&self, number: DeviceNumber) -> Result<PathBuf, Errno> {
        if !self.exists(number) {
            return Err(Errno::ENOENT);
        }
        let node = match number.major {
            DM_MAJOR => format!("/dev/dm-{}", number.minor).into(),
            LOOP_MAJOR => format!("/dev/loop{}", number.minor).into(),
            _ => self.disks.get(&number).ok_or(Errno::ENOENT)?.path.clone(),
        };
        Ok(node)
    }

    fn control_device(&self, path: &Path) -> Option<(DeviceKind, DeviceNumber)> {
        match path.to_str()? {
            "/dev/mapper/control" => Some((DeviceKind::MapperControl, MAPPER_CONTROL)),
            "/dev/loop-control" if self.options.loop_control => Some((DeviceKind::LoopControl, LOOP_CONTROL)),
            _ => None,
        }
    }

    pub(super) fn open(&mut self, path: &Path, access: Access, process: usize) -> Result<DeviceFile, Errno> {
        let (kind, number) = match self.control_device(path) {
            Some(control) => control,
            None => {
                let number = self.block_device(path)?;
                if !self.exists(number) {
                    return Err(Errno::ENXIO);
                }
                let kind = if number.major == LOOP_MAJOR { DeviceKind::Loop } else { DeviceKind::Block };
                (kind, number)
            }
        };
        let block = matches!(kind, DeviceKind::Loop | DeviceKind::Block);
        let taken = self.is_in_table(number) || self.is_mounted(number) || self.is_open_exclusively(number);
        if block && access.is_exclusive() && taken {
            return Err(Errno::EBUSY);
        }
        let (handle, file) = Handle::new(kind, number, access, process)?;
        self.handles.push(handle);
        Ok(file)
    }

    /// The file of a device's lock, open once more: each open file has a lock of its own.
    pub(super) fn device_lock(&mut self, number: DeviceNumber) -> Result<File, Errno> {
        let file = match self.device_locks.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(store::memory()?),
        };
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(store::errno)
    }

    fn has_disk(&self, minor: u32) -> bool {
        self.devices.get(&minor).is_some_and(|device| device.has_disk)
    }

    /// Whether it can be opened.
    pub(super) fn exists(&self, number: DeviceNumber) -> bool {
        match number.major {
            DM_MAJOR => self.has_disk(number.minor),
            _ => self.sectors(number).is_some(),
        }
    }

    /// A device's size in sectors; none if there is no such device.
    pub(super) fn sectors(&self, number: DeviceNumber) -> Option<u64> {
        match number.major {
            DM_MAJOR => self.devices.get(&number.minor).map(|device| {
                device.live.as_ref().map_or(0, |table| table.targets.iter().map(|target| target.length).sum())
            }),
            LOOP_MAJOR => self.loops.get(&number.minor).map(Loop::sectors),
            _ => self.disks.get(&number).map(|disk| disk.sectors),
        }
    }

    pub(super) fn is_read_only(&self, number: DeviceNumber) -> bool {
        match number.major {
            DM_MAJOR => self.devices.get(&number.minor).is_some_and(|device| device.read_only),
            LOOP_MAJOR => self.loops.get(&number.minor).is_some_and(Loop::is_read_only),
            _ => false,
        }
    }

    /// Logical sector size in bytes.
    pub(super) fn sector_size(&self, number: DeviceNumber) -> u32 {
        match number.major {
            DM_MAJOR => self.devices.get(&number.minor).map_or(512, |device| device.limits.sector_size),
            LOOP_MAJOR => self.loops.get(&number.minor).map_or(512, Loop::sector_size),
            _ => 512,
        }
    }

    /// Every table, with the minor number of its device.
    pub(super) fn tables(&self) -> impl Iterator<Item = (u32, &Table)> {
        self.devices
            .iter()
            .flat_map(|(&minor, device)| device.live.iter().chain(&device.inactive).map(move |t| (minor, t)))
    }

    pub(super) fn is_mounted(&self, number: DeviceNumber) -> bool {
        self.mounts.iter().any(|mount| mount.number == Some(number))
    }

    /// Whether an O_EXCL open has claimed it: no table, mount or other O_EXCL open gets it. Tables claim their devices
    /// for device mapper, so that one device can be in several.
    pub(super) fn is_open_exclusively(&self, number: DeviceNumber) -> bool {
        let claims = |handle: &Handle| handle.is_block() && handle.access.is_exclusive();
        self.handles.iter().any(|handle| handle.number == number && claims(handle))
    }

    /// How often mapped devices have it open. A device opens another once for both of its tables, but for
    /// reading and for writing apart.
    fn table_users(&self, number: DeviceNumber) -> usize {
        let users = self.tables().filter(|(_, table)| table.uses(number));
        users.map(|(minor, table)| (minor, table.writes(number))).collect::<BTreeSet<_>>().len()
    }

    pub(super) fn is_in_table(&self, number: DeviceNumber) -> bool {
        self.tables().any(|(_, table)| table.uses(number))
    }

    pub(super) fn open_count(&self, number: DeviceNumber) -> i32 {
        let handles =
            self.handles.iter().filter(|handle| handle.is_block() && handle.number == number).count();
        let count = handles + self.table_users(number) + usize::from(self.is_mounted(number));
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// A device's pool and its committed metadata.
    pub(super) fn pool(&mut self, minor: u32) -> Option<(&mut Pool, &mut Metadata)> {
        let pool = self.pools.get_mut(&minor)?;
        let stored = self.storage.get_mut(&pool.marker)?;
        Some((pool, stored))
    }

    /// `dm_table_event`.
    pub(super) fn event(&mut self, minor: u32) {
        if let Some(device) = self.devices.get_mut(&minor) {
            device.event_nr = device.event_nr.wrapping_add(1);
            self.global_event();
        }
    }

    pub(super) fn global_event(&mut self) {
        self.handles.iter_mut().filter(|handle| handle.is_control()).for_each(Handle::signal);
    }

    /// Tells devices the events that their pools have raised.
    pub(super) fn deliver_events(&mut self) {
        let raised: Vec<(u32, u32)> = self
            .pools
            .iter_mut()
            .filter(|(_, pool)| pool.raised > 0)
            .map(|(&minor, pool)| (minor, std::mem::take(&mut pool.raised)))
            .collect();
        for (minor, count) in raised {
            self.sync_mode(minor);
            (0..count).for_each(|_| self.event(minor));
        }
    }

    /// Takes a device out, as far as its tables go.
    pub(super) fn remove_device(&mut self, minor: u32) {
        if self.devices.get(&minor).is_some_and(|device| device.live.is_some()) {
            self.event(minor);
        }
        self.devices.remove(&minor);
        self.released = true;
    }

    /// What happens by itself when something is closed or let go: pools without a table are closed
    /// (and commit), autoclear loop devices cleared, deferred removals done.
    pub(super) fn settle(&mut self) {
        let open = self.handles.len();
        drop_closed(&mut self.handles);
        self.released |= self.handles.len() < open;
        self.deliver_events();
        self.flush_committed();
        self.run_udev();
        while std::mem::take(&mut self.released) {
            self.close_pools();
            let autoclear: Vec<u32> = self
                .loops
                .iter()
                .filter(|(index, device)| device.is_autoclear() && self.open_count(loop_number(**index)) == 0)
                .map(|(&index, _)| index)
                .collect();
            for index in autoclear {
                self.loops.insert(index, Loop::default());
            }
            let deferred = self
                .devices
                .iter()
                .find(|(minor, device)| device.deferred_remove && self.open_count(dm_number(**minor)) == 0);
            if let Some((&minor, _)) = deferred {
                self.remove_device(minor);
                self.run_udev();
            }
        }
    }

    fn close_pools(&mut self) {
        let minors: Vec<u32> = self.pools.keys().copied().collect();
        for minor in minors {
            let used = self.tables().any(|(user, table)| {
                table.targets.iter().any(|target| match target.kind {
                    Kind::ThinPool(_) => user == minor,
                    Kind::Thin { pool, .. } => pool == dm_number(minor),
                    _ => false,
                })
            });
            let controlled = self
                .devices
                .get(&minor)
                .is_some_and(|device| device.live.as_ref().is_some_and(|table| table.thin_pool().is_some()));
            let Some((pool, stored)) = self.pool(minor) else { continue };
            if !controlled {
                pool.bound = None;
            }
            if !used {
                pool.commit(stored);
                self.flush_committed();
                self.pools.remove(&minor);
            }
        }
    }

    pub(super) fn block_device_names(&self) -> Vec<OsString> {
        let loops = self.loops.keys().map(|index| format!("loop{index}").into());
        let mapped = self.devices.iter().filter(|(_, device)| device.has_disk);
        let mapped = mapped.map(|(minor, _)| format!("dm-{minor}").into());
        let disks = self.disks.values().filter_map(|disk| disk.path.file_name().map(OsString::from));
        loops.chain(mapped).chain(disks).collect()
    }

    /// What sysfs tells of a block device.
    pub(super) fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        let number = self.disk_number(device).ok_or(Errno::ENOENT)?;
        let serial = self.disks.get(&number).and_then(|disk| disk.serial.clone());
        let mapped = self.devices.get(&number.minor).filter(|_| number.major == DM_MAJOR);
        match (attribute, mapped) {
            ("dev", _) => Ok(number.to_string().into_bytes()),
            ("size", _) => Ok(self.sectors(number).ok_or(Errno::ENOENT)?.to_string().into_bytes()),
            ("loop/backing_file", None) if number.major == loop_number(0).major => {
                let device = self.loops.get(&number.minor).and_then(|device| device.binding.as_ref());
                let file = device.ok_or(Errno::ENOENT)?.file.as_raw_fd();
                let path = std::fs::read_link(format!("/proc/self/fd/{file}"));
                path.map(|path| path.into_os_string().into_vec()).map_err(|_| Errno::EIO)
            }
            ("serial", None) => serial.map(String::into_bytes).ok_or(Errno::ENOENT),
            ("diskseq", Some(device)) => Ok(device.sequence.to_string().into_bytes()),
            ("dm/name", Some(device)) => Ok(device.name.clone()),
            ("dm/uuid", Some(device)) => Ok(device.uuid.clone()),
            ("dm/suspended", Some(device)) => Ok(vec![b'0' + u8::from(device.suspended)]),
            _ => Err(Errno::ENOENT),
        }
    }

    /// The number of a device by its name in sysfs.
    fn disk_number(&self, name: &str) -> Option<DeviceNumber> {
        if let Some(index) = loop_index(name.as_ref()) {
            return self.loops.contains_key(&index).then(|| loop_number(index));
        }
        if let Some(minor) = name.strip_prefix("dm-").and_then(|minor| minor.parse().ok()) {
            return self.has_disk(minor).then(|| dm_number(minor));
        }
        let disk = self.disks.iter().find(|(_, disk)| disk.path.file_name() == Some(name.as_ref()));
        disk.map(|(&number, _)| number)
    }
}
