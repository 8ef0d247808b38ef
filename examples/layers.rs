//! A container engine's storage: images as chains of committed layers, containers on top, and a garbage collection.
//!
//! As root on a kernel with dm-thin: `cargo run --example layers /var/lib/layers`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dm_thin::tree::{AddOptions, Error, Labels, Options, Parent, RemoveOptions, SnapshotTree};
use dm_thin::units::Bytes;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A layer that an image or a container needs is not collected.
const IN_USE: &str = "example.com/in-use";

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let root = std::env::args().nth(1).ok_or("usage: layers DIRECTORY")?;
    run(Path::new(&root), Options::new().base_size(Bytes::gib(1)))
}

/// The story, in an empty or new directory; at the end it is gone.
pub fn run(root: &Path, options: Options) -> Result {
    let tree = SnapshotTree::open(root, options)?;
    let target = root.join("mounted");
    unpack(&tree, &target, Parent::Base, "debian", &[("etc/os", "debian")])?;
    unpack(&tree, &target, Parent::Snapshot("debian"), "python", &[("bin/python", "3.11")])?;
    unpack(&tree, &target, Parent::Snapshot("debian"), "old-python", &[("bin/python", "2.7")])?;
    for image in ["debian", "python"] {
        tree.change_labels(image, |labels| labels.set(IN_USE, "image"))?;
    }

    // Two containers of one image; what one writes the other does not see.
    for name in ["web", "worker"] {
        tree.add_with(
            name,
            Parent::Snapshot("python"),
            &AddOptions::new().labels(label(IN_USE, "container")?),
        )?;
        tree.mount(name, root.join(name))?;
        fs::write(root.join(name).join("name"), name)?;
    }
    assert_eq!(fs::read_to_string(root.join("web/name"))?, "web");
    assert_eq!(fs::read_to_string(root.join("worker/bin/python"))?, "3.11");
    print!("{}", tree.to_text());

    // `docker commit`: the container's file system is a layer now. The container itself goes on.
    tree.add("commit-1", Parent::Snapshot("web"))?;
    tree.mount("commit-1", &target)?; // replays the log
    tree.unmount("commit-1")?;
    tree.commit("commit-1", "my-web", label(IN_USE, "image")?)?;

    println!("collected: {:?}", collect(&tree)?);
    assert!(!tree.contains("old-python") && tree.contains("debian"));
    for name in ["web", "worker"] {
        tree.unmount(name)?;
        tree.remove(name)?;
    }
    for image in ["debian", "python", "my-web"] {
        tree.remove_label(image, IN_USE)?;
    }
    println!("collected: {:?}", collect(&tree)?);
    assert_eq!((tree.list(), tree.check()?), (vec![], vec![]));
    tree.close()?;
    Ok(fs::remove_dir_all(root)?)
}

/// Unpacks a layer on top of another one: it has its name when all of it is there, and never before.
fn unpack(
    tree: &SnapshotTree,
    target: &Path,
    parent: Parent<'_>,
    name: &str,
    files: &[(&str, &str)],
) -> Result {
    let extract = format!("extract-{name}");
    tree.add(&extract, parent)?;
    tree.mount(&extract, target)?;
    for (path, text) in files {
        let path = target.join(path);
        fs::create_dir_all(path.parent().unwrap_or(target))?;
        fs::write(path, text)?;
    }
    tree.unmount(&extract)?;
    tree.commit(&extract, name, label("example.com/layer", name)?)?;
    Ok(())
}

fn label(key: &str, value: &str) -> Result<Labels> {
    let mut labels = Labels::new();
    labels.set(key, value)?;
    Ok(labels)
}

/// Removes what nothing needs: from the leaves to the base.
fn collect(tree: &SnapshotTree) -> Result<BTreeSet<String>> {
    let mut removed = BTreeSet::new();
    for node in tree.walk().into_iter().rev() {
        if tree.labels(&node.id)?.get(IN_USE).is_some() {
            continue;
        }
        match tree.remove_with(&node.id, &RemoveOptions::new().refuse_children(true)) {
            Ok(_) => drop(removed.insert(node.id.to_string())),
            Err(Error::HasChildren { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(removed)
}
