//! An operator's look at a tree that another process works with: nothing is locked, written or activated.
//!
//! As root: `cargo run --example look /var/lib/example`.

use std::path::Path;

use dm_thin::thin::PoolStatus;
use dm_thin::tree::{Options, Result, SnapshotTree};

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = std::env::args().nth(1).ok_or("usage: look DIRECTORY")?;
    run(Path::new(&root))?;
    Ok(())
}

/// Prints what is there, and returns how many snapshots that is.
pub fn run(root: &Path) -> Result<usize> {
    let tree = SnapshotTree::open_read_only(root, &Options::new())?;
    match tree.manager() {
        Some(manager) => println!("tree {}, open in {manager}", tree.uuid()),
        None => println!("tree {}, not open", tree.uuid()),
    }
    match tree.pool() {
        Some((name, PoolStatus::Usage(usage))) => {
            println!("pool {name}: {} of {} data blocks", usage.used_data, usage.total_data);
        }
        Some((name, status)) => println!("pool {name}: {}", status.mode()),
        None => println!("the pool is not active"),
    }
    print!("{}", tree.to_text());
    let snapshots = tree.list();
    for info in &snapshots {
        let mounted = info.mounted.as_ref().map(|target| format!(" on {}", target.display()));
        if let Some(device) = &info.device {
            println!("{} is {}{}", info.id, device.display(), mounted.unwrap_or_default());
        }
    }
    Ok(snapshots.len())
}
