//! Somebody else on the machine: with devices, loop devices, mounts and volumes of his own, which must stay as they are,
//! and with his hands on what is the trees'.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::targets::{Linear, Target};
use dm_thin::dm::{DeviceMapper, DeviceStatus, DmFlags, DmName, DmUuid, TableKind, UdevPolicy};
use dm_thin::kernel::{Access, DeviceFile, DeviceNumber, Kernel};
use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice, LoopIndex};
use dm_thin::model::ModelKernel;
use dm_thin::thin::{Origin, PoolFeatures, PoolStatus, PoolTable, ThinId, ThinPool};
use dm_thin::tree::Result;
use dm_thin::units::{Blocks, Bytes, Sectors};
use uuid::Uuid;

use crate::numbers::{Group, Numbers};
use crate::owner::{SHARED_POOL, Source};
use crate::rng::Rng;
use crate::snapshots::{LENGTH, block, value_of};

/// Ids in the shared pool that he takes: the trees want the same ones.
const IDS: usize = 140;
const PLAIN: &str = "his-plain";

/// A tree that he can get at.
#[derive(Clone)]
pub struct Victim {
    pub root: PathBuf,
    pub source: Source,
    pub tree: Arc<Mutex<Option<Uuid>>>,
    pub disturbed: Arc<AtomicBool>,
}

/// What he did to somebody else's, and takes back.
#[derive(Debug)]
enum Doing {
    Renamed {
        uuid: DmUuid,
        from: DmName,
    },
    Suspended(DmUuid),
    /// A device of his has a name that a tree wants.
    Taken(DmName),
    Attached(LoopIndex),
    Opened(#[allow(dead_code, reason = "open as long as it is here")] DeviceFile),
    Mounted(PathBuf),
    MetadataSnap(DmUuid),
    Node(PathBuf),
}

pub struct Neighbour {
    rng: Rng,
    numbers: Arc<Numbers>,
    kernel: Arc<ModelKernel>,
    dm: Arc<DeviceMapper>,
    directory: PathBuf,
    trees: Vec<Victim>,
    shares: bool,
    /// His volumes in the shared pool, and what is in them.
    volumes: std::collections::BTreeMap<u32, u64>,
    loops: Vec<LoopIndex>,
    doings: Vec<Doing>,
    /// Names of the trees' devices that he has seen.
    names: BTreeSet<DmName>,
    made: u64,
    /// All that is his, as he left it.
    expected: Vec<String>,
}

fn disk(minor: u32) -> DeviceNumber {
    DeviceNumber { major: 8, minor: 256 + minor }
}

fn name(text: &str) -> DmName {
    text.parse().unwrap()
}

impl Neighbour {
    pub fn new(
        (mut rng, numbers): (Rng, Arc<Numbers>),
        machine: &Arc<ModelKernel>,
        directory: &Path,
        trees: Vec<Victim>,
    ) -> Self {
        let shares = trees.iter().any(|tree| tree.source == Source::Adopted);
        let sizes = [("plain", 8), ("mounted", 8), ("meta", 4), ("data", 64)];
        for (minor, (what, size)) in (0..).zip(sizes) {
            let path = format!("/dev/his-{what}");
            machine.set_disk(Path::new(&path), disk(minor), Bytes::mib(size).sectors()).unwrap();
        }
        machine.run("mkfs.ext4", &["/dev/his-mounted".as_ref()]).unwrap();
        let directory = directory.join("his");
        std::fs::create_dir_all(directory.join("mount")).unwrap();
        File::create(directory.join("image")).unwrap().set_len(1 << 20).unwrap();
        let kernel = Arc::new(machine.process());
        let dm = device_mapper(&kernel);
        let mut this = Self {
            rng: rng.fork(),
            numbers,
            kernel,
            dm,
            directory,
            trees,
            shares,
            volumes: Default::default(),
            loops: Vec::new(),
            doings: Vec::new(),
            names: BTreeSet::new(),
            made: 0,
            expected: Vec::new(),
        };
        this.set_up();
        for id in [1, 2, 40] {
            this.add_volume(id, None);
        }
        this.expected = this.look();
        this
    }

