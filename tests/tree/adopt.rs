//! Thin devices of a shared pool that become snapshots.

use dm_thin::thin::{ActivateOptions, Origin, ThinId, ThinPool};
use dm_thin::tree::{Adoption, Error, Finding, Labels, Lineage, Parent, Since};
use dm_thin::units::Bytes;

use crate::metadata::changed;
use crate::rig::{Rig, crash_at_each_call};

const SIZE: Bytes = Bytes::mib(16);

fn thin(id: u32) -> ThinId {
    ThinId::new(id).unwrap()
}

/// A pool of somebody else's with the thin devices 1, 2, a snapshot of it, and 3, a snapshot of that.
fn pool(rig: &Rig) -> ThinPool {
    let pool = rig.pool();
    pool.create_thin(thin(1)).unwrap();
    write(rig, &pool, 1, 0..10);
    pool.create_snap(thin(2), &Origin::Inactive(thin(1))).unwrap();
    write(rig, &pool, 2, 8..12);
    pool.create_snap(thin(3), &Origin::Inactive(thin(2))).unwrap();
    pool
}

fn write(rig: &Rig, pool: &ThinPool, id: u32, blocks: std::ops::Range<u64>) {
    let (name, uuid) = ("theirs".parse().unwrap(), "LVM-theirs".parse().unwrap());
    let options = ActivateOptions::new();
    let volume = pool.activate_with(&name, &uuid, thin(id), SIZE.sectors(), &options).unwrap();
    rig.kernel.write("theirs", blocks).unwrap();
    volume.deactivate().unwrap();
}

fn family() -> [Adoption; 3] {
    let mut labels = Labels::new();
    labels.set("from", "another program").unwrap();
    [
        Adoption::new("one", thin(1), SIZE).labels(labels),
        Adoption::new("two", thin(2), SIZE).parent("one"),
        Adoption::new("three", thin(3), Bytes::mib(32)).parent("two"),
    ]
}

