//! Making a tree: whatever goes wrong at any call, file calls included, it is made or it is not.

use dm_thin::Errno;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};

use crate::rig::{Rig, crash_at_each_call};

/// The next open finds a tree, or makes one.
fn check_next(rig: &Rig, options: Options, what: &str) {
    let tree = rig.open(options).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(tree.check().unwrap(), [], "{what}");
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{what}: {:?}", rig.kernel.leftovers());
}

/// A base that is mounted while it is made.
fn without_lost_found(rig: &Rig) -> Options {
    rig.options().filesystem(Filesystem::Ext4).lost_found(false)
}

#[test]
fn the_first_open_is_atomic_across_crashes() {
    crash_at_each_call(
        |_| (),
        |rig, ()| rig.open(rig.options())?.close(),
        |rig, what| check_next(rig, rig.options(), what),
    );
}

#[test]
fn whatever_crashed_a_base_without_lost_found_has_none() {
    crash_at_each_call(
        |_| (),
        |rig, ()| rig.open(without_lost_found(rig))?.close(),
        |rig, what| {
            let tree = rig.open(without_lost_found(rig)).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(read_lost_found(rig, &tree), Err(Errno::ENOENT), "{what}");
            assert_eq!(tree.check().unwrap(), [], "{what}");
            tree.close().unwrap();
        },
    );
    let rig = Rig::new();
    let tree = rig.open(rig.options().filesystem(Filesystem::Ext4)).unwrap();
    assert_eq!(read_lost_found(&rig, &tree), Err(Errno::EISDIR));
}

/// EISDIR if there is one, ENOENT if not.
fn read_lost_found(rig: &Rig, tree: &SnapshotTree) -> Result<Vec<u8>, Errno> {
    let target = rig.directory.path().canonicalize().unwrap().join("target");
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", &target).unwrap();
    let found = rig.kernel.read_file(&target.join("lost+found"));
    tree.unmount("a").unwrap();
    tree.remove("a").unwrap();
    found
}

#[test]
fn a_failed_first_open_leaves_nothing() {
    failed_first_opens_leave_nothing(Rig::options);
    failed_first_opens_leave_nothing(without_lost_found);
}

fn failed_first_opens_leave_nothing(options: fn(&Rig) -> Options) {
    let whole = Rig::new();
    let tree = whole.open(options(&whole)).unwrap();
    let calls = whole.kernel.calls();
    tree.close().unwrap();
    let mut refused = 0;
    for n in 1..=calls {
        let rig = Rig::new();
        rig.kernel.fail_at(n, Errno::ENOSPC);
        let opened = rig.open(options(&rig));
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
        check_next(&rig, options(&rig), &what);
    }
    assert!(refused > calls / 2, "{refused} of {calls}");
}
