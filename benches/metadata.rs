//! Large pools read by this crate and by thin-provisioning-tools: `cargo bench --features model --bench metadata`.
//!
//! Prints time, peak memory and metadata blocks read, and how many times as long as this crate a tool takes for the same.
//! The tools read past the page cache, this crate's side a file through it: with the images in memory
//! (`DM_THIN_BENCH_DIRECTORY=/dev/shm`) times compare. The images, 2 GiB in all, stay there, or in the target directory.
//! `DM_THIN_BENCH_TOOLS` names directories of further versions of the tools, as PATH does.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dm_thin::model::image::{Mappings, PoolContents, PoolImage, ThinContents};
use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::{Metadata, Superblock};
use dm_thin::units::Sectors;

const MAPPED: u64 = 8_000_000;
/// A program that takes longer is stopped.
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [operation, path] => measure(operation, Path::new(path)),
        _ => table(),
    }
}

/// Runs of eight blocks, at shuffled places from `first` on.
fn mappings(first: u64) -> Mappings {
    let runs = MAPPED / 8;
    (0..MAPPED).map(|block| (block, (first + block / 8 * 387_420_489 % runs * 8 + block % 8, 0))).collect()
}

fn thin(mappings: Mappings) -> ThinContents {
    ThinContents { mappings: Arc::new(mappings), ..ThinContents::default() }
}

fn pool(case: &str) -> PoolContents {
    let mut pool = PoolContents::new(Sectors(128), 2 * MAPPED + 1000, 200_000);
    let first = thin(mappings(0));
    match case {
        "one written snapshot" => {
            let mut written = Mappings::clone(&first.mappings);
            written.extend((0..200).map(|at| (at * 40_000, (MAPPED + at, 1))));
            pool.thins.insert(2, thin(written));
        }
        "two unrelated" => drop(pool.thins.insert(2, thin(mappings(MAPPED)))),
        _ => pool.thins.extend((2..=1000).map(|id| (id, first.clone()))),
    }
    pool.thins.insert(1, first);
    pool
}

fn directory() -> PathBuf {
    std::env::var_os("DM_THIN_BENCH_DIRECTORY").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()).into()
}

/// The image of a case, with a metadata snapshot of the same or without.
fn image(case: &str, held: bool) -> PathBuf {
    let name = format!("{}{}", case.replace(' ', "-"), if held { "-held" } else { "" });
    let path = directory().join(name);
    if !path.exists() {
        let pool = pool(case);
        let mut image = PoolImage::new(&pool, None).unwrap();
        if held {
            image = PoolImage::new(&pool, Some(&image.hold().unwrap())).unwrap();
        }
        let unfinished = path.with_extension("new");
        let file = File::create(&unfinished).unwrap();
        file.set_len(pool.metadata_blocks * 4096).unwrap();
        image.blocks().for_each(|(block, bytes)| file.write_all_at(bytes, block * 4096).unwrap());
        std::fs::rename(unfinished, &path).unwrap();
    }
    path
}

/// One operation of ours; prints how many blocks were read.
fn measure(operation: &str, path: &Path) {
    let file = Arc::new(File::open(path).unwrap());
    let held = Superblock::read(&*file).unwrap().unwrap().held_root;
    let metadata = match held {
        Some(root) => Metadata::open_snapshot(file, root).unwrap(),
        None => Metadata::open(file).unwrap(),
    };
    let [one, two] = [1, 2].map(|id| ThinId::new(id).unwrap());
    match operation {
        "changed" => drop(metadata.changed(Some(one), two, 0).unwrap().map(Result::unwrap).last()),
        "mappings" => drop(metadata.mappings(one, 0).unwrap().map(Result::unwrap).last()),
        "usage" => drop(metadata.usage().unwrap()),
        "exclusive" => drop(metadata.exclusive(one).unwrap()),
        "sharers" => drop(metadata.sharers(one, 0).unwrap()),
        "check" => assert!(metadata.check().unwrap().is_sound()),
        _ => panic!("{operation}?"),
    }
    println!("{}", metadata.blocks_read());
}

