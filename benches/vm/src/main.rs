//! The tree beside the same ioctls bare, and beside what else people pick. `tests/vm/run bench` runs this in a guest;
//! benches/README.md tells what it measures.

mod arena;
mod base;
mod chart;
mod contender;
mod contenders;
mod journal;
mod mapper;
mod pool;
mod results;
mod scenarios;
mod stats;
mod storm;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use arena::Storage;
use base::{Base, LARGE_FRAGMENTED, LARGE_FRESH, SMALL_FRAGMENTED, SMALL_FRESH};
use results::{Report, Results};
use scenarios::Plan;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str =
    "dm-thin-bench run [--quick] [--iterations N] [--only SCENARIO,...] [--contenders WORD,...]
dm-thin-bench report FILE.json [MORE.json...]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", ..] => measure(&arguments[1..]),
        ["report", file, ref more @ ..] => report(Path::new(file), more),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dm-thin-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&said).trim()).into())
}

fn measure(arguments: &[String]) -> Result<()> {
    let (mut quick, mut iterations, mut only, mut contenders) = (false, None, Vec::new(), Vec::new());
    let mut words = arguments.iter();
    let list = |word: Option<&String>| -> Result<Vec<String>> {
        Ok(word.ok_or(USAGE)?.split(',').map(str::to_owned).collect())
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--iterations" => iterations = Some(words.next().ok_or(USAGE)?.parse()?),
            "--only" => only = list(words.next())?,
            "--contenders" => contenders = list(words.next())?,
            _ => return Err(USAGE.into()),
        }
    }
    let directory =
        PathBuf::from(variable("DM_THIN_BENCH_DIRECTORY").unwrap_or("/var/lib/dm-thin-bench".into()));
    let disks = variable("DM_THIN_BENCH_DISKS").unwrap_or_default();
    let disks = disks.split_whitespace().map(PathBuf::from).collect();
    let full = if quick { 50 } else { 100 };
    let plan = Plan { directory, disks, iterations: iterations.unwrap_or(full), contenders };
    let mut results = Results::default();
    scenarios(&plan, quick, iterations, &only, &mut results)?;

    let command = format!("tests/vm/run bench {}", arguments.join(" "));
    let report = results.report(kernel()?, machine()?, command.trim_end().to_owned());
    let text = serde_json::to_string_pretty(&report)?;
    match variable("DM_THIN_BENCH_OUTPUT") {
        Some(path) => Ok(fs::OpenOptions::new().write(true).open(path).and_then(|mut file| {
            use std::io::Write;
            file.write_all(text.as_bytes())
        })?),
        None => {
            println!("{text}");
            Ok(())
        }
    }
}

fn scenarios(
    plan: &Plan,
    quick: bool,
    iterations: Option<u32>,
    only: &[String],
    results: &mut Results,
) -> Result<()> {
    let begin = Instant::now();
    let mut scenario = |name: &str, run: &mut dyn FnMut(&mut Results) -> Result<()>| -> Result<()> {
        if !only.is_empty() && !only.iter().any(|word| name.contains(word.as_str())) {
            return Ok(());
        }
        eprintln!("{:4} s  {name}", begin.elapsed().as_secs());
        run(results).map_err(|error| format!("{name}: {error}").into())
    };
    let with = |count: u32| Plan {
        directory: plan.directory.clone(),
        disks: plan.disks.clone(),
        iterations: iterations.unwrap_or(count),
        contenders: plan.contenders.clone(),
    };
    let mut storages = vec![Storage::LoopFiles];
    if !plan.disks.is_empty() {
        storages.push(Storage::Disks);
    }
    for &storage in &storages {
        let name = storage.name();
        scenario(&format!("steps on {name}"), &mut |results| plan.steps(storage, 0, results))?;
        scenario(&format!("ready on {name}"), &mut |results| plan.ready(storage, results))?;
        scenario(&format!("lone on {name}"), &mut |results| with(20).lone(storage, results))?;
    }
    scenario("discarding", &mut |results| with(30).discarding(Storage::LoopFiles, results))?;
    scenario("threads", &mut |results| with(40).threads(Storage::LoopFiles, results))?;
    let time = Duration::from_secs(if quick { 15 } else { 60 });
    scenario("storm", &mut |results| storm::run(plan, time, results))?;
    if quick {
        return Ok(());
    }
    for (count, name) in [(1000, "1,000"), (10_000, "10,000")] {
        scenario(&format!("steps beside {name} snapshots"), &mut |results| {
            with(40).steps(Storage::LoopFiles, count, results)
        })?;
    }
    for &storage in &storages {
        // On disks the extremes.
        let bases: &[&Base] = match storage {
            Storage::LoopFiles => &[&SMALL_FRESH, &SMALL_FRAGMENTED, &LARGE_FRESH, &LARGE_FRAGMENTED],
            Storage::Disks => &[&SMALL_FRESH, &LARGE_FRAGMENTED],
        };
        for base in bases {
            let name = format!("course: {} on {}", base.name, storage.name());
            scenario(&name, &mut |results| with(8).course(storage, base, 1, results))?;
        }
    }
    scenario("course: 1,000 clones", &mut |results| {
        with(8).course(Storage::LoopFiles, &SMALL_FRESH, 1000, results)
    })
}

/// The table, and the chart beside the first file. Further ones, of the same machine, are added to it.
fn report(file: &Path, more: &[&str]) -> Result<()> {
    let read = |file: &Path| -> Result<Report> { Ok(serde_json::from_str(&fs::read_to_string(file)?)?) };
    let mut all = read(file)?;
    for file in more {
        all.append(read(Path::new(file))?)?;
    }
    print!("{}", table::render(&all));
    let chart = file.with_extension("svg");
    fs::write(&chart, chart::render(&all))?;
    println!("\n{}", chart.display());
    Ok(())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn kernel() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// The processor that is seen here, and what the outside says about it.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let models: Vec<&str> = cpus.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    let model = models.first().copied().unwrap_or("unknown processor");
    let emulated = if model.contains("TCG") { ", emulated" } else { "" };
    let outside = variable("DM_THIN_BENCH_MACHINE").map(|text| format!(", on {text}")).unwrap_or_default();
    Ok(format!("{} × {model}{emulated}{outside}", models.len()))
}
