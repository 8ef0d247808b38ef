//! A root on a disk that is full: what is there can be removed. And on one that is slow: nobody waits for it to look.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use std::{fmt, fs, io};

use dm_thin::Errno;
use dm_thin::kernel::{Access, Kernel};
use dm_thin::thin::MinFree;
use dm_thin::tree::files::{RealDir, StateDir, StateFile};
use dm_thin::tree::{Error, Parent, RemoveOptions};
use dm_thin::units::Bytes;

use crate::rig::Rig;

const COUNT: usize = 30;
/// What no step takes.
const LONG: Duration = Duration::from_secs(60);

/// A directory of a file system that can be full: then only blocks that a file has can be written.
#[derive(Debug, Clone)]
struct Disk {
    dir: Arc<RealDir>,
    space: Arc<Space>,
}

type Beside = Arc<dyn Fn(usize) + Send + Sync>;

#[derive(Default)]
struct Space {
    full: AtomicBool,
    checkpoints: AtomicUsize,
    /// What is done beside each checkpoint.
    beside: Mutex<Option<Beside>>,
    /// Bytes that are reserved for each file.
    reserved: Mutex<HashMap<String, u64>>,
    pause: Mutex<Option<Pause>>,
    /// The next write does half of what it was asked for, and fails.
    tears: AtomicBool,
    /// No sync of a journal succeeds.
    no_sync: AtomicBool,
}

/// The next write to a file of that name, or the next `sync`, says that it has begun, and waits.
#[derive(Debug)]
struct Pause {
    name: &'static str,
    begun: Sender<()>,
    go_on: Receiver<()>,
}

impl Disk {
    fn new(rig: &Rig) -> Self {
        Self { dir: Arc::new(RealDir::open(rig.directory.path()).unwrap()), space: Arc::default() }
    }
}

impl Disk {
    /// The next write to that file: that it has begun, and that it may go on.
    fn pause(&self, name: &'static str) -> (Receiver<()>, Sender<()>) {
        let ((begun, has_begun), (go_on, goes_on)) = (channel(), channel());
        *self.space.pause.lock().unwrap() = Some(Pause { name, begun, go_on: goes_on });
        (has_begun, go_on)
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Space")
    }
}

impl Space {
    fn check(&self, name: &str, file: &dyn StateFile, end: u64) -> io::Result<()> {
        let has = file.size()?.max(self.reserved.lock().unwrap().get(name).copied().unwrap_or(0));
        let fits = end <= has || !self.full.load(Ordering::Relaxed);
        if fits { Ok(()) } else { Err(Errno::ENOSPC.into()) }
    }
}

impl StateDir for Disk {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let full = self.space.full.load(Ordering::Relaxed);
        let file = match self.dir.open(name, create && !full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => Err(Errno::ENOSPC.into()),
            opened => opened,
        }?;
        Ok(Box::new(DiskFile { file, name: name.to_owned(), space: self.space.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.space.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.dir.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.dir.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.sync()
    }
}

#[derive(Debug)]
struct DiskFile {
    file: Box<dyn StateFile>,
    name: String,
    space: Arc<Space>,
}

impl StateFile for DiskFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        self.file.read()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.space.check(&self.name, &*self.file, offset + bytes.len() as u64)?;
        let beside = self.space.beside.lock().unwrap().clone().filter(|_| self.name == "state.json.tmp");
        if let Some(beside) = beside {
            beside(self.space.checkpoints.load(Ordering::Relaxed));
        }
        let pause = self.space.pause.lock().unwrap().take_if(|pause| pause.name == self.name);
        if let Some(pause) = pause {
            pause.begun.send(()).unwrap();
            pause.go_on.recv_timeout(LONG).unwrap();
        }
        if self.space.tears.swap(false, Ordering::Relaxed) {
            self.file.write_at(offset, &bytes[..bytes.len() / 2])?;
            return Err(Errno::EIO.into());
        }
        self.file.write_at(offset, bytes)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        // XFS asks for the space first, and then looks at what the file has.
        if self.space.full.load(Ordering::Relaxed) {
            return Err(Errno::ENOSPC.into());
        }
        self.space.reserved.lock().unwrap().insert(self.name.clone(), len);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.space.reserved.lock().unwrap().remove(&self.name);
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let pause = self.space.pause.lock().unwrap().take_if(|pause| pause.name == "sync");
        if let Some(pause) = pause {
            pause.begun.send(()).unwrap();
            pause.go_on.recv_timeout(LONG).unwrap();
        }
        match self.space.no_sync.load(Ordering::Relaxed) && self.name.starts_with("journal") {
            true => Err(Errno::EIO.into()),
            false => self.file.sync(),
        }
    }
}

