//! Images before this crate's own reader of metadata.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::image::pool;
use crate::model::image::{PoolContents, PoolImage};
use crate::thin::metadata::Metadata;

/// Without space maps, a data block may be shared at different virtual blocks unnoticed; no kernel shares one so.
fn compare(metadata: &Metadata, contents: &PoolContents, has_counts: bool) {
    let devices = metadata.devices().unwrap();
    assert!(devices.iter().map(|device| device.id.get()).eq(contents.thins.keys().copied()));
    for (device, thin) in devices.iter().zip(contents.thins.values()) {
        assert_eq!(device.mapped.0, thin.mappings.len() as u64);
        assert_eq!(
            (device.creation_time, device.snapshotted_time),
            (thin.creation_time, thin.snapshotted_time)
        );
        assert_eq!(device.transaction_id.0, thin.transaction_id);
        let runs = metadata.mappings(device.id, 0).unwrap().map(|run| run.unwrap());
        let blocks = runs.flat_map(|run| {
            (0..run.length).map(move |at| (run.virtual_block + at, (run.data_block + at, run.time)))
        });
        assert!(blocks.eq(thin.mappings.iter().map(|(&at, &to)| (at, to))));
    }
    for usage in metadata.usage().unwrap() {
        let (id, mappings) = (usage.id.get(), &contents.thins[&usage.id.get()].mappings);
        let others = contents.thins.iter().filter(|(other, _)| **other != id);
        let others: BTreeSet<(u64, u64)> =
            others.flat_map(|(_, thin)| thin.mappings.iter()).map(|(&at, &(data, _))| (data, at)).collect();
        let own = mappings.iter().map(|(&at, &(data, _))| (data, at));
        let in_place = own.clone().filter(|block| !others.contains(block)).count() as u64;
        let anywhere = |data| others.range((data, 0)..=(data, u64::MAX)).next().is_some();
        let exclusive = own.filter(|(data, _)| !anywhere(*data)).count() as u64;
        let most = if has_counts { exclusive } else { in_place };
        assert_eq!(usage.mapped.0, mappings.len() as u64);
        assert!((exclusive..=most).contains(&usage.exclusive.0), "{usage:?}: {exclusive} to {most}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_reader_finds_what_images_were_made_from(contents in pool(), other in pool()) {
        let image = PoolImage::new(&contents, None).unwrap();
        let held = image.hold().unwrap();
        compare(&Metadata::open(Arc::new(image)).unwrap(), &contents, true);
        let image = Arc::new(PoolImage::new(&other, Some(&held)).unwrap());
        let live = Metadata::open(image.clone()).unwrap();
        prop_assert_eq!(live.superblock().held_root, Some(held.location()));
        compare(&Metadata::open_snapshot(image, held.location()).unwrap(), &contents, false);
    }
}