    /// What he does after each start of the machine.
    fn set_up(&mut self) {
        self.make_device(&name(PLAIN)).unwrap();
        self.write(Path::new("/dev/his-plain"), 7);
        let file = File::options().read(true).write(true).open(self.directory.join("image")).unwrap();
        let options = AttachOptions::new().offset(Bytes(4096));
        let attached = self.control().attach(&file, &self.directory.join("image"), &options).unwrap();
        self.loops = vec![attached.index()];
        let (target, flags) = (self.directory.join("mount"), MountFlags::empty());
        self.kernel.mount(Some(Path::new("/dev/his-mounted")), &target, Some("ext4"), flags, "").unwrap();
        if self.shares {
            let features = PoolFeatures::default();
            let (metadata, data, low_water_mark) = (disk(2), disk(3), Blocks(16));
            let table = PoolTable { metadata, data, block_size: Sectors(128), low_water_mark, features };
            let size = Bytes::mib(64).sectors();
            ThinPool::create(self.dm.clone(), &name(SHARED_POOL), &"LVM-pool".parse().unwrap(), &table, size)
                .unwrap();
        }
    }

    /// The machine was off.
    pub fn reboot(&mut self, machine: &Arc<ModelKernel>) {
        // What is in a pool's metadata stays.
        self.doings.retain(|doing| matches!(doing, Doing::MetadataSnap(_)));
        self.kernel = Arc::new(machine.process());
        self.dm = device_mapper(&self.kernel);
        self.set_up();
        self.expected = self.look();
    }

    /// The root of a tree is somewhere else now.
    pub fn moved(&mut self, index: usize, root: PathBuf) {
        self.trees[index].root = root;
    }

    fn control(&self) -> LoopControl {
        LoopControl::with_kernel(self.kernel.clone()).unwrap()
    }

    fn pool(&self) -> ThinPool {
        ThinPool::open(self.dm.clone(), &name(SHARED_POOL)).unwrap()
    }

    /// The ids of his volumes.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.volumes.keys().copied()
    }

    /// A device of his of any name.
    fn make_device(&mut self, name: &DmName) -> Result<DeviceStatus> {
        self.made += 1;
        let line = Linear { device: disk(0), start: Sectors(0) };
        let uuid: DmUuid = format!("HIS-{}", self.made).parse().unwrap();
        Ok(self.dm.create_active(name, &uuid, &[line.over(Sectors(0), Sectors(2048))], DmFlags::empty())?)
    }

    fn write(&self, path: &Path, value: u64) {
        let file = self.kernel.open(path, Access::READ_WRITE).unwrap();
        self.kernel.write_at(&file, 0, &block(value)).unwrap();
        self.kernel.sync(&file).unwrap();
    }

    /// A volume of his in the shared pool, empty or a snapshot. `false` if the id is taken.
    fn add_volume(&mut self, id: u32, origin: Option<u32>) -> bool {
        if !self.shares {
            return false;
        }
        let (pool, thin) = (self.pool(), ThinId::new(id).unwrap());
        let made = match origin {
            Some(origin) => pool.create_snap(thin, &Origin::Inactive(ThinId::new(origin).unwrap())),
            None => pool.create_thin(thin),
        };
        if let Err(error) = made {
            assert!(error.is_exists(), "{error}");
            return false;
        }
        self.made += 1;
        let uuid = format!("HIS-{}", self.made).parse().unwrap();
        let volume = pool.activate(&name("his-volume"), &uuid, thin, Bytes::mib(16).sectors()).unwrap();
        self.write(&volume.path(), self.made);
        volume.deactivate().unwrap();
        self.volumes.insert(id, self.made);
        true
    }

    fn remove_volume(&mut self) -> bool {
        let ids: Vec<u32> = self.volumes.keys().copied().collect();
        let Some(id) = self.rng.pick(&ids).filter(|_| ids.len() > 1) else { return false };
        self.pool().delete(ThinId::new(*id).unwrap()).unwrap();
        self.volumes.remove(id);
        true
    }

    fn is_his(status: &DeviceStatus) -> bool {
        status
            .uuid
            .is_some_and(|uuid| [&b"HIS-"[..], b"LVM-"].iter().any(|it| uuid.as_bytes().starts_with(it)))
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let listed = self.dm.list().unwrap();
        listed.into_iter().map(|device| self.dm.status(&device.name).unwrap()).collect()
    }

