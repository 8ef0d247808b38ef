//! Whose root it is: one manager's, whatever is done to its names.

use std::fs;
use std::process::Command;
use std::thread;

use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Parent, ReceiveOptions, RemoveOptions, SendOptions, Since, SnapshotTree};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::rig::Rig;

#[test]
fn a_tree_stays_locked_when_the_files_in_its_root_are_deleted() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    fs::remove_file(rig.root().join("lock")).unwrap();
    let error = rig.open(rig.options()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    tree.close().unwrap();
}

#[test]
fn a_renamed_root_keeps_its_open_tree() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let moved = rig.directory.path().join("moved");
    fs::rename(rig.root(), &moved).unwrap();
    fs::create_dir(rig.root()).unwrap();
    tree.add("b", Parent::Base).unwrap();
    tree.grow_pool(Bytes::mib(128)).unwrap();
    tree.close().unwrap();
    drop(tree);
    assert_eq!(fs::read_dir(rig.root()).unwrap().count(), 0);
    let tree = SnapshotTree::open(&moved, rig.options()).unwrap();
    assert!(tree.contains("a") && tree.contains("b"));
    tree.close().unwrap();
}

#[test]
fn a_copied_root_is_refused_while_its_pool_is_in_use() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let copy = rig.directory.path().join("copy");
    assert!(Command::new("cp").arg("-a").args([&rig.root(), &copy]).status().unwrap().success());
    tree.add("b", Parent::Base).unwrap();
    let before = rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap();
    let error = SnapshotTree::open(&copy, rig.options()).unwrap_err();
    assert!(matches!(error, Error::OtherRoot { .. } | Error::Locked { .. }), "{error}");
    assert_eq!(rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap(), before);
    drop(tree);
    let error = SnapshotTree::open(&copy, rig.options()).unwrap_err();
    assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    let tree = rig.tree();
    assert!(tree.contains("b"));
    tree.close().unwrap();
}

#[test]
fn oversized_state_files_are_refused_unread() {
    let rig = Rig::new();
    rig.tree().close().unwrap();
    // Sparse: to read one would need that much memory.
    let set_len = |name: &str, len: u64| {
        let file = fs::File::options().write(true).create(true).truncate(false).open(rig.root().join(name));
        file.unwrap().set_len(len).unwrap();
    };
    // What is no state is as good as nothing.
    for name in ["mounts.0", "lock"] {
        set_len(name, 1 << 40);
        rig.tree().close().unwrap();
    }
    for name in ["journal.0", "state.json"] {
        set_len(name, 1 << 40);
        let error = rig.open(rig.options()).unwrap_err();
        let path = rig.root().join(name);
        assert!(matches!(&error, Error::Corrupt { path: at, .. } if *at == path), "{error}");
        set_len(name, 0);
    }
}

#[test]
fn every_call_after_close_returns_closed() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.close().unwrap();
    let results = [
        ("activate", tree.activate("a").map(drop)),
        ("add", tree.add("b", Parent::Base)),
        ("add_with", tree.add_with("b", Parent::Base, &AddOptions::new())),
        ("ancestors", tree.ancestors("a").map(drop)),
        ("bookmark", tree.bookmark("a").map(drop)),
        ("changed", tree.changed(Since::Base, "a").map(drop)),
        ("check", tree.check().map(drop)),
        ("children", tree.children("a").map(drop)),
        ("close", tree.close()),
        ("create", tree.create("b", Some(Parent::Base), &AddOptions::new()).map(drop)),
        ("deactivate", tree.deactivate("a")),
        ("deactivate_deferred", tree.deactivate_deferred("a").map(drop)),
        ("depth", tree.depth("a").map(drop)),
        ("discard_receive", tree.discard_receive(Uuid::nil())),
        ("extend_pool", tree.extend_pool().map(drop)),
        ("get", tree.get("a").map(drop)),
        ("grow_pool", tree.grow_pool(Bytes::mib(128))),
        ("holders", tree.holders("a").map(drop)),
        ("labels", tree.labels("a").map(drop)),
        ("mount", tree.mount("a", rig.directory.path().join("target"))),
        ("open_snapshot", tree.open_snapshot("a").map(drop)),
        ("own_data", tree.own_data("a").map(drop)),
        ("parent", tree.parent("a").map(drop)),
        ("reap", tree.reap().map(drop)),
        ("receive", tree.receive(&[][..], ReceiveOptions::new()).map(drop)),
        ("remove", tree.remove("a")),
        ("remove_label", tree.remove_label("a", "k").map(drop)),
        ("remove_with", tree.remove_with("a", &RemoveOptions::new()).map(drop)),
        ("rename", tree.rename("a", "a")),
        ("repair", tree.repair().map(drop)),
        ("seal", tree.seal("a").map(drop)),
        ("send", tree.send("a", None, std::io::sink(), SendOptions::new()).map(drop)),
        ("send_tree", tree.send_tree("a", std::io::sink(), SendOptions::new()).map(drop)),
        ("set_label", tree.set_label("a", "k", "v")),
        ("snapshot_status", tree.snapshot_status("a").map(drop)),
        ("status", tree.status().map(drop)),
        ("unmount", tree.unmount("a")),
        ("unseal", tree.unseal("a").map(drop)),
        ("usage", tree.usage().map(drop)),
        ("walk_from", tree.walk_from("a").map(drop)),
        ("watch", tree.watch().map(drop)),
    ];
    for (call, result) in results {
        assert!(matches!(result, Err(Error::Closed)), "{call}: {result:?}");
    }
}

#[test]
fn calls_overtaken_by_close_return_closed() {
    for _ in 0..20 {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.add("a", Parent::Base).unwrap();
        thread::scope(|scope| {
            for thread in 0..4 {
                let tree = &tree;
                scope.spawn(move || {
                    for round in 0.. {
                        let result = match thread {
                            0 => tree.add(format!("b{round}"), Parent::Base),
                            1 => tree.status().map(drop),
                            2 => tree.check().map(drop),
                            _ => tree.snapshot_status("a").map(drop),
                        };
                        match result {
                            Ok(()) => {}
                            Err(Error::Closed) => break,
                            Err(error) => panic!("{thread}: {error}"),
                        }
                    }
                });
            }
            while tree.list().len() < 4 {}
            tree.close().unwrap();
        });
        assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
    }
}

#[test]
fn a_tree_has_one_manager_across_copied_roots() {
    let rig = Rig::new();
    // A pool that was there before does not carry the name of a root.
    let pool = rig.pool();
    let name = pool.name().to_string();
    let other = rig.directory.path().join("other");
    let options = || rig.adopting(&name);
    let tree = SnapshotTree::open(&other, options()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let copy = rig.directory.path().join("copy");
    assert!(Command::new("cp").arg("-a").args([&other, &copy]).status().unwrap().success());
    tree.add("b", Parent::Base).unwrap();
    let before = rig.kernel.thin_devices(&name).unwrap();
    for options in [options(), options().take_over_pool(true)] {
        let error = SnapshotTree::open(&copy, options).unwrap_err();
        assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    }
    assert_eq!(rig.kernel.thin_devices(&name).unwrap(), before);
    tree.close().unwrap();
    drop(tree);
    pool.deactivate().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn open_takes_over_the_claim_of_a_dead_manager() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let lock = format!("{}-lock", tree.pool().name());
    // Killed: nothing that it does in its end reaches the kernel.
    rig.kernel.cut_at(1);
    drop(tree);
    rig.kernel.heal();
    assert!(rig.kernel.leftovers().contains(&format!("device {lock}")));
    let tree = rig.tree();
    assert!(tree.contains("a"));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}
