//! A microVM runner: disks of many virtual machines from one golden image. It is killed half-way, and goes on.
//!
//! As root on a kernel with dm-thin: `cargo run --example microvms /var/lib/microvms 500`. Or in a guest:
//! `cargo build --example microvms && tests/vm/run -- target/debug/examples/microvms /var/lib/microvms 500`.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dm_thin::tree::{Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const GOLDEN: &str = "golden";

fn main() -> Result {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        [root, count] => supervise(Path::new(root), count),
        // The runner itself, as `supervise` starts it.
        [root, count, "start"] => start(&open(Path::new(root))?, &ids(count)?),
        _ => Err("usage: microvms DIRECTORY COUNT".into()),
    }
}

fn open(root: &Path) -> Result<SnapshotTree> {
    // The next machines take the blocks of those that are gone: they need not go back to the disk below.
    Ok(SnapshotTree::open(root, Options::new().base_size(Bytes::mib(256)).blkdiscard(false))?)
}

fn ids(count: &str) -> Result<Vec<String>> {
    Ok((0..count.parse()?).map(|n: u32| format!("vm-{n:04}")).collect())
}

/// Adds and activates the disks that are not there, and says so: from then on a hypervisor could use them.
fn start(tree: &SnapshotTree, ids: &[String]) -> Result {
    let missing: Vec<_> = ids.iter().filter(|id| !tree.contains(id)).collect();
    for some in missing.chunks(32) {
        tree.add_many(some, Parent::Snapshot(GOLDEN), &Default::default())
            .into_iter()
            .collect::<std::result::Result<(), _>>()?;
    }
    for some in ids.chunks(32) {
        for (id, device) in some.iter().zip(tree.activate_many(some)) {
            // The machine's first write.
            OpenOptions::new().write(true).open(device?)?.write_all_at(id.as_bytes(), 4096)?;
            println!("{id}");
        }
    }
    Ok(())
}

fn supervise(root: &Path, count: &str) -> Result {
    let tree = open(root)?;
    tree.add(GOLDEN, Parent::Base)?;
    let target = root.join("golden");
    tree.mount(GOLDEN, &target)?;
    std::fs::write(target.join("init"), "#!/bin/sh\n")?;
    tree.unmount(GOLDEN)?;
    tree.seal(GOLDEN)?;
    drop(tree);

    let ids = ids(count)?;
    let mut runner = Command::new(std::env::current_exe()?)
        .arg(root)
        .args([count, "start"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(runner.stdout.take().ok_or("no output")?);
    let started = output.lines().take(ids.len() / 2).count();
    runner.kill()?;
    runner.wait()?;
    println!("killed the runner when {started} of {} machines had started", ids.len());

    let tree = open(root)?;
    let found = tree.list().iter().filter(|info| info.device.is_some()).count();
    assert!(found >= started, "{found} disks are active");
    assert_eq!(tree.check()?, []);
    let begun = Instant::now();
    start(&tree, &ids)?;
    println!(
        "{found} disks were active after that; all {} machines run after {:?} more",
        ids.len(),
        begun.elapsed()
    );

    let begun = Instant::now();
    let stopped = tree.deactivate_many(&ids).into_iter().collect::<std::result::Result<Vec<_>, _>>()?.len();
    tree.remove_many(&ids, &Default::default()).into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    println!("stopped and removed {stopped}: {:?} for each", begun.elapsed() / u32::try_from(stopped)?);
    while tree.deferred() > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("their volumes are deleted: {:?} for each", begun.elapsed() / u32::try_from(stopped)?);
    assert_eq!(tree.check()?, []);
    tree.remove(GOLDEN)?;
    tree.close()?;
    Ok(std::fs::remove_dir_all(root)?)
}