    /// All that is his.
    fn look(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for status in self.devices().iter().filter(|status| Self::is_his(status)) {
            let table = self.dm.table(&status.name, TableKind::Live).unwrap();
            let table: Vec<_> = table.iter().map(ToString::to_string).collect();
            let DeviceStatus { name, uuid, number, .. } = status;
            seen.push(format!("{name} {uuid:?} {number} suspended: {} {table:?}", status.is_suspended()));
        }
        for index in &self.loops {
            let status = self.control().device(*index, Access::READ).and_then(|device| device.status());
            seen.push(format!("{index:?} {status:?}"));
        }
        let mounts = String::from_utf8(self.kernel.mount_table().unwrap()).unwrap();
        seen.extend(mounts.lines().filter(|line| line.contains("/dev/his-")).map(ToOwned::to_owned));
        let mut found = vec![0; LENGTH];
        let file = self.kernel.open(Path::new("/dev/his-plain"), Access::READ).unwrap();
        self.kernel.read_at(&file, 0, &mut found).unwrap();
        seen.push(format!("his disk has {}", value_of(&found, &"his disk")));
        for (id, value) in &self.volumes {
            let read = self.kernel.read_thin(SHARED_POOL, *id, 0, &mut found);
            let found = value_of(&found, &"his volume");
            seen.push(format!("volume {id}: {read:?} {found}"));
            assert!(read.is_ok() && found == *value, "his volume {id}: {read:?}, {found} instead of {value}");
        }
        seen
    }

    /// # Panics
    /// If anything of his is not as he left it.
    pub fn check(&self) {
        self.numbers.count(Group::Checks, "the neighbour's");
        assert_eq!(self.look(), self.expected, "the neighbour's");
    }

    /// Whose device it is.
    fn disturb(&self, status: Option<&DeviceStatus>) {
        let text = status.and_then(|status| status.uuid?.to_str().map(ToOwned::to_owned)).unwrap_or_default();
        let is_its = |tree: &&Victim| {
            let uuid = *tree.tree.lock().unwrap();
            uuid.is_some_and(|uuid| text.starts_with(&format!("DMTHIN-{}-", uuid.simple())))
        };
        match self.trees.iter().find(is_its) {
            Some(tree) => tree.disturbed.store(true, Ordering::Relaxed),
            None => self.trees.iter().for_each(|tree| tree.disturbed.store(true, Ordering::Relaxed)),
        }
    }

    fn disturb_sharing(&self) {
        let sharing = self.trees.iter().filter(|tree| tree.source == Source::Adopted);
        sharing.for_each(|tree| tree.disturbed.store(true, Ordering::Relaxed));
    }

    /// A device of a tree.
    fn victim(&mut self, volumes: bool) -> Option<DeviceStatus> {
        let devices = self.devices();
        let is_volume = |status: &DeviceStatus| {
            let uuid = status.uuid.and_then(|uuid| uuid.to_str().map(ToOwned::to_owned)).unwrap_or_default();
            uuid.rsplit('-').next().is_some_and(|end| end.parse::<u32>().is_ok())
        };
        let theirs = devices.into_iter().filter(|status| !Self::is_his(status));
        self.names.extend(theirs.clone().map(|status| status.name));
        let victims: Vec<_> = theirs.filter(|status| !volumes || is_volume(status)).collect();
        self.rng.pick(&victims).cloned()
    }

    /// One deed. What it was is counted.
    pub fn act(&mut self) {
        let (what, done) = match self.rng.below(20) {
            0 => ("makes a device", self.make_device(&name(&format!("his-{}", self.made))).is_ok()),
            1 => ("removes a device", self.remove_own()),
            2 | 3 => {
                let id = u32::try_from(self.rng.below(IDS)).unwrap();
                let ids: Vec<u32> = self.volumes.keys().copied().collect();
                let origin = self.rng.pick(&ids).copied().filter(|_| id % 2 == 0);
                ("makes a volume", self.add_volume(id, origin))
            }
            4 => ("deletes a volume", self.remove_volume()),
            5 => ("raises the pool's transaction id", self.raise_transaction()),
            6 => ("reserves a metadata snapshot", self.reserve_metadata_snap()),
            7 | 8 => ("takes a name", self.take_name()),
            9 | 10 => ("renames", self.rename()),
            11 | 12 => ("removes", self.remove()),
            13 => ("suspends", self.suspend()),
            14 => ("opens", self.open()),
            15 => ("mounts", self.mount()),
            16 | 17 => ("attaches a loop device to a pool's file", self.attach()),
            18 => ("removes a node", self.remove_node()),
            _ => ("puts another device's node there", self.replace_node()),
        };
        let kind = if done { what.to_owned() } else { format!("{what}: in vain") };
        self.numbers.tell(|| format!("neighbour: {kind} {:?}", self.doings.last()));
        self.numbers.count(Group::Neighbour, kind);
        self.expected = self.look();
    }

