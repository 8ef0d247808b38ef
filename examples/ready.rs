//! A microVM runner whose machines start in milliseconds: their disks are made before anybody asks for them.
//!
//! As root on a kernel with dm-thin: `cargo run --example ready /var/lib/ready`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dm_thin::tree::{AddOptions, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const GOLDEN: Parent<'static> = Parent::Snapshot("golden");

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let root = std::env::args().nth(1).ok_or("usage: ready DIRECTORY")?;
    run(Path::new(&root), Options::new().base_size(Bytes::gib(1)))
}

/// The story, in an empty or new directory; at the end it is gone.
pub fn run(root: &Path, options: Options) -> Result {
    let tree = SnapshotTree::open(root, options)?;
    tree.add("golden", Parent::Base)?;
    let target = root.join("golden");
    tree.mount("golden", &target)?;
    fs::write(target.join("init"), "#!/bin/sh\n")?;
    tree.unmount("golden")?;
    tree.seal("golden")?;

    let (_, made) = start(&tree, "first")?;
    // From now on the tree's thread keeps four; `refill_ready` does not wait for it.
    tree.keep_ready(GOLDEN, 4)?;
    tree.refill_ready()?;
    for id in ["second", "third", "fourth"] {
        let (device, taken) = start(&tree, id)?;
        println!("{id}: {} after {taken:?}; {made:?} when it had to be made", device.display());
    }

    for info in tree.list().iter().filter(|info| info.id.as_str() != "golden") {
        tree.remove(info.id.as_str())?;
    }
    tree.keep_ready(GOLDEN, 0)?;
    tree.remove("golden")?;
    tree.close()?;
    Ok(fs::remove_dir_all(root)?)
}

/// A disk for a new machine, and how long it took: a snapshot that is ready is renamed, and its record is written.
fn start(tree: &SnapshotTree, id: &str) -> Result<(PathBuf, Duration)> {
    let begun = Instant::now();
    let device = tree.add_activated(id, GOLDEN, &AddOptions::new())?;
    Ok((device, begun.elapsed()))
}
