//! The metadata reader against thin-provisioning-tools: `cargo test --features model --test metadata_tools`, which
//! needs `thin_check`, `thin_delta`, `thin_dump`, `thin_ls` and `thin_restore`. `DM_THIN_POOLS=50` asks for more pools.

#[path = "support/metadata/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod support;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use dm_thin::model::image::{PoolContents, PoolImage, ThinContents};
use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::{ChangeKind, Metadata, MetadataError, check};
use support::pools::{Rng, random};
use support::{Patched, images, kind};

fn pools() -> u64 {
    std::env::var("DM_THIN_POOLS").map_or(3, |text| text.parse().expect("a number"))
}

fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; it is in thin-provisioning-tools"))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// An attribute of a line of XML.
fn word<'a>(line: &'a str, name: &str) -> &'a str {
    let from = line.find(&format!(" {name}=\"")).unwrap_or_else(|| panic!("{name} in {line}"));
    line[from + name.len() + 3..].split('"').next().unwrap()
}

fn number(line: &str, name: &str) -> u64 {
    word(line, name).parse().unwrap()
}

fn xml(pool: &PoolContents) -> String {
    let mut text = String::new();
    writeln!(
        text,
        r#"<superblock uuid="" time="{}" transaction="{}" data_block_size="{}" nr_data_blocks="{}">"#,
        pool.time, pool.transaction_id, pool.block_size.0, pool.data_blocks
    )
    .unwrap();
    for (id, thin) in &pool.thins {
        let ThinContents { mappings, transaction_id, creation_time, snapshotted_time } = thin;
        writeln!(
            text,
            r#"<device dev_id="{id}" mapped_blocks="{}" transaction="{transaction_id}" creation_time="{creation_time}" snap_time="{snapshotted_time}">"#,
            mappings.len()
        )
        .unwrap();
        for (block, (data, time)) in &**mappings {
            writeln!(text, r#"<single_mapping origin_block="{block}" data_block="{data}" time="{time}"/>"#)
                .unwrap();
        }
        writeln!(text, "</device>").unwrap();
    }
    text + "</superblock>\n"
}

fn restore(pool: &PoolContents, path: &Path) {
    let source = path.with_extension("xml");
    std::fs::write(&source, xml(pool)).unwrap();
    File::create(path).unwrap().set_len(pool.metadata_blocks * 4096).unwrap();
    run("thin_restore", &["-i", source.to_str().unwrap(), "-o", path.to_str().unwrap()]);
}

fn write_image(pool: &PoolContents, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(pool.metadata_blocks * 4096).unwrap();
    let image = PoolImage::new(pool, None).unwrap();
    image.blocks().for_each(|(block, bytes)| file.write_all_at(bytes, block * 4096).unwrap());
}

/// Writes the metadata of pools: random ones as thin_restore and as the model writes them, and real kernels' own.
fn each_pool(path: &Path, mut each: impl FnMut(&str)) {
    for seed in 1..=pools() {
        let pool = random(seed);
        for (who, write) in [("thin_restore", restore as fn(&_, &_)), ("the model", write_image)] {
            write(&pool, path);
            each(&format!("seed {seed}, by {who}"));
        }
    }
    for (release, image) in images::IMAGES {
        let Patched(blocks) = images::blocks(image);
        let file = File::create(path).unwrap();
        for (at, block) in (0..).zip(&blocks) {
            file.write_all_at(&block.0, at * 4096).unwrap();
        }
        each(&format!("by Linux {release}"));
    }
}

fn id(number: u32) -> ThinId {
    ThinId::new(number).unwrap()
}

/// Devices and mappings as thin_dump says, and as the reader does.
fn compare_mappings(metadata: &Metadata, path: &str) {
    let mut dumped = Vec::new();
    for line in run("thin_dump", &[path]).lines() {
        match line.trim_start().split(' ').next().unwrap() {
            "<device" => dumped.push((number(line, "dev_id"), number(line, "mapped_blocks"), u64::MAX, 0)),
            "<single_mapping" => {
                dumped.push((
                    number(line, "origin_block"),
                    number(line, "data_block"),
                    1,
                    number(line, "time"),
                ));
            }
            "<range_mapping" => dumped.push((
                number(line, "origin_begin"),
                number(line, "data_begin"),
                number(line, "length"),
                number(line, "time"),
            )),
            _ => {}
        }
    }
    let mut read = Vec::new();
    for device in metadata.devices().unwrap() {
        read.push((device.id.get().into(), device.mapped.0, u64::MAX, 0));
        for mapping in metadata.mappings(device.id, 0).unwrap() {
            let mapping = mapping.unwrap();
            read.push((mapping.virtual_block, mapping.data_block, mapping.length, mapping.time.into()));
        }
    }
    assert_eq!(read, dumped);
}

fn compare_usage(metadata: &Metadata, path: &str) {
    let format = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS";
    let listed = run("thin_ls", &["--no-headers", "--format", format, path]);
    let listed: Vec<Vec<u64>> = listed
        .lines()
        .map(|line| line.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect())
        .collect();
    let read: Vec<Vec<u64>> = metadata
        .usage()
        .unwrap()
        .into_iter()
        .map(|usage| vec![usage.id.get().into(), usage.mapped.0, usage.exclusive.0, usage.shared.0])
        .collect();
    assert_eq!(read, listed);
    for usage in metadata.usage().unwrap() {
        assert_eq!(metadata.exclusive(usage.id).unwrap(), usage.exclusive);
    }
}

fn compare_deltas(metadata: &Metadata, path: &str) {
    let ids: Vec<u32> = metadata.device_ids().unwrap().into_iter().map(ThinId::get).collect();
    for pair in ids.windows(2).chain(ids.chunks(3).filter(|chunk| chunk.len() == 3)) {
        let (left, right) = (pair[0], pair[pair.len() - 1]);
        let (one, two) = (left.to_string(), right.to_string());
        let mut delta = BTreeSet::new();
        for line in run("thin_delta", &["--snap1", &one, "--snap2", &two, path]).lines() {
            let kind = match line.trim_start().split(' ').next().unwrap() {
                "<different" | "<right_only" => "data",
                "<left_only" => "hole",
                _ => continue,
            };
            let begin = number(line, "begin");
            delta.extend((begin..begin + number(line, "length")).map(|block| (block, kind)));
        }
        let mut read = BTreeSet::new();
        for change in metadata.changed(Some(id(left)), id(right), 0).unwrap() {
            let change = change.unwrap();
            let kind = if change.kind == ChangeKind::Hole { "hole" } else { "data" };
            read.extend((change.begin..change.begin + change.length).map(|block| (block, kind)));
        }
        assert_eq!(read, delta, "{left} -> {right}");
    }
}

fn open(path: &Path) -> Result<Metadata, MetadataError> {
    Metadata::open(Arc::new(File::open(path).unwrap()))
}

#[test]
fn sound_metadata_reads_as_the_tools_say() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let text = path.to_str().unwrap();
    each_pool(&path, |_| {
        let metadata = open(&path).unwrap();
        compare_mappings(&metadata, text);
        compare_usage(&metadata, text);
        compare_deltas(&metadata, text);
        run("thin_check", &[text]);
        let report = metadata.check().unwrap();
        assert!(report.is_sound() && report.counts_compared, "{report:?}");
    });
}

