use proptest::option;
use proptest::prelude::*;

use super::*;

fn number() -> impl Strategy<Value = DeviceNumber> {
    (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor })
}

fn corrupt() -> impl Strategy<Value = CorruptByte> {
    (any::<u32>(), any::<bool>(), any::<u8>(), any::<u32>())
        .prop_map(|(nth, writes, value, flags)| CorruptByte { nth, writes, value, flags })
}

fn features() -> impl Strategy<Value = FlakeyFeatures> {
    let writes = option::of(prop_oneof![Just(LostWrites::Drop), Just(LostWrites::Error)]);
    (any::<bool>(), writes, option::of(corrupt()), any::<u32>(), any::<u32>()).prop_map(
        |(error_reads, writes, corrupt, random_read_corrupt, random_write_corrupt)| FlakeyFeatures {
            error_reads,
            writes,
            corrupt,
            random_read_corrupt,
            random_write_corrupt,
        },
    )
}

proptest! {
    #[test]
    fn linear_round_trips(device in number(), start in any::<u64>()) {
        let linear = Linear { device, start: Sectors(start) };
        prop_assert_eq!(linear.to_string().parse::<Linear>().unwrap(), linear);
    }

    #[test]
    fn flakey_round_trips(
        device in number(), start in any::<u64>(), up in any::<u32>(), down in any::<u32>(),
        features in features(),
    ) {
        let flakey = Flakey { device, start: Sectors(start), up, down, features };
        let text = flakey.to_string();
        prop_assert_eq!(text.parse::<Flakey>().unwrap(), flakey);
        // The number of features is that of the words after it.
        let words: Vec<_> = text.split(' ').collect();
        prop_assert_eq!(words[4].parse::<usize>().unwrap(), words.len() - 5);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[ 0-9:a-z_]{0,60}") {
        let _ = (text.parse::<Linear>(), text.parse::<Zero>(), text.parse::<ErrorTarget>());
        let _ = text.parse::<Flakey>();
    }
}

#[test]
fn lines_as_the_kernel_documents_them() {
    let device = DeviceNumber { major: 253, minor: 0 };
    let linear = Linear { device, start: Sectors(8) };
    assert_eq!(linear.over(Sectors(0), Sectors(16)).to_string(), "0 16 linear 253:0 8");
    assert_eq!(Zero.over(Sectors(0), Sectors(16)).to_string(), "0 16 zero ");
    assert_eq!(ErrorTarget.over(Sectors(16), Sectors(1)).to_string(), "16 1 error ");
    let corrupt = Some(CorruptByte { nth: 32, writes: false, value: 1, flags: 0 });
    let features = FlakeyFeatures { writes: Some(LostWrites::Drop), corrupt, ..Default::default() };
    let flakey = Flakey { device, start: Sectors(0), up: 5, down: 10, features };
    assert_eq!(flakey.to_string(), "253:0 0 5 10 6 drop_writes corrupt_bio_byte 32 r 1 0");
    flakey.check().unwrap();
    // What the kernel takes, and what older kernels print.
    let plain = "253:0 0 5 10".parse::<Flakey>().unwrap();
    assert_eq!(plain.features, FlakeyFeatures::default());
}

#[test]
fn what_is_not_a_table_is_refused() {
    for text in ["", "253:0", "253:0 x", "253:0 0 1", "253 0", "4096:0 0", "253:1048576 0"] {
        assert!(text.parse::<Linear>().is_err(), "{text:?}");
    }
    for text in ["253:0 0 5", "253:0 0 5 10 1", "253:0 0 5 10 1 none", "253:0 0 5 10 0 drop_writes"] {
        assert!(text.parse::<Flakey>().is_err(), "{text:?}");
    }
    assert!("0".parse::<Zero>().is_err());
}

#[test]
fn flakey_says_what_the_kernel_would_not() {
    let device = DeviceNumber { major: 253, minor: 0 };
    let reason = |up, features| {
        let flakey = Flakey { device, start: Sectors(0), up, down: 0, features };
        flakey.check().unwrap_err().to_string()
    };
    assert!(reason(0, FlakeyFeatures::default()).ends_with("bad intervals"));
    let corrupt = |nth, writes| Some(CorruptByte { nth, writes, value: 0, flags: 0 });
    let features = FlakeyFeatures { corrupt: corrupt(0, true), ..Default::default() };
    assert!(reason(1, features).ends_with("bytes are counted from 1"));
    let features =
        FlakeyFeatures { corrupt: corrupt(1, true), writes: Some(LostWrites::Drop), ..Default::default() };
    assert!(reason(1, features).ends_with("a lost write cannot be corrupted"));
    let features = FlakeyFeatures { corrupt: corrupt(1, false), error_reads: true, ..Default::default() };
    assert!(reason(1, features).ends_with("a failed read cannot be corrupted"));
    let features = FlakeyFeatures { random_read_corrupt: 1_000_000_001, ..Default::default() };
    assert!(reason(1, features).ends_with("above 1000000000"));
}
