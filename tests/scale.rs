//! A hundred thousand snapshots: opening, adding, and the memory that they take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use tempfile::TempDir;

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: everything is passed on to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MANY: usize = 100_000;
/// Adds that are timed together.
const BATCH: usize = 500;

#[test]
fn a_hundred_thousand_snapshots() {
    let memory = Path::new("/dev/shm");
    let directory = TempDir::new_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
    let kernel = Arc::new(ModelKernel::new());
    let open = || {
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
        // The model counts a metadata block for each snapshot.
        let options = options.metadata_size(Bytes::mib(600));
        SnapshotTree::open(directory.path().join("root"), options.kernel(kernel.clone())).unwrap()
    };
    let id = |index: usize| format!("{index:064x}");
    let add = |tree: &SnapshotTree, index: usize| {
        let parent = if index == 0 { None } else { Some(id(index / 2)) };
        tree.add(&id(index), parent.as_deref().map_or(Parent::Base, Parent::Snapshot)).unwrap();
        kernel.clear_log();
    };
    // The quickest of some batches: what else the machine does only slows it down.
    let batch = |tree: &SnapshotTree, from: usize| -> Duration {
        let starts = (0..5).map(|round| from + round * BATCH);
        let time = |start: usize| {
            let begin = Instant::now();
            (start..start + BATCH).for_each(|index| add(tree, index));
            begin.elapsed()
        };
        starts.map(time).min().unwrap()
    };

    let tree = open();
    (0..10).for_each(|index| add(&tree, index));
    let with_few = batch(&tree, 10);
    (10 + 5 * BATCH..MANY).for_each(|index| add(&tree, index));
    let with_many = batch(&tree, MANY);
    drop(tree);

    let before = ALLOCATED.load(Ordering::Relaxed);
    let begin = Instant::now();
    let tree = open();
    let opening = begin.elapsed();
    let memory = ALLOCATED.load(Ordering::Relaxed) - before;
    assert_eq!(tree.list().len(), MANY + 5 * BATCH);

    println!(
        "{BATCH} adds: {with_few:?} with few, {with_many:?} with {MANY}; opening {opening:?}, {memory} bytes"
    );
    assert!(with_many < with_few * 5, "adding is slower with many: {with_few:?}, {with_many:?}");
    assert!(memory < 64 << 20, "{memory} bytes");
    assert!(opening < Duration::from_secs(10), "{opening:?}");
}
