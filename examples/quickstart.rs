//! The main job: an image and a container as snapshots in a thin pool, in a directory of your choice.
//!
//! Run it as root on a kernel with dm-thin: `cargo run --example quickstart /var/lib/quickstart`, or in a
//! guest that brings its own: `tests/vm/run demo`.

use std::fs;
use std::path::Path;

use dm_thin::tree::{Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let root = std::env::args().nth(1).ok_or("usage: quickstart DIRECTORY")?;
    run(Path::new(&root), Options::new().base_size(Bytes::gib(1)))
}

/// The story, on an empty or new directory; at the end it is gone.
pub fn run(root: &Path, options: Options) -> Result {
    let tree = SnapshotTree::open(root, options)?;
    println!("opened {}: a pool on two sparse files, a base with an empty file system", root.display());
    println!("pool status from the kernel: {}", tree.status()?.pool);

    let (image, container) = (root.join("image"), root.join("container"));
    tree.add("image", Parent::Base)?;
    tree.mount("image", &image)?;
    fs::write(image.join("release"), "version 1\n")?;
    tree.unmount("image")?;
    println!("added \"image\" from the base, mounted, filled and unmounted it");

    tree.add("container", Parent::Snapshot("image"))?;
    tree.mount("container", &container)?;
    println!("added \"container\" from \"image\"; it reads {:?}", read(&container)?);
    fs::write(container.join("release"), "version 2\n")?;

    tree.mount("image", &image)?;
    println!("the container wrote {:?}, the image still has {:?}", read(&container)?, read(&image)?);
    assert_eq!((read(&container)?, read(&image)?), ("version 2\n".into(), "version 1\n".into()));
    tree.unmount("image")?;
    tree.unmount("container")?;

    print!("the tree:\n{}", tree.to_text());
    tree.remove("container")?;
    tree.remove("image")?;
    tree.close()?;
    fs::remove_dir_all(root)?;
    println!("removed both, closed the tree, and deleted {}", root.display());
    Ok(())
}

fn read(directory: &Path) -> Result<String> {
    Ok(fs::read_to_string(directory.join("release"))?)
}
