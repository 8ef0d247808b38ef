//! A full disk below the state.

use dm_thin::tree::Parent;

use crate::fixture::Fixture;

#[test]
fn on_a_full_disk_everything_can_be_removed_and_nothing_added() {
    let mut fixture = Fixture::new(0);
    let ids: Vec<_> = (0..300).map(|index| format!("a-name-of-some-length-{index}")).collect();
    ids.iter().for_each(|id| fixture.tree().add(id, Parent::Base).unwrap());
    fixture.owner.set_full(true);
    // What room is left is for removals.
    let mut added = 0;
    let error = loop {
        match fixture.tree().add(format!("more-{added}"), Parent::Base) {
            Ok(()) => added += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_out_of_space(), "{error}");
    assert_eq!(fixture.tree().list().len(), ids.len() + added);
    for snapshot in fixture.tree().list() {
        fixture.tree().remove(snapshot.id.as_str()).unwrap();
    }
    assert!(fixture.tree().list().is_empty());
    fixture.owner.set_full(false);
    for power in [false, true] {
        fixture.recover(power);
        fixture.owner.check(Some(&[]));
    }
}