    fn remove_own(&mut self) -> bool {
        let own: Vec<_> = self.devices().into_iter().filter(Self::is_his).collect();
        let spare = |status: &&DeviceStatus| ![PLAIN, SHARED_POOL].contains(&status.name.to_str().unwrap());
        let own: Vec<_> = own.iter().filter(spare).map(|status| status.name).collect();
        self.rng.pick(&own).is_some_and(|name| self.dm.remove(name).is_ok())
    }

    fn raise_transaction(&mut self) -> bool {
        if !self.shares {
            return false;
        }
        let pool = self.pool();
        let PoolStatus::Usage(usage) = pool.status().unwrap() else { return false };
        let mut next = usage.transaction_id;
        next.0 += 1;
        pool.set_transaction_id(usage.transaction_id, next).is_ok()
    }

    fn reserve_metadata_snap(&mut self) -> bool {
        let devices = self.devices();
        let Some(status) = self.rng.pick(&devices) else { return false };
        let Ok(pool) = ThinPool::open(self.dm.clone(), &status.name) else { return false };
        if pool.reserve_metadata_snap().is_err() {
            return false;
        }
        if Self::is_his(status) {
            self.disturb_sharing();
        } else {
            self.disturb(Some(status));
        }
        self.doings.extend(status.uuid.map(Doing::MetadataSnap));
        true
    }

    fn take_name(&mut self) -> bool {
        self.victim(false);
        let names: Vec<_> = self.names.iter().copied().collect();
        let Some(name) = self.rng.pick(&names).copied() else { return false };
        if self.make_device(&name).is_err() {
            return false;
        }
        self.disturb(None);
        self.doings.push(Doing::Taken(name));
        true
    }

    fn rename(&mut self) -> bool {
        let Some(status) = self.victim(true) else { return false };
        let names: Vec<_> = self.names.iter().copied().collect();
        let theirs = self.rng.pick(&names).copied().filter(|_| self.rng.one_in(2));
        let to = theirs.unwrap_or_else(|| name(&format!("stolen-{}", self.made)));
        self.made += 1;
        let (Some(uuid), from) = (status.uuid, status.name) else { return false };
        if self.dm.rename(&uuid, &to).is_err() {
            return false;
        }
        // It may be a name that the other tree wants.
        self.disturb(Some(&status).filter(|_| theirs.is_none()));
        self.doings.push(Doing::Renamed { uuid, from });
        true
    }

    fn remove(&mut self) -> bool {
        let Some(status) = self.victim(false) else { return false };
        let removed = self.dm.remove(&status.name).is_ok();
        if removed {
            self.disturb(Some(&status));
        }
        removed
    }

    fn suspend(&mut self) -> bool {
        let Some(status) = self.victim(false) else { return false };
        let Some(uuid) = status.uuid.filter(|_| !status.is_suspended()) else { return false };
        if self.dm.suspend(&uuid, DmFlags::empty()).is_err() {
            return false;
        }
        self.disturb(Some(&status));
        self.doings.push(Doing::Suspended(uuid));
        true
    }

    fn open(&mut self) -> bool {
        let Some(status) = self.victim(false) else { return false };
        let Ok(file) = self.kernel.open(&node(&status), Access::READ) else { return false };
        self.disturb(Some(&status));
        self.doings.push(Doing::Opened(file));
        true
    }

    fn mount(&mut self) -> bool {
        let Some(status) = self.victim(true) else { return false };
        let target = self.directory.join(format!("theirs{}", self.made));
        self.made += 1;
        std::fs::create_dir(&target).unwrap();
        let mounted = self.kernel.mount(Some(&node(&status)), &target, Some("ext4"), MountFlags::RDONLY, "");
        if mounted.is_err() {
            return false;
        }
        self.disturb(Some(&status));
        self.doings.push(Doing::Mounted(target));
        true
    }

