//! A hundred thousand snapshots: opening, adding, and the memory that they take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use tempfile::TempDir;

/// Counts what is allocated.
struct Counting;

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// Bytes that ever were.
static EVER: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: everything is passed on to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        EVER.fetch_add(layout.size(), Ordering::Relaxed);
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
/// Adds that are counted together.
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
        tree.add(id(index), parent.as_deref().map_or(Parent::Base, Parent::Snapshot)).unwrap();
        kernel.clear_log();
    };
    // Bytes that an add allocates: what copies the tree, or a part of it that grows, is seen. Of some batches the least
    // counts, which wrote no checkpoint.
    let batch = |tree: &SnapshotTree, from: usize| -> usize {
        let starts = (0..5).map(|round| from + round * BATCH);
        let count = |start: usize| {
            let before = EVER.load(Ordering::Relaxed);
            (start..start + BATCH).for_each(|index| add(tree, index));
            (EVER.load(Ordering::Relaxed) - before) / BATCH
        };
        starts.map(count).min().unwrap()
    };

    let tree = open();
    (0..10).for_each(|index| add(&tree, index));
    let with_few = batch(&tree, 10);
    (10 + 5 * BATCH..MANY).for_each(|index| add(&tree, index));
    let with_many = batch(&tree, MANY);
    drop(tree);

    let (before, ever) = (ALLOCATED.load(Ordering::Relaxed), EVER.load(Ordering::Relaxed));
    let tree = open();
    let memory = ALLOCATED.load(Ordering::Relaxed) - before;
    let opening = EVER.load(Ordering::Relaxed) - ever;
    let count = tree.list().len();
    assert_eq!(count, MANY + 5 * BATCH);

    println!(
        "bytes for an add: {with_few} with few, {with_many} with {MANY}; opening {opening} bytes, {memory} stay"
    );
    assert!(with_many < with_few * 5 / 4, "an add takes more with many: {with_few}, {with_many} bytes");
    assert!(memory < 64 << 20, "{memory} bytes");
    assert!(opening < count * 4096, "{opening} bytes");
}
