//! A small tree on a model kernel.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::kernel::DeviceNumber;
use dm_thin::model::{Cut, ModelKernel};
use dm_thin::thin::{PoolFeatures, PoolTable, ThinPool};
use dm_thin::tree::Result;
use dm_thin::tree::{Filesystem, Options, PoolSource, SnapshotTree};
use dm_thin::units::{Blocks, Bytes, Sectors};
use tempfile::TempDir;

/// A place for files that costs nothing to sync.
fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

pub(crate) struct Rig {
    pub(crate) kernel: Arc<ModelKernel>,
    pub(crate) directory: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self { kernel: Arc::new(ModelKernel::new()), directory: tempfile::tempdir_in(memory()).unwrap() }
    }

    /// The same where `fsync` costs nothing.
    pub(crate) fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { memory } else { Path::new("/tmp") };
        Self { directory: tempfile::tempdir_in(directory).unwrap(), ..Self::new() }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn options(&self) -> Options {
        let small = Options::new().data_size(Bytes::mib(64)).metadata_size(Bytes::mib(4));
        let small = small.base_size(Bytes::mib(16)).filesystem(Filesystem::None);
        small.kernel(self.kernel.clone()).udev(UdevPolicy::None).background_threads(false)
    }

    pub(crate) fn dm(&self) -> Arc<DeviceMapper> {
        Arc::new(DeviceMapper::with_kernel(self.kernel.clone(), UdevPolicy::None).unwrap())
    }

    /// A pool on two disks, of nobody's tree.
    pub(crate) fn pool(&self) -> ThinPool {
        let number = |minor| DeviceNumber { major: 8, minor };
        let (metadata, data) = (number(16), number(32));
        self.kernel.set_disk(Path::new("/dev/sdb"), metadata, Bytes::mib(4).sectors()).unwrap();
        self.kernel.set_disk(Path::new("/dev/sdc"), data, Bytes::mib(64).sectors()).unwrap();
        let features = PoolFeatures::default();
        let table =
            PoolTable { metadata, data, block_size: Sectors(128), low_water_mark: Blocks(16), features };
        let (name, uuid) = ("vg-pool".parse().unwrap(), "LVM-pool".parse().unwrap());
        ThinPool::create(self.dm(), &name, &uuid, &table, Bytes::mib(64).sectors()).unwrap()
    }

    /// Options of a tree in the pool of that name.
    pub(crate) fn adopting(&self, pool: &str) -> Options {
        let small = Options::new().base_size(Bytes::mib(16)).filesystem(Filesystem::None);
        let small = small.pool_source(PoolSource::Pool { name: pool.to_owned() });
        small.kernel(self.kernel.clone()).udev(UdevPolicy::None).background_threads(false)
    }

    pub(crate) fn tree(&self) -> SnapshotTree {
        self.open(self.options()).unwrap()
    }

    pub(crate) fn open(&self, options: Options) -> Result<SnapshotTree> {
        SnapshotTree::open(self.root(), options)
    }

    /// The names of the mapped devices, without what they have in common.
    pub(crate) fn devices(&self) -> Vec<String> {
        let left = self.kernel.leftovers();
        let names = left.iter().filter_map(|thing| thing.strip_prefix("device "));
        let names = names.filter(|name| !name.ends_with("-pool-lock"));
        let mut names: Vec<_> = names.map(|name| name.splitn(5, '-').last().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

/// Runs `work` with a crash at its first, second, … call, until it gets through: the process dies or the power goes, and
/// that call has had its effect or not. After each, `look` judges what the next open finds.
pub(crate) fn crash_at_each_call<T>(
    prepare: impl Fn(&Rig) -> T,
    work: impl Fn(&Rig, &T) -> Result<()>,
    look: impl Fn(&Rig, &str),
) {
    for (answer_lost, power) in [(false, false), (true, false), (false, true), (true, true)] {
        for n in 1.. {
            let mut rig = Rig::new();
            let prepared = prepare(&rig);
            // Unwinding: an error would be handled, and a process that is dead handles nothing.
            rig.kernel.unwind_at_cut(true);
            if answer_lost {
                rig.kernel.cut_after(n)
            } else {
                rig.kernel.cut_at(n)
            };
            let run = catch_unwind(AssertUnwindSafe(|| work(&rig, &prepared)));
            drop(catch_unwind(AssertUnwindSafe(|| drop(prepared))));
            match run {
                Ok(result) => {
                    result.unwrap();
                    assert!(n > 1, "no call to crash at");
                    break;
                }
                Err(payload) => assert!(payload.is::<Cut>()),
            }
            let struck = rig.kernel.struck();
            let call = format!("call {n} {struck:?}, answer lost: {answer_lost}, power cut: {power}");
            if power {
                rig.kernel = Arc::new(rig.kernel.power_cut());
            } else {
                rig.kernel.heal();
            }
            look(&rig, &call);
            assert!(rig.kernel.is_clean(), "{call}: {:?}", rig.kernel.leftovers());
        }
    }
}

/// The same of a call of a tree.
pub(crate) fn crash_everywhere(
    prepare: impl Fn(&SnapshotTree),
    work: impl Fn(&SnapshotTree) -> Result<()>,
    look: impl Fn(&Rig, &SnapshotTree),
) {
    crash_everywhere_with(|options, _| options, |_, tree| prepare(tree), work, look);
}

/// The same with other options, for the first time and again after the crash.
pub(crate) fn crash_everywhere_with(
    options: impl Fn(Options, bool) -> Options,
    prepare: impl Fn(&Rig, &SnapshotTree),
    work: impl Fn(&SnapshotTree) -> Result<()>,
    look: impl Fn(&Rig, &SnapshotTree),
) {
    crash_at_each_call(
        |rig| {
            let tree = rig.open(options(rig.options(), false)).unwrap();
            prepare(rig, &tree);
            tree
        },
        |_, tree| work(tree),
        |rig, call| {
            let tree =
                rig.open(options(rig.options(), true)).unwrap_or_else(|error| panic!("{call}: {error}"));
            look(rig, &tree);
            for snapshot in tree.list() {
                tree.deactivate(snapshot.id.as_str()).unwrap();
            }
            tree.close().unwrap();
        },
    );
}
