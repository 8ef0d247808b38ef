//! Eight callers that add and remove without a pause: what the journal costs then.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dm_thin::tree::files::{RealDir, StateDir, StateFile};

use crate::Result;
use crate::arena::{Arena, Storage};
use crate::base::EXT4;
use crate::contender::Contender;
use crate::contenders::tree::Tree;
use crate::results::Results;
use crate::scenarios::Plan;
use crate::stats::percentile;

const THREADS: u32 = 8;

pub fn run(plan: &Plan, time: Duration, results: &mut Results) -> Result<()> {
    let arena = Arena::new(Storage::LoopFiles, &plan.directory, &plan.disks)?;
    let counts = Arc::new(Counts::default());
    let watched = |root: &Path| -> Result<Arc<dyn StateDir>> {
        Ok(Arc::new(Watched { inner: RealDir::open(root)?, counts: counts.clone() }))
    };
    let mut tree = Tree::new(&arena, &EXT4, false)?.watched(watched)?;
    tree.prepare(&arena, &EXT4)?;
    let (syncs, checkpoints) =
        (counts.syncs.load(Ordering::Relaxed), counts.checkpoints.load(Ordering::Relaxed));
    let (next, end) = (AtomicU32::new(1), Instant::now() + time);
    let callers = std::thread::scope(|scope| {
        let add_and_remove = || -> Result<Vec<f64>> {
            let mut times = Vec::new();
            while Instant::now() < end {
                let id = next.fetch_add(1, Ordering::Relaxed);
                for work in [|tree: &Tree, id| tree.snapshot(id), |tree: &Tree, id| tree.delete(id)] {
                    let begin = Instant::now();
                    work(&tree, id)?;
                    times.push(begin.elapsed().as_secs_f64() * 1e3);
                }
            }
            Ok(times)
        };
        let callers: Vec<_> = (0..THREADS).map(|_| scope.spawn(add_and_remove)).collect();
        let joined = callers.into_iter().map(|caller| caller.join().map_err(|_| "a caller panicked")?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    let syncs = counts.syncs.load(Ordering::Relaxed) - syncs;
    let checkpoints = counts.checkpoints.load(Ordering::Relaxed) - checkpoints;
    tree.finish()?;
    let times = callers.concat();
    let operations = times.len();
    #[allow(clippy::cast_precision_loss)]
    let per_operation = syncs as f64 / operations as f64;
    results.note(format!(
        "{THREADS} threads, add and remove for {} s: {operations} operations, {checkpoints} checkpoints, \
         {per_operation:.2} syncs of the state each; ms p50 {:.1}, p99 {:.1}, p99.9 {:.1}, longest {:.1}",
        time.as_secs(),
        percentile(&times, 50.0),
        percentile(&times, 99.0),
        percentile(&times, 99.9),
        percentile(&times, 100.0),
    ));
    Ok(())
}

#[derive(Debug, Default)]
struct Counts {
    syncs: AtomicU64,
    checkpoints: AtomicU64,
}

/// The state's directory, counted.
#[derive(Debug)]
struct Watched<T> {
    inner: T,
    counts: Arc<Counts>,
}

impl StateDir for Watched<RealDir> {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let inner = self.inner.open(name, create)?;
        Ok(Box::new(Watched { inner, counts: self.counts.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        // Nothing but a checkpoint is renamed to this.
        self.counts.checkpoints.fetch_add(u64::from(to == "state.json"), Ordering::Relaxed);
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync()
    }
}

impl StateFile for Watched<Box<dyn StateFile>> {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.inner.read()
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync()
    }
}
