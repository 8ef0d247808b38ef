use super::*;

pub(super) const V1: &[&str] = &[
    "72626420646966662076310a",
    "66 04000000 62617365",
    "74 05000000 696d616765",
    "73 0000200000000000",
    "77 0000010000000000 0400000000000000 64617461",
    "7a 0000100000000000 0000020000000000",
    "65",
];

const V2: &[&str] = &[
    "72626420646966662076320a",
    "66 0800000000000000 04000000 62617365",
    "74 0900000000000000 05000000 696d616765",
    "73 0800000000000000 0000200000000000",
    "58 0200000000000000 ffff",
    "77 1400000000000000 0000010000000000 0400000000000000 64617461",
    "7a 1000000000000000 0000100000000000 0000020000000000",
    "65",
];

#[test]
fn rbd_diffs_are_read_and_written() {
    let expected = DiffHeader {
        name: Some("image".to_owned()),
        base_name: Some("base".to_owned()),
        size: Some(Bytes::mib(2)),
        ..DiffHeader::default()
    };
    for version in [V1, V2] {
        let bytes = bytes(version);
        let mut reader = RbdReader::new(bytes.as_slice()).unwrap();
        assert_eq!(*reader.header(), expected);
        let (read, result) = drain(&mut reader);
        result.unwrap();
        assert_eq!(read, items());
        for length in 0..bytes.len() {
            assert!(matches!(read_rbd(&bytes[..length]).1, Err(Error::Truncated { .. })), "{length}");
        }
        let (_, result) = read_rbd(&[bytes.as_slice(), b"e"].concat());
        assert!(matches!(result, Err(Error::TrailingData { .. })));
    }
    let mut writer = RbdWriter::new(Vec::new());
    feed(&mut writer, &expected, &items()).unwrap();
    assert_eq!(writer.into_inner(), bytes(V1));
}

#[test]
fn malformed_rbd_diffs_are_refused() {
    let error = |parts: &[&str]| read_rbd(&bytes(parts)).1.unwrap_err().to_string();
    assert_eq!(error(&["72626420646966662076330a"]), "not a rbd diff stream");
    assert!(error(&[V1[0], "58"]).contains("unknown tag"));
    assert!(error(&[V1[0], V1[3], V1[3]]).contains("repeated metadata"));
    assert!(error(&[V1[0], V1[3], V1[4], V1[2]]).contains("after a data record"));
    assert!(error(&[V1[0], "66 ffffffff"]).contains("longer than 64 KiB"));
    assert!(error(&[V1[0], "66 02000000 ff00"]).contains("not UTF-8"));
    assert!(error(&[V1[0], V1[3], V1[5], V1[4]]).contains("before the end of the range"));
    assert!(error(&[V1[0], "73 0000000000000000", V1[5]]).contains("after the end of the volume"));
    assert!(error(&[V2[0], "73 0900000000000000 0000200000000000"]).contains("differs from its fields"));
    assert!(error(&[V2[0], "7a 1100000000000000", &"00".repeat(16)]).contains("differs from its fields"));
}

#[test]
fn rbd_needs_a_size_and_names_the_base() {
    let mut writer = RbdWriter::new(Vec::new());
    let error = writer.begin(&DiffHeader::default()).unwrap_err();
    assert_eq!(error.to_string(), "a rbd diff stream needs the volume's size");
    let base = Uuid::from_bytes([4; 16]);
    feed(&mut writer, &DiffHeader { base: Some(base), ..header() }, &[]).unwrap();
    let bytes = writer.into_inner();
    let reader = RbdReader::new(bytes.as_slice()).unwrap();
    assert_eq!(reader.header().base_name, Some(base.to_string()));
}
