//! What every test stands on: a directory of its own, and an audit that nothing is left behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dm_thin::dm::DeviceMapper;
use dm_thin::tree::{Options, SnapshotTree};
use dm_thin::units::Bytes;
use tempfile::TempDir;

/// Tests look at the whole system, so one runs at a time, whatever `--test-threads` says.
static SYSTEM: Mutex<()> = Mutex::new(());

/// A test's own directory. Dropping it fails the test if anything is left in the kernel.
pub struct Bench {
    before: BTreeSet<String>,
    directory: TempDir,
    _system: MutexGuard<'static, ()>,
}

impl Bench {
    pub fn new() -> Self {
        let system = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
        remove_tools();
        // On a real file system: /tmp may be in memory.
        let directory = TempDir::new_in("/var/lib").unwrap();
        Self { before: things(), directory, _system: system }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// A small tree at [`root`](Self::root).
    pub fn tree(&self) -> SnapshotTree {
        SnapshotTree::open(self.root(), small()).unwrap()
    }

    /// The same tree after its manager died: nothing was closed.
    pub fn reopen(&self, tree: SnapshotTree) -> SnapshotTree {
        drop(tree);
        self.tree()
    }

    /// What a restart of the machine leaves: files.
    pub fn restart(&self, tree: SnapshotTree) {
        let dm = dm();
        let uuid = tree.uuid().simple().to_string();
        drop(tree);
        // Volumes before the pool: it is the last one that can be removed.
        for _ in 0..2 {
            for device in dm.list().unwrap() {
                if device.uuid.is_some_and(|device| device.to_string().contains(&uuid)) {
                    let _ = dm.remove(&device.name);
                }
            }
        }
    }

    /// Fail unless the system is as it was when the test began.
    pub fn audit(&self) {
        // Loop devices are cleared a moment after their last close.
        let end = Instant::now() + Duration::from_secs(10);
        while things() != self.before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let after = things();
        let left: Vec<_> = after.difference(&self.before).collect();
        let gone: Vec<_> = self.before.difference(&after).collect();
        assert!(left.is_empty() && gone.is_empty(), "left behind: {left:#?}, gone: {gone:#?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.audit();
        }
    }
}

/// `DM_THIN_WITHOUT_TOOLS=1`: the tools that read a pool's metadata go from the guest, whose root is in memory.
fn remove_tools() {
    if std::env::var_os("DM_THIN_WITHOUT_TOOLS").is_none() {
        return;
    }
    assert!(Path::new("/payload").is_dir(), "DM_THIN_WITHOUT_TOOLS is for the guest");
    for directory in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        for tool in ["thin_ls", "thin_dump", "thin_delta"] {
            match fs::remove_file(Path::new(directory).join(tool)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{tool}: {error}"),
                _ => {}
            }
        }
    }
}

pub fn dm() -> Arc<DeviceMapper> {
    Arc::new(DeviceMapper::open().expect("the kernel suite needs root and device mapper"))
}

/// Options of a tree that is quickly made.
/// A small tree without threads of its own, so that what a call does is done when it returns.
pub fn small() -> Options {
    let small =
        Options::new().data_size(Bytes::gib(1)).metadata_size(Bytes::mib(8)).base_size(Bytes::mib(64));
    small.background_threads(false)
}

pub fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every device, bound loop device, node, mount and udev semaphore of the system.
fn things() -> BTreeSet<String> {
    let devices = dm().list().unwrap();
    let devices = devices.iter().map(|device| format!("dm device {}", device.name));
    let loops = names(Path::new("/sys/block")).into_iter().filter_map(|name| {
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        Some(format!("loop device {name} on {}", file.trim_end()))
    });
    let nodes = names(Path::new("/dev/mapper")).into_iter().map(|name| format!("node {name}"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().map(|line| format!("mount {line}"));
    let semaphores = fs::read_to_string("/proc/sysvipc/sem").unwrap();
    let semaphores = semaphores.lines().skip(1).map(|line| format!("semaphore {line}"));
    devices.chain(loops).chain(nodes).chain(mounts).chain(semaphores).collect()
}

/// Overwrites the first and the last 4 MiB of a device.
pub fn wipe(path: &Path) {
    let mut file = File::options().write(true).open(path).unwrap();
    let size = file.seek(SeekFrom::End(0)).unwrap();
    let zeroes = vec![0; 4 << 20];
    file.write_all_at(&zeroes, 0).unwrap();
    file.write_all_at(&zeroes, size - (4 << 20)).unwrap();
    file.sync_all().unwrap();
}