/// A removal that is not known to be on the disk may not be there after a power cut: then the snapshot is.
#[test]
fn nothing_is_deleted_before_its_removal_is_durable() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let options = rig.options().blkdiscard(true).state_dir(Arc::new(disk.clone()));
    let tree = rig.open(options).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..8).unwrap();
    tree.deactivate("a").unwrap();
    let pool = tree.pool().name().to_string();
    let before = (rig.kernel.thin_devices(&pool).unwrap(), tree.status().unwrap().data);
    disk.space.no_sync.store(true, Ordering::Relaxed);
    tree.remove("a").unwrap_err();
    disk.space.no_sync.store(false, Ordering::Relaxed);
    for result in [tree.reap().map(drop), tree.add("b", Parent::Base)] {
        assert!(matches!(result, Err(Error::StateUnknown)), "{result:?}");
    }
    assert_eq!((rig.kernel.thin_devices(&pool).unwrap(), tree.status().unwrap().data), before);
}

/// Nor is the device removed that a restart of its user takes over.
#[test]
fn a_removal_that_is_not_durable_removes_no_device() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let tree = rig.open(rig.options().state_dir(Arc::new(disk.clone()))).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let file = rig.kernel.open(&device, Access::READ).unwrap();
    disk.space.no_sync.store(true, Ordering::Relaxed);
    let options = RemoveOptions::new().deferred(true).busy_timeout(Duration::ZERO);
    tree.remove_with("a", &options).unwrap_err();
    disk.space.no_sync.store(false, Ordering::Relaxed);
    drop(file);
    assert!(matches!(tree.reap(), Err(Error::StateUnknown)));
    rig.kernel.open(&device, Access::READ).unwrap();
}

/// The same while another thread's sync takes its time.
#[test]
fn the_deletion_of_another_removal_waits_for_its_sync() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let tree = rig.open(rig.options().blkdiscard(true).state_dir(Arc::new(disk.clone()))).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let pool = tree.pool().name().to_string();
    let (begun, go_on) = disk.pause("sync");
    thread::scope(|scope| {
        scope.spawn(|| tree.remove("a").unwrap());
        begun.recv_timeout(LONG).unwrap();
        let reaped = scope.spawn(|| tree.reap().unwrap());
        thread::sleep(Duration::from_millis(100));
        let meanwhile = rig.kernel.thin_devices(&pool).unwrap().len();
        go_on.send(()).unwrap();
        reaped.join().unwrap();
        assert_eq!(meanwhile, 2);
    });
    assert_eq!(rig.kernel.thin_devices(&pool).unwrap().len(), 1);
    tree.close().unwrap();
}

#[test]
fn a_child_that_is_being_added_is_a_child() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let tree = rig.open(rig.options().state_dir(Arc::new(disk.clone()))).unwrap();
    tree.add("a", Parent::Base).unwrap();
    tree.seal("a").unwrap();
    let (begun, go_on) = disk.pause("sync");
    thread::scope(|scope| {
        let added = scope.spawn(|| tree.add("b", Parent::Snapshot("a")));
        // It has its volume, and waits for its record.
        begun.recv_timeout(LONG).unwrap();
        let removed = scope.spawn(|| tree.remove_with("a", &RemoveOptions::new().refuse_children(true)));
        let unsealed = scope.spawn(|| tree.unseal("a"));
        thread::sleep(Duration::from_millis(100));
        go_on.send(()).unwrap();
        added.join().unwrap().unwrap();
        for result in [removed.join().unwrap().map(drop), unsealed.join().unwrap()] {
            assert!(matches!(result, Err(Error::HasChildren { .. })), "{result:?}");
        }
    });
    tree.close().unwrap();
}

#[test]
fn a_base_that_cannot_be_recorded_stays_in_no_pool() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let _pool = rig.pool();
    let tree = rig.open(rig.adopting("vg-pool").state_dir(Arc::new(disk.clone()))).unwrap();
    disk.space.full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let error = tree.add("a", Parent::Base).unwrap_err();
        assert!(error.is_out_of_space(), "{error}");
        assert!(rig.kernel.thin_devices("vg-pool").unwrap().is_empty());
    }
    disk.space.full.store(false, Ordering::Relaxed);
    tree.add("a", Parent::Base).unwrap();
    tree.close().unwrap();
}

