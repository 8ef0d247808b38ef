//! A tree's life with a crash, and with a failure, at every single call: nothing is lost and nothing leaks.

use std::cell::RefCell;

use dm_thin::Errno;
use dm_thin::tree::{Parent, Result, SnapshotTree};

use crate::rig::{Rig, crash_at_each_call};

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

#[test]
fn a_crash_at_every_call() {
    let promised = RefCell::new(Promised::default());
    crash_at_each_call(
        |_| drop(promised.take()),
        |rig, ()| session(&rig.open(rig.options())?, &mut promised.borrow_mut()),
        |rig, call| {
            let promised = promised.borrow();
            let context = format!("{call}, {promised:?}");
            let tree = rig.open(rig.options()).unwrap_or_else(|error| panic!("{context}: {error}"));
            for id in &promised.there {
                assert!(tree.contains(id), "{context}: {id} is lost");
            }
            let listed = tree.list().len();
            assert!(listed <= promised.there.len() + usize::from(promised.uncertain.is_some()), "{context}");
            // The base, and one thin device for each snapshot.
            let devices = rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap();
            assert_eq!(devices.len(), 1 + listed, "{context}: {devices:?}");
            for snapshot in tree.list() {
                tree.activate(&snapshot.id).unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            tree.close().unwrap_or_else(|error| panic!("{context}: {error}"));
        },
    );
}

/// One call fails, nothing crashes: what the call made is undone, and the tree goes on.
#[test]
fn a_failure_at_every_call() {
    for n in 1.. {
        let rig = Rig::new();
        let before = rig.kernel.calls();
        rig.kernel.fail_at(n, Errno::ENOMEM);
        let mut promised = Promised::default();
        let tree = match rig.open(rig.options()) {
            Ok(tree) => tree,
            Err(error) => {
                assert!(rig.kernel.is_clean(), "call {n}: {error}: {:?}", rig.kernel.leftovers());
                continue;
            }
        };
        let _ = session(&tree, &mut promised);
        let reached = rig.kernel.calls() - before >= n;
        drop(tree);
        rig.kernel.heal();
        let tree = rig.open(rig.options()).unwrap_or_else(|error| panic!("call {n}: {error}"));
        promised.there.iter().for_each(|id| assert!(tree.contains(id), "call {n}: {id} is lost"));
        tree.close().unwrap_or_else(|error| panic!("call {n}: {error}"));
        assert!(rig.kernel.is_clean(), "call {n}: {:?}", rig.kernel.leftovers());
        if !reached {
            assert!(n > 40, "{n} calls");
            break;
        }
    }
}