#[test]
fn damage_that_thin_check_finds_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let (mut rng, mut tool, mut ours, mut changes) = (Rng(99), 0, 0, 0);
    each_pool(&path, |pool| {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut used = Vec::new();
        for block in 0..file.metadata().unwrap().len() / 4096 {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, block * 4096).unwrap();
            used.extend(kind(&bytes).map(|kind| (block, kind, bytes)));
        }
        for _ in 0..80 {
            let (block, kind, before) = used[rng.index(used.len())];
            let mut bytes = before;
            // Often in a header or in the first entries: most of a node may be unused.
            let at = if rng.below(2) == 0 { rng.index(4096) } else { rng.index(72) };
            bytes[at] ^=
                if rng.below(2) == 0 { 1 << rng.below(8) } else { u8::try_from(1 + rng.below(255)).unwrap() };
            let fixed = rng.below(4) > 0;
            if fixed {
                let csum = kind.checksum(&bytes).to_le_bytes();
                bytes[..4].copy_from_slice(&csum);
            }
            file.write_all_at(&bytes, block * 4096).unwrap();
            let found = check(Arc::new(File::open(&path).unwrap()));
            let by_tool = output("thin_check", &["-q", path.to_str().unwrap()]).status.success();
            let flagged = open(&path).is_ok_and(|metadata| metadata.superblock().needs_check);
            let sound = found.as_ref().is_ok_and(|report| report.is_sound());
            let said = || run("sh", &["-c", "thin_check $0; true", path.to_str().unwrap()]);
            assert!(
                by_tool || flagged || !sound,
                "{pool}: thin_check finds damage in block {block} ({kind:?}) at byte {at}, {} -> {}: {}",
                before[at],
                bytes[at],
                said()
            );
            (tool, ours, changes) = (tool + u32::from(!by_tool), ours + u32::from(!sound), changes + 1);
            file.write_all_at(&before, block * 4096).unwrap();
        }
    });
    println!("{changes} changes: thin_check objects to {tool}, this crate to {ours}");
    assert!(tool > changes / 8, "{tool} of {changes}");
}
