//! What is measured: contenders in turn, so that what else the machine does meets all of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Result;
use crate::arena::{Arena, Storage};
use crate::base::{Base, EXT4};
use crate::contender::{Contender, Stepwise, Volume};
use crate::contenders;
use crate::contenders::bare::{self, Bare, Keeper};
use crate::contenders::tree::Tree;
use crate::pool::Pool;
use crate::results::{Case, Results, WALL};

/// Where and how much.
pub struct Plan {
    pub directory: PathBuf,
    pub disks: Vec<PathBuf>,
    pub iterations: u32,
    pub contenders: Vec<String>,
}

/// Times that belong to one iteration.
type Times = Vec<(&'static str, Duration)>;

/// Runs `work` and notes how long it took.
fn timed<T>(times: &mut Times, step: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    let result = work().map_err(|error| format!("{step}: {error}"))?;
    times.push((step, begin.elapsed()));
    Ok(result)
}

fn sum(times: &Times, steps: &[&str]) -> Duration {
    times.iter().filter(|(step, _)| steps.contains(step)).map(|(_, time)| *time).sum()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Plan {
    fn arena(&self, storage: Storage) -> Result<Arena> {
        Arena::new(storage, &self.directory, &self.disks)
    }

    /// Bare ioctls and the tree beside each other, with file systems.
    fn pair(&self, arena: &Arena, discard: bool, snapshots: u32) -> Result<(Arc<Pool>, Bare, Tree)> {
        let pool = Pool::make(arena, &EXT4)?;
        let bare = Bare::new(arena, &pool, discard)?;
        let mut tree = Tree::new(arena, &EXT4, discard)?;
        tree.prepare(arena, &EXT4)?;
        (0..snapshots)
            .try_for_each(|id| bare.snapshot(OTHERS + id).and_then(|()| tree.snapshot(OTHERS + id)))?;
        Ok((pool, bare, tree))
    }

    /// Every step of a tree and the same ioctls bare, one caller, another thin volume active.
    pub fn steps(&self, storage: Storage, snapshots: u32, results: &mut Results) -> Result<()> {
        let arena = self.arena(storage)?;
        let (pool, bare, mut tree) = self.pair(&arena, false, snapshots)?;
        let keeper = Keeper::new(&pool)?;
        let mounts = [arena.directory("mount-bare")?, arena.directory("mount-tree")?];
        for iteration in 0..self.iterations {
            let id = iteration * 4 + 1;
            let mut turns: [(&dyn Stepwise, &Path); 2] = [(&bare, &mounts[0]), (&tree, &mounts[1])];
            turns.rotate_left(iteration as usize % 2);
            for (contender, target) in turns {
                let mut times = steps_of(contender, id, target)?;
                times.push(("add + activate", sum(&times, &["add", "activate"])));
                contender.settle()?;
                record(results, &times, contender.name(), storage, EXT4.name, snapshots);
            }
            // What the sequences are made of.
            let mut times = Times::new();
            timed(&mut times, "create_snap alone", || pool.create_snap(ALONE + id, 0))?;
            timed(&mut times, "append + fdatasync alone", || bare.journal.append("add", id))?;
            pool.delete(ALONE + id)?;
            record(results, &times, bare::NAME, storage, EXT4.name, snapshots);
        }
        keeper.release()?;
        tree.finish()?;
        release(pool, (bare, tree))
    }

    /// A new, durable and active copy of which one is ready, and its first mount; bare, it has to be made.
    pub fn ready(&self, storage: Storage, results: &mut Results) -> Result<()> {
        let arena = self.arena(storage)?;
        let (pool, bare, mut tree) = self.pair(&arena, false, 0)?;
        let keeper = Keeper::new(&pool)?;
        tree.keep_ready()?;
        let mounts = [arena.directory("mount-bare")?, arena.directory("mount-tree")?];
        for id in 1..=self.iterations {
            let mut turns: [(&dyn Stepwise, &Path); 2] = [(&bare, &mounts[0]), (&tree, &mounts[1])];
            turns.rotate_left((id - 1) as usize % 2);
            for (contender, target) in turns {
                let mut times = Times::new();
                drop(timed(&mut times, "add + activate, ready", || contender.snapshot_ready(id))?);
                contender.deactivate(id)?;
                timed(&mut times, "first mount, ready", || contender.mount(id, target))?;
                contender.unmount(id, target)?;
                contender.delete(id)?;
                contender.settle()?;
                record(results, &times, contender.name(), storage, EXT4.name, 0);
            }
        }
        keeper.release()?;
        tree.finish()?;
        release(pool, (bare, tree))
    }

    /// The only active thin volume of the machine: one contender has nothing active while the other one is measured.
    pub fn lone(&self, storage: Storage, results: &mut Results) -> Result<()> {
        const TOGETHER: u32 = 5;
        let arena = self.arena(storage)?;
        let (pool, bare, tree) = self.pair(&arena, false, 0)?;
        let mut tree = tree.keeping_one_active();
        for round in 0..self.iterations.div_ceil(TOGETHER) {
            tree.close()?;
            let ids = (0..TOGETHER).map(|at| (round * TOGETHER + at) * 2 + 1);
            for id in ids.clone() {
                record(results, &lone_of(&bare, id)?, bare.name(), storage, EXT4.name, 0);
            }
            tree.open()?;
            tree.settle()?;
            for id in ids {
                record(results, &lone_of(&tree, id)?, tree.name(), storage, EXT4.name, 0);
            }
        }
        tree.finish()?;
        release(pool, (bare, tree))
    }

    /// Removal as loop files have it by default: written blocks are discarded first.
    pub fn discarding(&self, storage: Storage, results: &mut Results) -> Result<()> {
        let arena = self.arena(storage)?;
        let (pool, bare, mut tree) = self.pair(&arena, true, 0)?;
        let keeper = Keeper::new(&pool)?;
        for id in 1..=self.iterations {
            let mut turns: [&dyn Stepwise; 2] = [&bare, &tree];
            turns.rotate_left((id - 1) as usize % 2);
            for contender in turns {
                contender.snapshot(id)?;
                let volume = contender.activate(id)?;
                volume.write(0, &[7; 1 << 20])?;
                volume.sync()?;
                drop(volume);
                contender.deactivate(id)?;
                let mut times = Times::new();
                timed(&mut times, "remove, discarding 1 MiB", || contender.delete(id))?;
                contender.settle()?;
                record(results, &times, contender.name(), storage, EXT4.name, 0);
            }
        }
        keeper.release()?;
        tree.finish()?;
        release(pool, (bare, tree))
    }

    /// Several callers at once.
    pub fn threads(&self, storage: Storage, results: &mut Results) -> Result<()> {
        const EACH: u32 = 4;
        let arena = self.arena(storage)?;
        let (pool, bare, mut tree) = self.pair(&arena, false, 0)?;
        let keeper = Keeper::new(&pool)?;
        let mut next = 1;
        for threads in [1, 2, 4, 8] {
            for round in 0..self.iterations.div_ceil(8) {
                let mut turns: [&dyn Stepwise; 2] = [&bare, &tree];
                turns.rotate_left(round as usize % 2);
                for contender in turns {
                    at_once(contender, threads, EACH, next, storage, results)?;
                }
                next += threads * EACH;
            }
        }
        keeper.release()?;
        tree.finish()?;
        release(pool, (bare, tree))
    }

    /// The course: a copy, made durable, activated, written to, and deleted.
    pub fn course(&self, storage: Storage, base: &Base, copies: u32, results: &mut Results) -> Result<()> {
        let arena = self.arena(storage)?;
        let pool = Pool::make(&arena, base)?;
        let keeper = Keeper::new(&pool)?;
        let mut contenders = contenders::all(&arena, base, &pool, &self.contenders, results)?;
        let mut failed = BTreeSet::new();
        for contender in &mut contenders {
            eprintln!("  preparing {}", contender.name());
            let prepared = contender.prepare(&arena, base);
            let others = |()| populate(&**contender, copies - 1);
            if let Err(error) = prepared.and_then(others) {
                results.leave_out(contender.name(), &format!("{} on {}: {error}", base.name, storage.name()));
                failed.insert(contender.name());
            }
        }
        for id in 1..=self.iterations {
            let from = (id - 1) as usize % contenders.len();
            for contender in contenders[from..].iter().chain(&contenders[..from]) {
                if failed.contains(contender.name()) {
                    continue;
                }
                let times = course_of(&**contender, id, base);
                match times.and_then(|times| contender.settle().map(|()| times)) {
                    Ok(times) => record(results, &times, contender.name(), storage, base.name, copies - 1),
                    Err(error) if contender.name() == bare::NAME => return Err(error),
                    Err(error) => {
                        results.leave_out(
                            contender.name(),
                            &format!("{} on {}: {error}", base.name, storage.name()),
                        );
                        failed.insert(contender.name());
                    }
                }
            }
        }
        keeper.release()?;
        for contender in &mut contenders {
            let finished = contender.finish();
            if !failed.contains(contender.name()) {
                finished.map_err(|error| format!("{}: {error}", contender.name()))?;
            }
        }
        release(pool, contenders)
    }
}

/// Ids of snapshots that are only there.
const OTHERS: u32 = 1_000_000;
/// Ids of what is measured apart from a sequence.
const ALONE: u32 = 3_000_000;
const RANDOM_WRITES: u64 = 1000;

/// Makes copies that are only there.
fn populate(contender: &dyn Contender, copies: u32) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    for made in 0..copies {
        if begin.elapsed() > PATIENCE {
            return Err(format!("only {made} of {copies} clones in {} s", PATIENCE.as_secs()).into());
        }
        contender.snapshot(OTHERS + made)?;
    }
    Ok(())
}

fn release(pool: Arc<Pool>, contenders: impl Sized) -> Result<()> {
    drop(contenders);
    Arc::into_inner(pool).ok_or("the pool is still in use")?.release()
}

fn record(
    results: &mut Results,
    times: &Times,
    contender: &'static str,
    storage: Storage,
    base: &str,
    snapshots: u32,
) {
    for (step, time) in times {
        let (step, storage, base) = ((*step).to_owned(), storage.name().to_owned(), base.to_owned());
        results.add(&Case { step, storage, base, snapshots, threads: 1 }, contender, micros(*time));
    }
}

fn steps_of(contender: &dyn Stepwise, id: u32, target: &Path) -> Result<Times> {
    let (child, other, crashed) = (id + 1, id + 2, id + 3);
    let mut times = Times::new();
    timed(&mut times, "add", || contender.snapshot(id))?;
    drop(timed(&mut times, "activate", || contender.activate(id))?);
    timed(&mut times, "add, origin active", || contender.snapshot_of(child, id))?;
    timed(&mut times, "deactivate", || contender.deactivate(id))?;
    timed(&mut times, "first mount", || contender.mount(id, target))?;
    timed(&mut times, "add, origin mounted", || contender.snapshot_of(other, id))?;
    timed(&mut times, "unmount", || contender.unmount(id, target))?;
    timed(&mut times, "second mount", || contender.mount(id, target))?;
    // What is not frozen now is written by the unmount.
    timed(&mut times, "add, origin mounted, crash", || contender.crash_snapshot_of(crashed, id))?;
    contender.unmount(id, target)?;
    timed(&mut times, "remove", || contender.delete(id))?;
    contender.delete(child)?;
    contender.delete(other)?;
    contender.delete(crashed)?;
    Ok(times)
}

fn lone_of(contender: &dyn Stepwise, id: u32) -> Result<Times> {
    let mut times = Times::new();
    contender.snapshot(id)?;
    drop(timed(&mut times, "activate, lone", || contender.activate(id))?);
    timed(&mut times, "deactivate, lone", || contender.deactivate(id))?;
    drop(contender.activate(id)?);
    timed(&mut times, "remove while active, lone", || contender.remove_active(id))?;
    contender.settle()?;
    Ok(times)
}

/// One round of `threads` callers with `each` snapshots.
fn at_once(
    contender: &dyn Stepwise,
    threads: u32,
    each: u32,
    first: u32,
    storage: Storage,
    results: &mut Results,
) -> Result<()> {
    let case = |step: &str| {
        let (storage, base) = (storage.name().to_owned(), EXT4.name.to_owned());
        Case { step: step.to_owned(), storage, base, snapshots: 0, threads }
    };
    for (step, wall, work) in [
        ("add", "add", (|contender, id| contender.snapshot(id)) as fn(&dyn Stepwise, u32) -> Result<()>),
        ("activate", "activate", |contender, id| contender.activate(id).map(drop)),
        ("deactivate", "deactivate", |contender, id| contender.deactivate(id)),
        ("remove", "remove", |contender, id| contender.delete(id)),
    ] {
        let begin = Instant::now();
        let times = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut times = Times::new();
                        let mut ids = first + thread * each..first + (thread + 1) * each;
                        ids.try_for_each(|id| timed(&mut times, step, || work(contender, id)))?;
                        Ok(times)
                    })
                })
                .collect();
            let joined = callers.into_iter().map(|caller| caller.join().map_err(|_| "a caller panicked")?);
            joined.collect::<Result<Vec<Times>>>()
        })?;
        let total = micros(begin.elapsed());
        contender.settle()?;
        // One caller's latencies are those of `steps`.
        for (step, time) in times.into_iter().flatten().filter(|_| threads > 1) {
            results.add(&case(step), contender.name(), micros(time));
        }
        results.add(&case(&format!("{wall}{WALL}")), contender.name(), total / f64::from(threads * each));
    }
    Ok(())
}

