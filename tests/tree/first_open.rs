//! Making a tree: whatever goes wrong at any call, file calls included, it is made or it is not.

use dm_thin::Errno;

use crate::rig::{Rig, crash_at_each_call};

/// The next open finds a tree, or makes one.
fn check_next(rig: &Rig, what: &str) {
    let tree = rig.open(rig.options()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(tree.check().unwrap(), [], "{what}");
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{what}: {:?}", rig.kernel.leftovers());
}

#[test]
fn the_first_open_is_atomic_across_crashes() {
    crash_at_each_call(|_| (), |rig, ()| rig.open(rig.options())?.close(), check_next);
}

#[test]
fn a_failed_first_open_leaves_nothing() {
    let whole = Rig::new();
    let tree = whole.tree();
    let calls = whole.kernel.calls();
    tree.close().unwrap();
    let mut refused = 0;
    for n in 1..=calls {
        let rig = Rig::new();
        rig.kernel.fail_at(n, Errno::ENOSPC);
        let opened = rig.open(rig.options());
        let what = format!("call {n} {:?}", rig.kernel.struck());
        match opened {
            // What was asked has another answer, or none is needed.
            Ok(tree) => tree.close().unwrap(),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("No space left"), "{what}: {error}");
                let left: Vec<_> = std::fs::read_dir(rig.root()).into_iter().flatten().collect();
                assert!(!rig.root().exists(), "{what}: {error}: {left:?}");
            }
        }
        assert!(rig.kernel.is_clean(), "{what}: {:?}", rig.kernel.leftovers());
        check_next(&rig, &what);
    }
    assert!(refused > calls / 2, "{refused} of {calls}");
}
