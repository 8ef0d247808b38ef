//! Trees on the model kernel and model disks, with the power going at any call, calls that fail, and neighbours.
//!
//! Deterministic from a seed, which is printed when a promise is broken:
//! `DM_THIN_SIM_SEED=7 cargo test --all-features --test sim` replays it, `DM_THIN_SIM_WORLDS=100000` runs
//! more of them, from that seed on.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)

mod copies;
mod disk;
mod fixture;
mod full;
mod mounts;
mod neighbour;
mod numbers;
mod operations;
mod owner;
mod receive;
mod rng;
mod simulation;
mod snapshots;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use numbers::{Group, Numbers};
use simulation::{Plan, Simulation};

/// Threads that run the worlds of one plan.
const WORKERS: usize = 4;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Runs simulations with many seeds; a seed that breaks a promise is named.
fn simulate(default: u64, plan: Plan) {
    simulate_with(default, |seed, numbers| Simulation::new(seed, plan, numbers).run());
}

fn simulate_with(default: u64, simulation: impl Fn(u64, &Arc<Numbers>) + Sync) {
    let first = variable("DM_THIN_SIM_SEED");
    let worlds = variable("DM_THIN_SIM_WORLDS").unwrap_or(if first.is_some() { 1 } else { default });
    let seeds = first.unwrap_or(0)..first.unwrap_or(0) + worlds;
    let told = seeds.end - seeds.start == 1;
    let numbers = Arc::new(Numbers::new(told));
    // A world waits more than it works.
    let next = AtomicU64::new(seeds.start);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let run = || simulation(seed, &numbers);
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                println!("replay with DM_THIN_SIM_SEED={seed}");
                next.store(seeds.end, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    println!(
        "{} operations in {} worlds\n{numbers}",
        numbers.total(Group::Operations),
        seeds.end - seeds.start
    );
}

#[test]
fn power_cuts_lose_and_leak_nothing() {
    simulate(20, Plan { trees: 1, cuts: true, ..Plan::default() });
}

#[test]
fn failing_calls_lose_and_leak_nothing() {
    simulate(20, Plan { trees: 1, faults: true, ..Plan::default() });
}

#[test]
fn two_trees_and_a_neighbour_lose_nothing() {
    simulate(20, Plan { trees: 2, neighbour: true, ..Plan::default() });
}

#[test]
fn copied_and_restored_roots_are_refused() {
    simulate(20, Plan { trees: 2, administrator: true, ..Plan::default() });
}

#[test]
fn full_disks_and_full_pools_lose_nothing() {
    simulate(20, Plan { trees: 2, cuts: true, fills: true, ..Plan::default() });
}

#[test]
fn mounts_are_neither_lost_nor_mixed_up() {
    simulate_with(60, mounts::run);
}

#[test]
fn everything_at_once() {
    simulate(
        100,
        Plan { trees: 2, cuts: true, faults: true, neighbour: true, administrator: true, fills: true },
    );
}