fn course_of(contender: &dyn Contender, id: u32, base: &Base) -> Result<Times> {
    let mut times = Times::new();
    timed(&mut times, "clone", || contender.snapshot(id))?;
    let volume = timed(&mut times, "activate", || contender.activate(id))?;
    timed(&mut times, "first 4 KiB", || write(&volume, 0, id))?;
    timed(&mut times, "1,000 random writes", || random_writes(&volume, id, base))?;
    drop(volume);
    timed(&mut times, "deactivate", || contender.deactivate(id))?;
    timed(&mut times, "delete", || contender.delete(id))?;
    times.push(("clone to first write", sum(&times, &["clone", "activate", "first 4 KiB"])));
    times.push(("whole course", times.iter().take(6).map(|(_, time)| *time).sum()));
    Ok(times)
}

#[allow(clippy::cast_possible_truncation)]
fn write(volume: &Volume, offset: u64, id: u32) -> Result<()> {
    volume.write(offset, &[id as u8; 4096])?;
    Ok(volume.sync()?)
}

/// The same places for every contender, others for every copy.
fn random_writes(volume: &Volume, id: u32, base: &Base) -> Result<()> {
    let pages = base.written() / 4096;
    let mut random = u64::from(id) << 32 | 1;
    for _ in 0..RANDOM_WRITES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        volume.write(random % pages * 4096, &[random as u8; 4096])?;
    }
    Ok(volume.sync()?)
}
