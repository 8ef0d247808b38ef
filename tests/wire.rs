//! Properties of the wire format: requests against an independent reader, answers on arbitrary bytes.

mod support;

use proptest::prelude::*;

use support::encode::{Plain, PlainId};
use support::reader::{Body, Line};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9:-]{1,20}",
        2 => "\\PC{0,150}",
        1 => "[a-z]{120,130}",
        1 => any::<String>(),
    ]
}

fn id() -> impl Strategy<Value = PlainId> {
    let number = (0u32..5000, 0u32..1 << 21);
    prop_oneof![
        Just(PlainId::None),
        text().prop_map(PlainId::Name),
        text().prop_map(PlainId::Uuid),
        number.clone().prop_map(|(major, minor)| PlainId::Number(major, minor)),
        (text(), proptest::option::of(text()), proptest::option::of(number))
            .prop_map(|(name, uuid, number)| PlainId::Create(name, uuid, number)),
        "[a-z-]{0,17}".prop_map(PlainId::Target),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let line = (any::<u64>(), any::<u64>(), "[a-z-]{1,15}", text())
        .prop_map(|(start, length, target, parameters)| Line { start, length, target, parameters });
    prop_oneof![
        Just(Body::None),
        text().prop_map(Body::Text),
        (any::<u64>(), text()).prop_map(|(sector, text)| Body::Message(sector, text)),
        proptest::collection::vec(line, 0..20).prop_map(Body::Table),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn requests_round_trip(
        (command, minor, flags, event_nr) in (0usize..18, 0u32..60, any::<u32>(), any::<u32>()),
        id in id(),
        body in body(),
    ) {
        support::encode::check(&Plain { command, minor, flags, event_nr, id, body });
    }

    #[test]
    fn any_bytes_make_a_request_that_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        support::encode::check(&support::encode::plain(&bytes));
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        support::decode::check(&bytes);
    }

    #[test]
    fn a_good_header_before_arbitrary_bytes_is_decoded_or_refused(
        minor in 30u32..50,
        count in prop_oneof![0u32..9, any::<u32>()],
        flags in any::<u32>(),
        // Small numbers make records that hold together for a while.
        words in proptest::collection::vec(
            prop_oneof![5 => 0u32..128, 2 => Just(0x6161_6161), 1 => any::<u32>()], 0..200),
    ) {
        let mut bytes = vec![0; 312];
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        let size = u32::try_from(bytes.len()).unwrap();
        for (at, value) in [(0, 4), (4, minor), (12, size), (16, 312), (20, count), (28, flags)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        support::decode::check(&bytes);
    }

    #[test]
    fn names_are_kept_whole_or_refused(text in text()) {
        support::names::check(&text);
    }

    #[test]
    fn names_of_bytes_are_kept_whole_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..135)) {
        support::names::fuzz(&bytes);
    }
}

#[test]
fn a_table_of_ten_thousand_lines_is_read_back() {
    let line = |n: u64| Line {
        start: n * 8,
        length: 8,
        target: "linear".into(),
        parameters: format!("253:0 {}", n * n),
    };
    support::encode::check(&Plain {
        command: 9,
        minor: 0,
        flags: 0,
        event_nr: 0,
        id: PlainId::Name("large".into()),
        body: Body::Table((0..10_000).map(line).collect()),
    });
}
