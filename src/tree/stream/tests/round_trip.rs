//! Random streams: what is encoded is decoded; damage is an error.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::*;
use super::{HEADER, Item, read};
use crate::units::Bytes;

fn volumes() -> impl Strategy<Value = Vec<(VolumeHeader, Vec<Item>)>> {
    let range = (0u64..5000, 1usize..3000, 0u8..3);
    let one =
        (any::<[u8; 16]>(), "\\PC{1,20}", prop::collection::vec(range, 0..6), "[a-z]{0,4}", any::<bool>());
    let volume = one.prop_map(|(uuid, name, ranges, text, whole)| {
        let (mut at, mut items) = (0, Vec::new());
        for (gap, length, kind) in ranges {
            let offset = Bytes(at + gap);
            at = offset.0 + length as u64;
            let length = Bytes(length as u64);
            items.push(match kind {
                0 => Item::Data(offset, (0..length.0).map(|n| (n % 251) as u8).collect()),
                1 => Item::Hole(offset, length),
                _ => Item::Zero(offset, length),
            });
        }
        let filesystem = (!text.is_empty())
            .then(|| StreamFilesystem { kind: text.clone(), uuid: whole.then(|| Uuid::from_bytes([5; 16])) });
        let header = VolumeHeader {
            volume: Uuid::from_bytes(uuid.map(|byte| byte | 1)),
            base: (!whole).then(|| Uuid::from_bytes([0x80; 16])),
            name,
            size: Bytes(at + 1),
            block_size: Bytes(512),
            filesystem,
            labels: BTreeMap::from([("key".to_owned(), text), ("l".to_owned(), String::new())]),
            resume: Bytes(0),
        };
        (header, items)
    });
    prop::collection::vec(volume, 0..4)
}

fn encode(volumes: &[(VolumeHeader, Vec<Item>)]) -> (Vec<u8>, StreamSummary) {
    let mut encoder = Encoder::new(Vec::new(), &HEADER).unwrap();
    for (header, items) in volumes {
        encoder.begin(header).unwrap();
        for item in items {
            match item {
                Item::Data(offset, data) => encoder.data(*offset, data).unwrap(),
                Item::Hole(offset, length) => encoder.hole(*offset, *length).unwrap(),
                Item::Zero(offset, length) => encoder.zero(*offset, *length).unwrap(),
                _ => unreachable!(),
            }
        }
        encoder.end_volume().unwrap();
    }
    encoder.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encoded_is_decoded(volumes in volumes()) {
        let (bytes, summary) = encode(&volumes);
        prop_assert_eq!(summary.size, Bytes(bytes.len() as u64));
        let (items, result) = read(&bytes);
        result.unwrap();
        let mut items = items.into_iter();
        for (header, expected) in volumes {
            prop_assert_eq!(items.next(), Some(Item::Begin(header)));
            for item in expected {
                prop_assert_eq!(items.next(), Some(item));
            }
            prop_assert!(matches!(items.next(), Some(Item::EndVolume(_))));
        }
        prop_assert_eq!(items.next(), Some(Item::End(summary)));
    }

    #[test]
    fn damage_is_never_a_wrong_volume(volumes in volumes(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (mut bytes, _) = encode(&volumes);
        let (items, _) = read(&bytes);
        let at = at.index(bytes.len());
        let (cut, result) = read(&bytes[..at]);
        prop_assert!(result.is_err() && cut.len() < items.len() && items.starts_with(&cut));
        bytes[at] ^= flip;
        let (damaged, result) = read(&bytes);
        prop_assert!(result.is_err() && damaged.len() < items.len() && items.starts_with(&damaged));
    }
}