/// What is refused for want of space takes no ids.
#[test]
fn refused_additions_to_a_shared_pool_leave_no_trace() {
    let rig = Rig::in_memory();
    let _pool = rig.pool();
    let tree = rig.open(rig.adopting("vg-pool").min_free_data(MinFree::Bytes(Bytes::mib(1)))).unwrap();
    tree.add("a", Parent::Base).unwrap();
    drop(tree);
    let tree = rig.open(rig.adopting("vg-pool").min_free_data(MinFree::Bytes(Bytes::gib(1)))).unwrap();
    for _ in 0..2000 {
        assert!(tree.add("b", Parent::Snapshot("a")).unwrap_err().is_out_of_space());
    }
    drop(tree);
    let journals = ["journal.0", "journal.1"].map(|name| fs::read_to_string(rig.root().join(name)));
    let lines: Vec<_> = journals.iter().flat_map(|text| text.as_ref().unwrap().lines()).collect();
    assert!(lines.iter().all(|line| line.trim_matches('\0').len() < 1000), "{} lines", lines.len());
}

/// What the manager that filled the tree comes to.
#[derive(Debug, Clone, Copy)]
enum End {
    Goes,
    Killed,
    PowerCut,
    Closed,
    /// Before the disk is full, and without room in its journal, as earlier versions left it.
    ClosedAndCut,
}

#[test]
fn a_full_disk_allows_removals_after_a_checkpoint_and_a_reopen() {
    let ends = [End::Goes, End::Killed, End::PowerCut, End::Closed, End::ClosedAndCut];
    for (end, checkpoint) in ends.into_iter().flat_map(|end| [(end, false), (end, true)]) {
        let mut rig = Rig::new();
        let disk = Disk::new(&rig);
        let open = |rig: &Rig| rig.open(rig.options().state_dir(Arc::new(disk.clone()))).unwrap();
        let set_full = |full| disk.space.full.store(full, Ordering::Relaxed);
        let tree = open(&rig);
        for index in 0..COUNT {
            tree.add(format!("a-name-of-some-length-{index}"), Parent::Base).unwrap();
        }
        if checkpoint {
            tree.grow_pool(Bytes::mib(128)).unwrap();
        }
        set_full(!matches!(end, End::ClosedAndCut));
        let tree = match end {
            End::Goes => tree,
            End::Killed | End::PowerCut => {
                drop(tree);
                if matches!(end, End::PowerCut) {
                    rig.kernel = Arc::new(rig.kernel.power_cut());
                }
                open(&rig)
            }
            End::Closed => {
                // The checkpoint finds no space; the journal holds what would be in it.
                let error = tree.close().unwrap_err();
                assert!(error.is_out_of_space(), "{error}");
                drop(tree);
                open(&rig)
            }
            End::ClosedAndCut => {
                tree.close().unwrap();
                drop(tree);
                for name in ["journal.0", "journal.1"] {
                    disk.open(name, false).unwrap().set_len(0).unwrap();
                }
                open(&rig)
            }
        };
        set_full(true);
        assert_eq!(tree.list().len(), COUNT, "{end:?}");
        for snapshot in tree.list() {
            let removed = tree.remove(snapshot.id.as_str());
            assert!(removed.is_ok(), "{end:?}, checkpoint {checkpoint}: {}: {removed:?}", snapshot.id);
        }
        drop(tree);
        let tree = open(&rig);
        assert_eq!((tree.list().len(), tree.check().unwrap()), (0, vec![]));
        set_full(false);
        tree.add("one-more", Parent::Base).unwrap();
        tree.close().unwrap();
        assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    }
}

#[test]
fn a_failed_journal_write_keeps_the_space_reserved_for_removals() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let open = |rig: &Rig| rig.open(rig.options().state_dir(Arc::new(disk.clone()))).unwrap();
    let tree = open(&rig);
    tree.add("a-name-of-some-length", Parent::Base).unwrap();
    tree.add("b", Parent::Base).unwrap();
    disk.space.tears.store(true, Ordering::Relaxed);
    tree.remove("a-name-of-some-length").unwrap_err();
    disk.space.full.store(true, Ordering::Relaxed);
    // A shorter line in the place of the torn one.
    tree.remove("b").unwrap();
    drop(tree);
    let tree = open(&rig);
    assert_eq!((tree.list().len(), tree.check().unwrap()), (1, vec![]));
    tree.remove("a-name-of-some-length").unwrap();
    disk.space.full.store(false, Ordering::Relaxed);
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn readers_do_not_wait_for_a_sync() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let tree = rig.open(rig.options().state_dir(Arc::new(disk.clone()))).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let (has_begun, go_on) = disk.pause("journal.0");
    thread::scope(|scope| {
        let adding = scope.spawn(|| tree.add("b", Parent::Base));
        has_begun.recv_timeout(LONG).unwrap();
        // The write ends when all of these have answered.
        assert!(tree.contains("a") && tree.get("b").is_err());
        assert_eq!((tree.list().len(), tree.children("a").unwrap().len()), (1, 0));
        assert_eq!(tree.status().unwrap().snapshots, 1);
        go_on.send(()).unwrap();
        adding.join().unwrap().unwrap();
    });
    assert_eq!(tree.list().len(), 2);
    tree.close().unwrap();
}