#[test]
fn thin_devices_become_snapshots_with_their_ids() {
    let rig = Rig::new();
    let pool = pool(&rig);
    let before = (rig.kernel.thin_devices("vg-pool").unwrap(), pool.status().unwrap());
    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    assert_eq!(tree.adopt(&family()).unwrap(), 3);
    let found: Vec<_> = tree.list().into_iter().map(|it| (it.id.to_string(), it.thin_id, it.size)).collect();
    let expected = [("one", thin(1), SIZE), ("three", thin(3), Bytes::mib(32)), ("two", thin(2), SIZE)];
    assert_eq!(found, expected.map(|(id, thin_id, size)| (id.to_owned(), thin_id, size)));
    assert!(matches!(tree.get("three").unwrap().parent, Lineage::Snapshot(id) if id.as_str() == "two"));
    assert_eq!(tree.get("one").unwrap().labels.get("from"), Some("another program"));
    assert_eq!(changed(&tree, Since::Snapshot("one"), "two"), ["8..12"]);
    assert_eq!(tree.check().unwrap(), []);
    // Once more: nothing is new.
    assert_eq!(tree.adopt(&family()).unwrap(), 0);
    tree.close().unwrap();
    drop(tree);
    // Until here nothing in the pool has changed.
    assert_eq!((rig.kernel.thin_devices("vg-pool").unwrap(), pool.status().unwrap()), before);

    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    tree.add("four", Parent::Snapshot("three")).unwrap();
    tree.activate("four").unwrap();
    tree.remove("two").unwrap();
    tree.reap().unwrap();
    assert!(!pool.thin_ids().unwrap().contains(&thin(2)));
    assert_eq!(changed(&tree, Since::Snapshot("one"), "three"), ["8..12"]);
    tree.add("with a base", Parent::Base).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn what_cannot_be_adopted_is_refused_and_nothing_is() {
    let rig = Rig::new();
    let pool = pool(&rig);
    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    tree.add("taken", Parent::Base).unwrap();
    let own = tree.get("taken").unwrap().thin_id;
    let refused = |device: Adoption| {
        let error = tree.adopt(&[Adoption::new("before", thin(1), SIZE), device]).unwrap_err();
        assert_eq!(tree.list().len(), 1, "{error}");
        error.to_string()
    };
    assert_eq!(refused(Adoption::new("a", thin(9), SIZE)), "thin device: 9: is not in the pool");
    let text = refused(Adoption::new("a", own, SIZE));
    assert_eq!(text, format!("thin device: {own}: is a volume of this tree already"));
    assert_eq!(
        refused(Adoption::new("a", thin(1), SIZE)),
        "thin device: 1: is a volume of this tree already"
    );
    assert_eq!(refused(Adoption::new("taken", thin(2), SIZE)), r#"snapshot "taken" exists"#);
    assert_eq!(refused(Adoption::new("before", thin(2), SIZE)), r#"snapshot "before" exists"#);
    assert_eq!(refused(Adoption::new("a", thin(2), SIZE).parent("none")), r#"no snapshot "none""#);
    let small = Adoption::new("a", thin(2), Bytes::mib(8)).parent("before");
    assert!(refused(small).ends_with("less than its parent's"));
    assert!(refused(Adoption::new("a", thin(2), Bytes(1))).starts_with("snapshot size: "));
    assert!(refused(Adoption::new("", thin(2), SIZE)).starts_with("snapshot id"));

    let (name, uuid) = ("theirs".parse().unwrap(), "LVM-theirs".parse().unwrap());
    let options = ActivateOptions::new();
    let volume = pool.activate_with(&name, &uuid, thin(2), SIZE.sectors(), &options).unwrap();
    assert!(refused(Adoption::new("a", thin(2), SIZE)).contains("theirs"));
    volume.deactivate().unwrap();
    assert_eq!(tree.adopt(&family()).unwrap(), 3);
    tree.close().unwrap();

    let rig = Rig::new();
    let tree = rig.tree();
    let error = tree.adopt(&family()).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "thin device", .. }), "{error}");
    tree.close().unwrap();
}

#[test]
fn a_tree_in_a_shared_pool_has_a_base_when_it_is_needed() {
    let rig = Rig::new();
    let pool = rig.pool();
    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    assert_eq!((tree.base_id(), pool.thin_ids().unwrap()), (None, vec![]));
    tree.keep_ready(Parent::Base, 1).unwrap();
    tree.refill_ready().unwrap();
    let base = tree.base_id();
    assert!(base.is_some());
    tree.add("a", Parent::Base).unwrap();
    assert_eq!(tree.base_id(), base);
    tree.close().unwrap();
    drop(tree);
    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    assert_eq!(tree.base_id(), base);
    tree.close().unwrap();
}

/// Two threads need the base at once: there is one.
#[test]
fn the_base_is_made_once() {
    let rig = Rig::new();
    let pool = rig.pool();
    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    let tree = &tree;
    std::thread::scope(|scope| {
        for id in ["a", "b", "c", "d"] {
            scope.spawn(move || tree.add(id, Parent::Base).unwrap());
        }
    });
    assert_eq!(pool.thin_ids().unwrap().len(), 5);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn a_crash_leaves_the_first_of_them_adopted() {
    crash_at_each_call(
        |rig| {
            let pool = pool(rig);
            (rig.open(rig.adopting("vg-pool")).unwrap(), pool)
        },
        |_, (tree, _)| tree.adopt(&family()).map(drop),
        |rig, call| {
            reactivate(rig);
            let tree = rig.open(rig.adopting("vg-pool")).unwrap_or_else(|error| panic!("{call}: {error}"));
            let found = ["one", "two", "three"].map(|id| tree.contains(id));
            assert!(found.is_sorted_by(|one, two| one >= two), "{call}: {found:?}");
            let adopted = found.iter().filter(|there| **there).count();
            let unknown = tree.check().unwrap();
            assert!(
                unknown.iter().all(|it| matches!(it, Finding::UnknownVolume { own: false, .. })),
                "{call}"
            );
            assert_eq!(unknown.len(), 3 - adopted, "{call}");
            assert_eq!(tree.adopt(&family()).unwrap(), 3 - adopted, "{call}");
            tree.close().unwrap();
            drop(tree);
            deactivate(rig);
        },
    );
}

/// After a power cut its owner activates the pool.
fn reactivate(rig: &Rig) {
    if rig.kernel.thin_devices("vg-pool").is_err() {
        rig.pool();
    }
}

fn deactivate(rig: &Rig) {
    ThinPool::open(rig.dm(), &"vg-pool".parse().unwrap()).unwrap().deactivate().unwrap();
}

/// Whatever the crash of the first use of the base leaves, the next open goes on.
#[test]
fn a_crash_while_the_base_is_made_leaves_a_tree() {
    crash_at_each_call(
        |rig| {
            let pool = rig.pool();
            (rig.open(rig.adopting("vg-pool")).unwrap(), pool)
        },
        |_, (tree, _)| tree.add("a", Parent::Base),
        |rig, call| {
            reactivate(rig);
            let tree = rig.open(rig.adopting("vg-pool")).unwrap_or_else(|error| panic!("{call}: {error}"));
            tree.add("b", Parent::Base).unwrap();
            tree.close().unwrap();
            drop(tree);
            deactivate(rig);
        },
    );
}