/// Time, peak memory in KiB, and what a program said.
fn run(program: &Path, arguments: &[&str]) -> (Duration, u64, String) {
    let begin = Instant::now();
    let mut child = Command::new(program);
    // What the tools say is of no interest, and more than a pipe takes.
    let ours = program == std::env::current_exe().unwrap();
    let child = child.args(arguments).stdout(if ours { Stdio::piped() } else { Stdio::null() }).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak =
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak).max(peak);
        std::thread::sleep(Duration::from_millis(1));
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return (LIMIT, peak, "stopped".to_owned());
        }
    }
    let time = begin.elapsed();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} {arguments:?}", program.display());
    (time, peak, String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A tool, as far as the path to the image, and the operation of ours that tells the same.
type Tool = (&'static [&'static str], &'static str);

const TOOLS: [Tool; 4] = [
    (&["thin_delta", "--snap1", "1", "--snap2", "2"], "changed"),
    (&["thin_dump", "--dev-id", "1"], "mappings"),
    (&["thin_ls", "--format", "DEV,MAPPED,EXCLUSIVE_BLOCKS,SHARED_BLOCKS"], "usage"),
    (&["thin_check", "-q"], "check"),
];
const TOOLS_HELD: [Tool; 2] = [
    (&["thin_delta", "--metadata-snap", "--snap1", "1", "--snap2", "2"], "changed"),
    (&["thin_ls", "--metadata-snap", "--format", "DEV,MAPPED,EXCLUSIVE_BLOCKS,SHARED_BLOCKS"], "usage"),
];

/// The directories of the tools, each with their version; PATH is an empty one.
fn versions() -> Vec<(PathBuf, String)> {
    let further = std::env::var_os("DM_THIN_BENCH_TOOLS").unwrap_or_default();
    let further = std::env::split_paths(&further).filter(|directory| directory.is_absolute());
    let directories = [PathBuf::new()].into_iter().chain(further);
    let version = |directory: PathBuf| {
        let output = Command::new(directory.join("thin_ls")).arg("--version").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().last().unwrap_or_default().to_owned();
        (directory, version)
    };
    directories.map(version).collect()
}

fn table() {
    let (ours, versions) = (std::env::current_exe().unwrap(), versions());
    println!(
        "{:<26} {:<16} {:>9} {:>9} {:>9} {:>9}",
        "pool", "operation", "seconds", "times", "peak MiB", "blocks"
    );
    let cases = ["one written snapshot", "two unrelated", "1000 equal devices"];
    for (case, held) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let path = image(case, held);
        let text = path.to_str().unwrap();
        let case = if held { format!("{case}, held") } else { case.to_owned() };
        let show = |name: &str, times: &str, (time, peak, blocks): &(Duration, u64, String)| {
            let (seconds, peak) = (time.as_secs_f64(), peak / 1024);
            println!("{case:<26} {name:<16} {seconds:>9.3} {times:>9} {peak:>9} {blocks:>9}");
        };
        // The image's pages into the cache.
        std::fs::read(&path).unwrap();
        let (operations, tools): (&[&str], &[Tool]) = match held {
            false => (&["changed", "mappings", "usage", "exclusive", "sharers", "check"], &TOOLS),
            true => (&["changed", "usage", "exclusive"], &TOOLS_HELD),
        };
        let mut times = BTreeMap::new();
        for operation in operations {
            let run = run(&ours, &[operation, text]);
            show(operation, "", &run);
            times.insert(*operation, run.0);
        }
        for ((directory, version), (command, operation)) in
            versions.iter().flat_map(|version| tools.iter().map(move |tool| (version, tool)))
        {
            let (program, arguments) = command.split_first().unwrap();
            let run = run(&directory.join(program), &[arguments, &[text]].concat());
            let more = if run.2.is_empty() { "" } else { ">" };
            let times = run.0.as_secs_f64() / times[operation].as_secs_f64();
            show(&format!("{program} {version}"), &format!("{more}{times:.1}"), &run);
        }
    }
}
