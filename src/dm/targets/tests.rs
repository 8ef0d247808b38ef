use proptest::prelude::*;

use super::*;

fn number() -> impl Strategy<Value = DeviceNumber> {
    (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor })
}

proptest! {
    #[test]
    fn linear_round_trips(device in number(), start in any::<u64>()) {
        let linear = Linear { device, start: Sectors(start) };
        prop_assert_eq!(linear.to_string().parse::<Linear>().unwrap(), linear);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[ 0-9:a-z_]{0,60}") {
        let _ = (text.parse::<Linear>(), text.parse::<Zero>(), text.parse::<ErrorTarget>());
    }
}

#[test]
fn lines_as_the_kernel_documents_them() {
    let device = DeviceNumber { major: 253, minor: 0 };
    let linear = Linear { device, start: Sectors(8) };
    assert_eq!(linear.over(Sectors(0), Sectors(16)).to_string(), "0 16 linear 253:0 8");
    assert_eq!(Zero.over(Sectors(0), Sectors(16)).to_string(), "0 16 zero ");
    assert_eq!(ErrorTarget.over(Sectors(16), Sectors(1)).to_string(), "16 1 error ");
}

#[test]
fn malformed_tables_are_refused() {
    for text in ["", "253:0", "253:0 x", "253:0 0 1", "253 0", "4096:0 0", "253:1048576 0"] {
        assert!(text.parse::<Linear>().is_err(), "{text:?}");
    }
    assert!("0".parse::<Zero>().is_err());
}
