//! A metadata device as the kernel writes it.

use zerocopy::IntoBytes;

use super::image::decode;
use super::*;
use crate::kernel::AlignedBlock;
use crate::model::image::PoolContents;
use crate::thin::metadata::format::Block;

impl Machine {
    /// The blocks of a metadata device, read past the page cache.
    fn metadata_blocks(&self, path: &str) -> Vec<Block> {
        let file = self.kernel.open(Path::new(path), Access::READ.direct()).unwrap();
        let mut blocks = AlignedBlock::zeroed(1024);
        assert_eq!(self.kernel.read_at(&file, 0, blocks.as_mut_bytes()), Ok(4 << 20));
        blocks.into_iter().map(|AlignedBlock(bytes)| bytes).collect()
    }

    fn decode(&self, path: &str) -> (PoolContents, Option<(u64, PoolContents)>) {
        let blocks = self.metadata_blocks(path);
        decode(&|number| blocks[usize::try_from(number).unwrap()])
    }

    fn contents(&self) -> PoolContents {
        self.decode("/dev/loop0").0
    }

    fn held_root(&self) -> String {
        self.status("pool").split(' ').nth(3).unwrap().to_owned()
    }
}

#[test]
fn a_metadata_device_reads_as_what_was_committed() {
    let machine = Machine::with_loops();
    assert!(machine.metadata_blocks("/dev/loop0").iter().all(|block| *block == [0; 4096]), "never formatted");
    machine.activate("pool", "thin-pool", "7:0 7:1 128 16", 256 * BLOCK).unwrap();
    assert_eq!(machine.contents(), PoolContents::new(Sectors(128), 256, 1024));
    machine.message("pool", "create_thin 7").unwrap();
    machine.message("pool", "set_transaction_id 0 5").unwrap();
    machine.activate("v", "thin", "253:0 7", 16 * BLOCK).unwrap();
    machine.kernel.write("v", 3..5).unwrap();
    assert!(machine.contents().thins[&7].mappings.is_empty(), "not committed");
    machine.kernel.sync(&machine.open("/dev/mapper/v")).unwrap();
    let contents = machine.contents();
    assert_eq!(contents.transaction_id, 5);
    assert!(contents.thins[&7].mappings.iter().eq([(&3, &(0, 0)), (&4, &(1, 0))]));

    machine.kernel.set_needs_check("pool", true).unwrap();
    assert!(machine.contents().needs_check);
    machine.kernel.set_needs_check("pool", false).unwrap();
    // The same through a table, and without the pool.
    machine.activate("below", "linear", "7:0 0", 8192).unwrap();
    assert_eq!(machine.decode("/dev/mapper/below").0, contents);
    machine.dm.remove(&name("v")).unwrap();
    machine.dm.remove(&name("pool")).unwrap();
    assert_eq!(machine.contents(), contents);
}

#[test]
fn times_are_the_kernels() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    machine.message("pool", "set_transaction_id 0 9").unwrap();
    machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
    machine.kernel.write("v", 0..2).unwrap();
    machine.message("pool", "create_snap 2 1").unwrap();
    machine.kernel.write("v", 1..3).unwrap();
    machine.message("pool", "create_thin 3").unwrap();
    machine.message("pool", "create_snap 4 2").unwrap();
    assert_eq!(
        machine.message("pool", "create_snap 4 2").map_err(|error| error.errno()),
        Err(Some(Errno::EEXIST))
    );
    let contents = machine.contents();
    assert_eq!(contents.time, 2);
    let details = contents.thins.iter().map(|(&id, thin)| {
        let times: Vec<u32> = thin.mappings.values().map(|(_, time)| *time).collect();
        (id, thin.transaction_id, thin.creation_time, thin.snapshotted_time, times)
    });
    let expected = [
        (1, 0, 0, 1, vec![0, 1, 1]),
        (2, 9, 1, 2, vec![0, 0]),
        (3, 9, 1, 1, vec![]),
        (4, 9, 2, 2, vec![0, 0]),
    ];
    assert!(details.eq(expected));
}

#[test]
fn a_metadata_snapshot_stays_as_it_was() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    machine.activate("v", "thin", "253:0 1", 1024 * BLOCK).unwrap();
    machine.kernel.write("v", 0..10).unwrap();
    machine.message("pool", "reserve_metadata_snap").unwrap();
    let (contents, held) = machine.decode("/dev/loop0");
    let (location, copy) = held.unwrap();
    assert_eq!(machine.held_root(), location.to_string());
    assert_eq!(copy, PoolContents { data_blocks: 0, ..contents.clone() });

    // It keeps the data blocks of what is deleted.
    machine.dm.remove(&name("v")).unwrap();
    machine.message("pool", "delete 1").unwrap();
    machine.message("pool", "create_thin 2").unwrap();
    machine.activate("w", "thin", "253:0 2", 1024 * BLOCK).unwrap();
    machine.kernel.write("w", 0..1).unwrap();
    machine.kernel.commit();
    assert!(machine.status("pool").contains(" 11/256 "));
    let (contents, held) = machine.decode("/dev/loop0");
    assert_eq!(held, Some((location, copy.clone())));
    assert!(contents.thins[&2].mappings.iter().eq([(&0, &(10, 0))]));
    let machine = machine.power_cut();
    assert_eq!(machine.decode("/dev/loop0"), (contents, Some((location, copy))));

    machine.message("pool", "release_metadata_snap").unwrap();
    assert_eq!(machine.held_root(), "-");
    assert!(machine.decode("/dev/loop0").1.is_none());
    assert!(machine.status("pool").contains(" 1/256 "));
}

#[test]
fn metadata_that_is_overwritten_is_gone() {
    let machine = Machine::with_pool();
    machine.dm.remove(&name("pool")).unwrap();
    let device = machine.open("/dev/loop0");
    machine.kernel.write_at(&device, 100, b"x").unwrap();
    machine.make("pool");
    let load = || machine.load("pool", "thin-pool", "7:0 7:1 128 16", 256 * BLOCK);
    assert_eq!(errno(load()), Errno::EILSEQ);
    machine.kernel.write_at(&device, 0, &[0; 4096]).unwrap();
    load().unwrap();
    machine.dm.resume(&name("pool")).unwrap();
    assert_eq!(machine.contents(), PoolContents::new(Sectors(128), 256, 1024));
}