#[test]
fn grow_pool_is_durable_beside_a_running_checkpoint() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    // A checkpoint after each few changes.
    let options = rig.options().checkpoint_at(Bytes(1)).state_dir(Arc::new(disk.clone()));
    let tree = rig.open(options).unwrap();
    let size = Bytes::mib(96);
    let (has_begun, go_on) = disk.pause("state.json.tmp");
    let is_begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let mut ids = (0..).take_while(|_| !is_begun.load(Ordering::Relaxed));
            ids.try_for_each(|id| tree.add(id.to_string(), Parent::Base))
        });
        has_begun.recv_timeout(LONG).unwrap();
        is_begun.store(true, Ordering::Relaxed);
        let growing = scope.spawn(|| tree.grow_pool(size).unwrap());
        while fs::metadata(rig.root().join("pool/data")).unwrap().len() < size.0 {
            thread::yield_now();
        }
        // Time to come to its own checkpoint. The one that is being written has the old size.
        thread::sleep(Duration::from_millis(20));
        go_on.send(()).unwrap();
        growing.join().unwrap();
        let state = fs::read_to_string(rig.directory.path().join("state.json")).unwrap();
        assert!(state.contains(&format!("\"data_size\": {}", size.0)));
        adding.join().unwrap().unwrap();
    });
    tree.close().unwrap();
}

/// Nothing that a change needs is locked while a checkpoint is written, and a change that comes meanwhile does not make
/// the next one begin with a checkpoint.
#[test]
fn changes_beside_each_checkpoint_need_no_further_ones() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let at = 2000;
    let open = || {
        let options = rig.options().checkpoint_at(Bytes(at)).state_dir(Arc::new(disk.clone()));
        rig.open(options).unwrap()
    };
    let tree = Arc::new(open());
    let weak = Arc::downgrade(&tree);
    let beside = move |checkpoint| {
        let Some(tree) = weak.upgrade() else { return };
        tree.add(format!("beside-{checkpoint}"), Parent::Base).unwrap();
    };
    *disk.space.beside.lock().unwrap() = Some(Arc::new(beside));
    disk.space.checkpoints.store(0, Ordering::Relaxed);
    let changes = 200;
    for n in 0..changes / 2 {
        tree.add(format!("{n}"), Parent::Base).unwrap();
        tree.remove(format!("{n}")).unwrap();
    }
    *disk.space.beside.lock().unwrap() = None;
    let checkpoints = disk.space.checkpoints.load(Ordering::Relaxed);
    // Up to two lines each, under 200 bytes.
    let most = 2 * changes * 200 / usize::try_from(at).unwrap();
    assert!((2..=most).contains(&checkpoints), "{checkpoints} checkpoints, at most {most}");
    assert_eq!((tree.list().len(), tree.check().unwrap()), (checkpoints, vec![]));
    drop(tree);
    let tree = open();
    assert_eq!((tree.list().len(), tree.check().unwrap()), (checkpoints, vec![]));
    tree.close().unwrap();
}

#[test]
fn changes_go_on_while_a_checkpoint_is_written() {
    let rig = Rig::new();
    let disk = Disk::new(&rig);
    let open = || {
        let options = rig.options().checkpoint_at(Bytes(2000)).state_dir(Arc::new(disk.clone()));
        rig.open(options).unwrap()
    };
    let tree = open();
    let (has_begun, go_on) = disk.pause("state.json.tmp");
    thread::scope(|scope| {
        let adding = scope.spawn(|| (0..40).for_each(|n| tree.add(format!("a{n}"), Parent::Base).unwrap()));
        has_begun.recv_timeout(LONG).unwrap();
        // More than would begin the next checkpoint.
        (0..40).for_each(|n| tree.add(format!("b{n}"), Parent::Base).unwrap());
        (0..20).for_each(|n| tree.remove(format!("b{n}")).unwrap());
        go_on.send(()).unwrap();
        adding.join().unwrap();
    });
    assert_eq!((tree.list().len(), tree.check().unwrap()), (60, vec![]));
    // As after a kill: the journals have what no checkpoint contains.
    drop(tree);
    let tree = open();
    assert_eq!((tree.list().len(), tree.check().unwrap()), (60, vec![]));
    tree.close().unwrap();
}
