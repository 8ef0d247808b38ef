//! The tree on the model of the kernel, its state in memory-backed files: `cargo bench --features model --bench tree`.
//!
//! What the model itself needs is in these times. `DM_THIN_BENCH_SNAPSHOTS="10 1000000"` takes other numbers of
//! snapshots than 10, 1,000 and 100,000.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use tempfile::TempDir;

struct Subject {
    kernel: Arc<ModelKernel>,
    options: Options,
    directory: TempDir,
}

impl Subject {
    fn new(options: Options) -> Self {
        let memory = Path::new("/dev/shm");
        let directory = TempDir::new_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
        let kernel = Arc::new(ModelKernel::new());
        let options = options.filesystem(Filesystem::None).udev(UdevPolicy::None).kernel(kernel.clone());
        let options = options.metadata_size(Bytes::gib(1)).blkdiscard(false);
        Self { kernel, options, directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn open(&self) -> SnapshotTree {
        SnapshotTree::open(self.root(), self.options.clone()).unwrap()
    }

    /// A tree of `count` snapshots, half of them of the other half.
    fn tree(&self, count: usize) -> SnapshotTree {
        let tree = self.open();
        for index in 0..count {
            let parent = (index / 2).to_string();
            let parent = if index < 2 { Parent::Base } else { Parent::Snapshot(&parent) };
            tree.add(index.to_string(), parent).unwrap();
            self.kernel.clear_log();
        }
        tree
    }
}

fn counts() -> Vec<usize> {
    let given = std::env::var("DM_THIN_BENCH_SNAPSHOTS").unwrap_or("10 1000 100000".to_owned());
    given.split_whitespace().map(|count| count.parse().expect("a number of snapshots")).collect()
}

/// The time of `work`, with a new name each time; `before` and `after` are not measured.
fn timed(
    iterations: u64,
    kernel: &ModelKernel,
    mut before: impl FnMut(&str),
    mut work: impl FnMut(&str),
    mut after: impl FnMut(&str),
) -> Duration {
    (0..iterations)
        .map(|iteration| {
            let id = format!("new-{iteration}");
            before(&id);
            let begin = Instant::now();
            work(&id);
            let elapsed = begin.elapsed();
            after(&id);
            kernel.clear_log();
            elapsed
        })
        .sum()
}

fn operations(criterion: &mut Criterion) {
    for count in counts() {
        let subject = Subject::new(Options::new());
        let tree = subject.tree(count);
        let kernel = &*subject.kernel;
        let add = |id: &str| tree.add(id, Parent::Base).unwrap();
        let remove = |id: &str| tree.remove(id).unwrap();
        let mut group = criterion.benchmark_group("tree");
        group.bench_function(BenchmarkId::new("add", count), |bencher| {
            bencher.iter_custom(|iterations| timed(iterations, kernel, |_| (), add, remove));
        });
        group.bench_function(BenchmarkId::new("remove", count), |bencher| {
            bencher.iter_custom(|iterations| timed(iterations, kernel, add, remove, |_| ()));
        });
        let rename = |id: &str| tree.rename(id, "renamed").unwrap();
        group.bench_function(BenchmarkId::new("rename", count), |bencher| {
            bencher.iter_custom(|iterations| timed(iterations, kernel, add, rename, |_| remove("renamed")));
        });
        tree.close().unwrap();
        drop(tree);
        group.sample_size(10);
        group.bench_function(BenchmarkId::new("open", count), |bencher| {
            bencher.iter_batched(|| (), |()| subject.open(), BatchSize::PerIteration);
        });
        group.finish();
    }
}

/// All changes are in the journal: what a change costs there, and what replaying costs.
fn journal(criterion: &mut Criterion) {
    const CHANGES: usize = 10_000;
    let subject = Subject::new(Options::new().checkpoint_at(Bytes::gib(4)));
    let tree = subject.tree(10);
    let mut group = criterion.benchmark_group("journal");
    let mut changes = 0_usize;
    group.bench_function("append one line (set_label)", |bencher| {
        bencher.iter(|| {
            changes += 1;
            tree.set_label("1", "key", if changes.is_multiple_of(2) { "even" } else { "odd" }).unwrap();
        });
    });
    drop(tree);
    let subject = Subject::new(Options::new().checkpoint_at(Bytes::gib(4)));
    drop(subject.tree(CHANGES));
    group.sample_size(10);
    // An open writes two more lines.
    group.bench_function(format!("open, replaying {CHANGES} changes"), |bencher| {
        bencher.iter_batched(|| (), |()| subject.open(), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(tree, operations, journal);
criterion_main!(tree);
