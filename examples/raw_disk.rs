//! An appliance: a tree that has a whole disk, behind a label of its own, and is found again after a restart.
//!
//! As root, with a disk that may be overwritten: `cargo run --example raw_disk /dev/sdx /var/lib/appliance`.

use std::path::Path;

use dm_thin::tree::{Filesystem, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [disk, root] = &words[..] else { return Err("usage: raw_disk DISK DIRECTORY".into()) };
    run(Path::new(disk), Path::new(root))
}

/// The story, on an empty disk; the tree stays there.
pub fn run(disk: &Path, root: &Path) -> Result {
    let source = PoolSource::Device { path: disk.to_owned() };
    let options = || Options::new().pool_source(source.clone()).base_size(Bytes::mib(64));
    // Refused if anything is on the disk: a file system, a partition table, another tree.
    let tree = SnapshotTree::open(root, options().filesystem(Filesystem::Ext4))?;
    tree.add("volume", Parent::Base)?;
    let target = root.join("mounted");
    tree.mount("volume", &target)?;
    std::fs::write(target.join("file"), "text")?;
    tree.unmount("volume")?;
    tree.close()?;
    drop(tree);

    // After a restart: the disk is recognised by its label, whatever its name is then.
    let tree = SnapshotTree::open(root, options())?;
    tree.mount("volume", &target)?;
    assert_eq!(std::fs::read_to_string(target.join("file"))?, "text");
    tree.unmount("volume")?;
    println!("{}", tree.status()?);

    // A second tree does not get the disk.
    let refused = SnapshotTree::open(root.join("second"), options()).err();
    println!("a second tree: {}", refused.ok_or("a second tree took the disk")?);
    Ok(tree.close()?)
}
