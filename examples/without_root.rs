//! A test of a program that uses a tree, as any user and without device mapper: the crate's model of the kernel.
//!
//! `cargo run --features model --example without_root`

use std::sync::Arc;

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{Filesystem, Options, Parent, Result, SnapshotTree};
use dm_thin::units::Bytes;

/// What a program might do with a tree.
fn start_machine(tree: &SnapshotTree, id: &str) -> Result<std::path::PathBuf> {
    tree.add(id, Parent::Snapshot("golden"))?;
    tree.activate(id)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root");
    // Each call of the kernel fails in turn; whichever it is, nothing is lost and nothing is left.
    for failing in 1.. {
        let kernel = Arc::new(ModelKernel::new());
        let options = || {
            let small = Options::new().data_size(Bytes::mib(64)).base_size(Bytes::mib(16));
            small.filesystem(Filesystem::None).kernel(kernel.clone()).udev(UdevPolicy::None)
        };
        let tree = SnapshotTree::open(&root, options())?;
        tree.add("golden", Parent::Base)?;
        tree.seal("golden")?;

        kernel.fail_at(failing, dm_thin::Errno::EIO);
        let started = start_machine(&tree, "vm");
        let untouched = kernel.struck().is_none();
        drop(tree);
        let tree = SnapshotTree::open(&root, options())?;
        assert!(tree.contains("golden") && (started.is_err() || tree.contains("vm")));
        assert_eq!(tree.check()?, []);
        tree.close()?;
        assert!(kernel.is_clean(), "{:?}", kernel.leftovers());
        std::fs::remove_dir_all(&root)?;
        if untouched {
            println!("{} calls of the kernel failed, one at a time; nothing was lost", failing - 1);
            break;
        }
    }
    Ok(())
}
