//! A large pool: what reading its metadata costs, beside the thin-provisioning-tools.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use dm_thin::thin::{Origin, PoolFeatures};
use dm_thin::units::Bytes;

use crate::bench::{Bench, dm};
use crate::metadata::{Rng, changed, text, variable};
use crate::rig::{Rig, id};

/// Data blocks beside the mapped ones.
const SPARE: u64 = 2048;

/// A device of that many mappings, in runs of eight, as thin_restore takes it.
fn write_xml(path: &Path, mapped: u64) -> std::io::Result<()> {
    let mut xml = BufWriter::new(File::create(path)?);
    let blocks = mapped + SPARE;
    writeln!(
        xml,
        r#"<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="{blocks}">"#
    )?;
    writeln!(
        xml,
        r#"<device dev_id="1" mapped_blocks="{mapped}" transaction="0" creation_time="0" snap_time="0">"#
    )?;
    for run in 0..mapped / 8 {
        let (begin, data) = (run * 8, run * 7919 % (mapped / 8) * 8);
        writeln!(xml, r#"<range_mapping origin_begin="{begin}" data_begin="{data}" length="8" time="0"/>"#)?;
    }
    writeln!(xml, "</device>\n</superblock>")?;
    xml.flush()
}

/// `DM_THIN_METADATA_MAPPINGS=8000000`: a pool of 488 GiB.
#[test]
fn a_comparison_reads_what_changed() {
    let bench = Bench::new();
    let mapped = variable("DM_THIN_METADATA_MAPPINGS", 40_000) / 8 * 8;
    let (data, metadata) =
        (Bytes((mapped + SPARE) << 16), Bytes((mapped * 64).next_multiple_of(1 << 20).max(16 << 20)));
    let mut rig = Rig::with(&bench, dm(), data, metadata, PoolFeatures::default());
    rig.deactivate();
    let (xml, device) = (bench.path().join("pool.xml"), rig.metadata.node());
    write_xml(&xml, mapped).unwrap();
    text("thin_restore", &["-i", xml.to_str().unwrap(), "-o", device.to_str().unwrap()]);
    std::fs::remove_file(xml).unwrap();
    rig.activate(PoolFeatures::default());
    rig.pool().create_snap(id(2), &Origin::Inactive(id(1))).unwrap();
    let volume = rig.activated(2, Bytes(mapped << 16));
    let file = File::options().write(true).open(volume.path()).unwrap();
    // So few in a small pool that most of its leaves stay shared.
    let (mut rng, writes) = (Rng(9), (mapped / 2000).min(200));
    let written: BTreeSet<u64> = (0..writes).map(|_| rng.below(mapped)).collect();
    written.iter().for_each(|block| file.write_all_at(&[7; 4096], block << 16).unwrap());
    file.sync_all().unwrap();
    drop(file);
    volume.deactivate().unwrap();
    let used = rig.usage().used_metadata;
    rig.pool()
        .read_metadata(|metadata| {
            let (begun, before) = (Instant::now(), metadata.blocks_read());
            let found = changed(metadata, Some(id(1)), id(2));
            let (time, read) = (begun.elapsed(), metadata.blocks_read() - before);
            let changed = written.len() as u64;
            println!("{mapped} mappings, {changed} changed: {read} of {used} blocks read in {time:?}");
            assert!(found.keys().eq(written.iter()) && found.values().all(|data| *data));
            // At most two leaves and the two nodes above them for each; above those few are left. How many of the nodes
            // above the leaves are the same depends on how full thin_restore makes them.
            assert!(read <= 4 * changed + 16, "{read} blocks read");
            let device = device.to_str().unwrap();
            for arguments in [
                &["thin_delta", "--metadata-snap", "--snap1", "1", "--snap2", "2", device][..],
                &["thin_dump", "--metadata-snap", "--dev-id", "2", device],
                &["thin_ls", "--metadata-snap", device],
            ] {
                let begun = Instant::now();
                let (program, rest) = arguments.split_first().unwrap();
                let status = Command::new(program).args(rest).stdout(Stdio::null()).status().unwrap();
                assert!(status.success(), "{arguments:?}");
                println!("{program}: {:?}", begun.elapsed());
            }
            let begun = Instant::now();
            let usage = metadata.usage()?;
            println!("usage(): {:?}", begun.elapsed());
            assert!(usage.iter().all(|used| used.mapped.0 == mapped));
            assert!(usage.iter().all(|used| used.exclusive.0 == changed));
            Ok(())
        })
        .unwrap();
    rig.deactivate();
}
