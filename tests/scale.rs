//! A hundred thousand snapshots: opening, adding, and the memory that they take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
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

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// The most that were.
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Bytes that this thread ever allocated. A tree's own threads count elsewhere: they write checkpoints meanwhile.
    static EVER: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: everything is passed on to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let allocated = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(allocated, Ordering::Relaxed);
        EVER.set(EVER.get() + layout.size());
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
    // counts.
    let batch = |tree: &SnapshotTree, from: usize| -> usize {
        let starts = (0..5).map(|round| from + round * BATCH);
        let count = |start: usize| {
            let before = EVER.get();
            (start..start + BATCH).for_each(|index| add(tree, index));
            (EVER.get() - before) / BATCH
        };
        starts.map(count).min().unwrap()
    };

    let tree = open();
    (0..10).for_each(|index| add(&tree, index));
    let with_few = batch(&tree, 10);
    let timed = |index: usize| {
        let begun = Instant::now();
        add(&tree, index);
        begun.elapsed()
    };
    let mut times: Vec<_> = (10 + 5 * BATCH..MANY).map(timed).collect();
    let mut last = times.split_off(times.len() - MANY / 4);
    last.sort_unstable();
    let part = |of_thousand: usize| last[last.len() * of_thousand / 1000];
    println!(
        "the last {} adds: p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
        last.len(),
        part(500),
        part(990),
        part(999),
        last[last.len() - 1]
    );
    let with_many = batch(&tree, MANY);
    drop(tree);

    // Nanoseconds of the processor that this thread had.
    let time = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let (before, ever, begun) = (ALLOCATED.load(Ordering::Relaxed), EVER.get(), time());
    PEAK.store(before, Ordering::Relaxed);
    let tree = open();
    let time = Duration::from_nanos(time() - begun);
    let [memory, peak] = [&ALLOCATED, &PEAK].map(|count| count.load(Ordering::Relaxed) - before);
    let opening = EVER.get() - ever;
    let count = tree.list().len();
    assert_eq!(count, MANY + 5 * BATCH);

    println!(
        "bytes for an add: {with_few} with few, {with_many} with {MANY}; \
         opening: {time:?} of a processor, {opening} bytes, {peak} at the peak, {memory} stay"
    );
    assert!(with_many < with_few * 5 / 4, "an add takes more with many: {with_few}, {with_many} bytes");
    assert!(memory < 48 << 20 && peak < 96 << 20, "{memory} bytes, {peak} at the peak");
    assert!(opening < count * 4096, "{opening} bytes");
}
