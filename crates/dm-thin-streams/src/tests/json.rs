use dm_thin::tree::{ChangeKind, ChangedRange};

use super::*;

#[test]
fn json_lines_have_ranges_without_data() {
    let mut writer = JsonWriter::new(Vec::new());
    let mut items = items();
    items.insert(1, Item::Zero(65540, 60));
    let header = DiffHeader { volume: None, ..header() };
    feed(&mut writer, &header, &items).unwrap();
    let written = String::from_utf8(writer.into_inner()).unwrap();
    let expected = [
        r#"{"version":1,"header":{"name":"image","size":2097152}}"#,
        r#"{"offset":65536,"length":64,"kind":"data"}"#,
        r#"{"offset":1048576,"length":131072,"kind":"hole"}"#,
        r#"{"ranges":2}"#,
        "",
    ];
    assert_eq!(written, expected.join("\n"));

    let reader = JsonReader::new(written.as_bytes()).unwrap();
    assert_eq!(*reader.header(), header);
    let ranges: Vec<_> = reader.map(|range| range.unwrap()).collect();
    let range = |offset, length, kind| ChangedRange { offset: Bytes(offset), length: Bytes(length), kind };
    assert_eq!(ranges, [range(65536, 64, ChangeKind::Data), range(1 << 20, 128 << 10, ChangeKind::Hole)]);

    let read = |text: &str| JsonReader::new(text.as_bytes())?.collect::<Result<Vec<_>>>();
    for length in 0..written.len() {
        assert!(matches!(read(&written[..length]), Err(Error::Truncated { .. })), "{length}");
    }
    assert!(matches!(read(&format!("{written}\n")), Err(Error::TrailingData { .. })));
    let error = |text: &str| read(text).unwrap_err().to_string();
    assert_eq!(
        error(&written.replace(":2}", ":3}")),
        "JSON lines stream: ranges is 3 at its end, 2 were read"
    );
    assert!(error(&written.replace("1048576", "1048577000")).contains("after the end of the volume"));
    assert!(error(&written.replace("hole", "pole")).starts_with("line 3: "));
    assert!(error(&written.replace("\"version\":1", "\"version\":2")).contains("unknown version"));
    assert!(error(&" ".repeat(65537)).contains("longer than 64 KiB"));
}