    fn attach(&mut self) -> bool {
        let trees: Vec<_> = self.trees.iter().filter(|tree| tree.source == Source::Files).cloned().collect();
        let Some(tree) = self.rng.pick(&trees) else { return false };
        let path = tree.root.join("pool").join(if self.rng.one_in(2) { "data" } else { "metadata" });
        let read_only = self.rng.one_in(4);
        let Ok(file) = File::options().read(true).write(!read_only).open(&path) else { return false };
        let options = match self.rng.below(3) {
            0 => AttachOptions::new().offset(Bytes(self.rng.below(2) as u64 * 4096)),
            1 => AttachOptions::new().size_limit(Bytes::mib(1)),
            _ => AttachOptions::new(),
        };
        let Ok(device) = self.control().attach(&file, &path, &options.read_only(read_only)) else {
            return false;
        };
        tree.disturbed.store(true, Ordering::Relaxed);
        self.loops.push(device.index());
        self.doings.push(Doing::Attached(device.index()));
        true
    }

    fn remove_node(&mut self) -> bool {
        let Some(status) = self.victim(false) else { return false };
        let removed =
            self.kernel.remove_node(&Path::new("/dev/mapper").join(status.name.to_str().unwrap())).is_ok();
        if removed {
            self.disturb(Some(&status));
        }
        removed
    }

    /// A node with a name that a tree wants leads to a device of his.
    fn replace_node(&mut self) -> bool {
        self.victim(false);
        let names: Vec<_> = self.names.iter().copied().collect();
        let Some(name) = self.rng.pick(&names).copied() else { return false };
        let path = Path::new("/dev/mapper").join(name.to_str().unwrap());
        // There or not.
        let _ = self.kernel.remove_node(&path);
        self.kernel.make_node(&path, disk(0)).unwrap();
        self.disturb(None);
        self.doings.push(Doing::Node(path));
        true
    }

    /// Takes down all that is his.
    pub fn leave(&mut self) {
        self.make_amends();
        for status in self.devices().iter().filter(|status| Self::is_his(status)) {
            self.dm.remove(&status.name).unwrap();
        }
        for index in &self.loops {
            self.control().device(*index, Access::READ).unwrap().detach().unwrap();
        }
        // Left under a name that he gave, where the removal of the node failed.
        for node in self.kernel.mapper_node_names().unwrap() {
            if node.as_encoded_bytes().starts_with(b"stolen-") {
                self.kernel.remove_node(&Path::new("/dev/mapper").join(node)).unwrap();
            }
        }
        self.kernel.unmount(&self.directory.join("mount"), UnmountFlags::empty()).unwrap();
    }

    /// Takes back what he did.
    pub fn make_amends(&mut self) {
        for doing in std::mem::take(&mut self.doings).into_iter().rev() {
            self.numbers.tell(|| format!("neighbour: takes back {doing:?}"));
            self.numbers.count(Group::Neighbour, "makes amends");
            match doing {
                Doing::Renamed { uuid, from } => settle(self.dm.rename(&uuid, &from)),
                Doing::Suspended(uuid) => settle(self.dm.resume(&uuid)),
                Doing::Taken(name) => {
                    if self.dm.find(&name).unwrap().is_some_and(|status| Self::is_his(&status)) {
                        self.dm.remove(&name).unwrap();
                    }
                }
                Doing::Attached(index) => {
                    self.loops.retain(|kept| *kept != index);
                    settle(self.control().device(index, Access::READ).and_then(LoopDevice::detach));
                }
                Doing::Opened(file) => drop(file),
                Doing::Mounted(target) => settle(self.kernel.unmount(&target, UnmountFlags::empty())),
                Doing::MetadataSnap(uuid) => match self.dm.find(&uuid).unwrap() {
                    Some(status) => {
                        let pool = ThinPool::open(self.dm.clone(), &status.name);
                        settle(pool.and_then(|pool| pool.release_metadata_snap()));
                    }
                    // It stays in the metadata.
                    None => self.doings.push(Doing::MetadataSnap(uuid)),
                },
                Doing::Node(path) => {
                    if self.kernel.block_device(&path) == Ok(disk(0)) {
                        self.kernel.remove_node(&path).unwrap();
                    }
                }
            }
        }
        self.expected = self.look();
    }
}

/// It may be gone, or as it was, by now.
fn settle<E: Debug>(_: std::result::Result<(), E>) {}

fn node(status: &DeviceStatus) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{}", status.number.minor))
}

fn device_mapper(kernel: &Arc<ModelKernel>) -> Arc<DeviceMapper> {
    Arc::new(DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::None).unwrap())
}
