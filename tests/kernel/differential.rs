//! The model against the kernel it is a model of: the same sequences on both, and every answer compared.
//!
//! `DM_THIN_DIFF_OPS` says how many operations (600 if it does not), `DM_THIN_DIFF_SEED` the first seed.
//! Not asked: REMOVE_ALL, which with `--host` would remove what is not ours; LIST_VERSIONS, which lists the
//! modules that happen to be loaded; what would wait for ever, for which the model is asked first.

use std::path::Path;
use std::time::{Duration, Instant};

use dm_thin::kernel::RealKernel;

use crate::bench::{Bench, dm};
use crate::sequences::machine::Machine;
use crate::sequences::plan::Op;
use crate::sequences::source::Source;
use crate::sequences::{choose, model, risk};

/// Operations of one sequence.
const LENGTH: usize = 80;
/// How long the real kernel may take for what it does behind the caller's back: deferred removals, events
/// of a pool's worker.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many disagreements are told at once.
const ENOUGH: usize = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// udev opens every device that it hears of, at any time: it sleeps meanwhile.
struct UdevAsleep;

impl UdevAsleep {
    fn new() -> Self {
        udevadm(&["control", "--stop-exec-queue"]);
        Self
    }
}

impl Drop for UdevAsleep {
    fn drop(&mut self) {
        udevadm(&["control", "--start-exec-queue"]);
        udevadm(&["settle", "--timeout=60"]);
    }
}

fn udevadm(arguments: &[&str]) {
    if Path::new("/run/udev/control").exists() {
        let done = std::process::Command::new("udevadm").args(arguments).status();
        println!("udevadm {arguments:?}: {done:?}");
    }
}

#[test]
fn the_model_and_the_kernel_agree() {
    let bench = Bench::new();
    let _udev = UdevAsleep::new();
    let (wanted, first) = (number("DM_THIN_DIFF_OPS", 600), number("DM_THIN_DIFF_SEED", 1));
    let mut counts = Counts::default();
    let mut disagreements = Vec::new();
    for seed in first.. {
        if counts.compared >= wanted || disagreements.len() >= ENOUGH {
            break;
        }
        let directories = ["model", "real"].map(|side| bench.path().join(format!("{side}-{seed}")));
        directories.iter().for_each(|directory| std::fs::create_dir(directory).unwrap());
        let [model, real] = &directories;
        if let Err(disagreement) = sequence(seed, model, real, &mut counts) {
            println!("{disagreement}");
            disagreements.push(disagreement);
        }
    }
    let Counts { compared, agreed_ok, skipped } = counts;
    println!("{compared} operations compared, {agreed_ok} of them successes; {skipped} not asked");
    assert!(disagreements.is_empty(), "{} disagreements", disagreements.len());
}

#[derive(Default)]
struct Counts {
    compared: u64,
    agreed_ok: u64,
    skipped: u64,
}

fn sequence(seed: u64, model_files: &Path, real_files: &Path, counts: &mut Counts) -> Result<(), String> {
    // For a kernel that hangs.
    let trace = std::env::var_os("DM_THIN_DIFF_TRACE").is_some();
    let kernel = model(dm().version().minor);
    let mut model = Machine::new(&kernel, model_files);
    let mut real = Machine::new(&RealKernel, real_files);
    let mut source = Source::Seed(seed);
    let mut done = choose::prelude(&mut source);
    for op in &done {
        if trace {
            eprintln!("{seed} {op:?}");
        }
        assert_eq!(model.run(op), real.run(op));
    }
    let mut result = Ok(());
    for _ in 0..LENGTH {
        let op = choose::next(&mut source);
        if risk::is_risky(&mut model, &op) {
            counts.skipped += 1;
            continue;
        }
        let expected = model.run(&op);
        // It would wait.
        if expected.starts_with("EDEADLK") || expected.starts_with("EINTR") {
            counts.skipped += 1;
            continue;
        }
        if trace {
            eprintln!("{seed} {op:?} -> {expected}");
        }
        let found = real.run(&op);
        if trace {
            eprintln!("  {found}");
        }
        done.push(op);
        counts.compared += 1;
        counts.agreed_ok += u64::from(found.starts_with("Ok"));
        result = if found == expected {
            let same = pictures(&mut model, &mut real);
            [&mut model, &mut real].into_iter().for_each(Machine::settle);
            same
        } else {
            Err(format!("  model: {expected}\n  kernel: {found}"))
        };
        if let Err(difference) = result {
            let last = done.len() - 1;
            let before: Vec<_> = done[..last].iter().map(|op| format!("  {op:?}\n")).collect();
            let op: &Op = &done[last];
            result =
                Err(format!("seed {seed}, operation {last}:\n{}> {op:?}\n{difference}", before.concat()));
            break;
        }
    }
    model.tear_down().expect("the model is taken down");
    real.tear_down().expect("the devices are taken down");
    result
}

/// Whether all devices are the same, within the kernel's time for it.
fn pictures(model: &mut Machine<'_>, real: &mut Machine<'_>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let (expected, found) = (model.picture(), real.picture());
        if expected == found {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("afterwards\n  model: {expected:#?}\n  kernel: {found:#?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
