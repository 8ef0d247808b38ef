//! The tree on the model kernel: a crash at every single call, and nothing is lost and nothing leaks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use dm_thin::dm::UdevPolicy;
use dm_thin::model::{Cut, ModelKernel};
use dm_thin::tree::Result;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

fn open(kernel: &Arc<ModelKernel>, root: &Path) -> Result<SnapshotTree> {
    let options = Options::new()
        .kernel(kernel.clone())
        .udev(UdevPolicy::None)
        .data_size(Bytes::mib(64))
        .metadata_size(Bytes::mib(4))
        .base_size(Bytes::mib(16))
        .filesystem(Filesystem::None);
    SnapshotTree::open(root, options)
}

/// What was promised to the caller, as far as it got. Uncertain is the one whose call failed.
#[derive(Debug, Default)]
struct Promised {
    there: Vec<&'static str>,
    uncertain: Option<&'static str>,
}

impl Promised {
    fn add(&mut self, tree: &SnapshotTree, id: &'static str, parent: Parent<'_>) -> Result<()> {
        self.uncertain = Some(id);
        tree.add(id, parent)?;
        self.there.push(id);
        self.uncertain = None;
        Ok(())
    }

    fn remove(&mut self, tree: &SnapshotTree, id: &'static str) -> Result<()> {
        self.uncertain = Some(id);
        self.there.retain(|other| *other != id);
        tree.remove(id)?;
        self.uncertain = None;
        Ok(())
    }
}

fn session(tree: &SnapshotTree, promised: &mut Promised) -> Result<()> {
    promised.add(tree, "image", Parent::Base)?;
    promised.add(tree, "one", Parent::Snapshot("image"))?;
    tree.activate("image")?;
    promised.add(tree, "two", Parent::Snapshot("image"))?;
    tree.deactivate("image")?;
    promised.remove(tree, "one")?;
    tree.close()
}

/// Crash at call `n` of opening and using a tree. Whether the session got to its end before.
fn crash(n: u64, answer_lost: bool, power: bool) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let kernel = Arc::new(ModelKernel::new());
    if answer_lost {
        kernel.cut_after(n)
    } else {
        kernel.cut_at(n)
    };

    let mut promised = Promised::default();
    // Unwinding: an error would be handled, and a process that is dead handles nothing.
    kernel.unwind_at_cut(true);
    let run = || open(&kernel, &root).and_then(|tree| session(&tree, &mut promised));
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => {
            result.unwrap();
            return true;
        }
        Err(payload) => assert!(payload.is::<Cut>()),
    }
    let kernel = if power {
        Arc::new(kernel.power_cut())
    } else {
        kernel.heal();
        kernel
    };

    let context = format!("call {n}, answer lost: {answer_lost}, power: {power}, {promised:?}");
    let tree = open(&kernel, &root).unwrap_or_else(|error| panic!("{context}: {error}"));
    for id in &promised.there {
        assert!(tree.contains(id), "{context}: {id} is lost");
    }
    let listed = tree.list().len();
    assert!(listed <= promised.there.len() + usize::from(promised.uncertain.is_some()), "{context}");
    // The base, and one thin device for each snapshot.
    let pool = tree.pool().name().to_string();
    let devices = kernel.thin_devices(&pool).unwrap();
    assert_eq!(devices.len(), 1 + listed, "{context}: {devices:?}");
    for snapshot in tree.list() {
        tree.activate(snapshot.id.as_str()).unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    tree.close().unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(kernel.is_clean(), "{context}: {:?}", kernel.leftovers());
    false
}

#[test]
fn a_crash_at_every_call() {
    for answer_lost in [false, true] {
        for power in [false, true] {
            let calls = (1..).take_while(|&n| !crash(n, answer_lost, power)).count();
            assert!(calls > 40, "{calls}");
        }
    }
}

/// One call fails, nothing crashes: what the call made is undone, and the tree goes on.
#[test]
fn a_failure_at_every_call() {
    let errno = dm_thin::Errno::ENOMEM;
    for n in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let kernel = Arc::new(ModelKernel::new());
        let before = kernel.calls();
        kernel.fail_at(n, errno);
        let mut promised = Promised::default();
        let tree = match open(&kernel, &root) {
            Ok(tree) => tree,
            Err(error) => {
                assert!(kernel.is_clean(), "call {n}: {error}: {:?}", kernel.leftovers());
                continue;
            }
        };
        let _ = session(&tree, &mut promised);
        let reached = kernel.calls() - before >= n;
        drop(tree);
        kernel.heal();
        let tree = open(&kernel, &root).unwrap_or_else(|error| panic!("call {n}: {error}"));
        promised.there.iter().for_each(|id| assert!(tree.contains(id), "call {n}: {id} is lost"));
        tree.close().unwrap_or_else(|error| panic!("call {n}: {error}"));
        assert!(kernel.is_clean(), "call {n}: {:?}", kernel.leftovers());
        if !reached {
            break;
        }
    }
}
