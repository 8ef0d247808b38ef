//! Images of thin-pool metadata before the programs that check and dump them: `cargo test --test image_tools`, which
//! needs `thin_check` and `thin_dump`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use dm_thin::model::image::{HeldRoot, Mappings, PoolContents, PoolImage, ThinContents};
use dm_thin::units::Sectors;

/// xorshift64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn write(image: &PoolImage, metadata_blocks: u64, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(metadata_blocks * 4096).unwrap();
    image.blocks().for_each(|(number, block)| file.write_all_at(block, number * 4096).unwrap());
}

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// One line for each device and each mapping.
fn described(contents: &PoolContents) -> String {
    let mut text = String::new();
    for (id, thin) in &contents.thins {
        let ThinContents { transaction_id, creation_time, snapshotted_time, .. } = thin;
        let mapped = thin.mappings.len();
        writeln!(text, "device {id} {mapped} {transaction_id} {creation_time} {snapshotted_time}").unwrap();
        for (block, (data, time)) in &*thin.mappings {
            writeln!(text, "{block} {data} {time}").unwrap();
        }
    }
    text
}

/// The same out of thin_dump's XML, its ranges taken apart.
fn dumped(xml: &str) -> String {
    let mut text = String::new();
    for line in xml.lines() {
        let word = |name: &str| -> &str {
            let from = line.find(&format!(" {name}=\"")).unwrap_or_else(|| panic!("{name} in {line}"));
            line[from + name.len() + 3..].split('"').next().unwrap()
        };
        let number = |name: &str| word(name).parse::<u64>().unwrap();
        let (count, from, data) = match line.trim_start().split(' ').next().unwrap() {
            "<device" => {
                let words =
                    ["dev_id", "mapped_blocks", "transaction", "creation_time", "snap_time"].map(word);
                writeln!(text, "device {}", words.join(" ")).unwrap();
                continue;
            }
            "<single_mapping" => (1, number("origin_block"), number("data_block")),
            "<range_mapping" => (number("length"), number("origin_begin"), number("data_begin")),
            _ => continue,
        };
        let time = number("time");
        (0..count).for_each(|at| writeln!(text, "{} {} {time}", from + at, data + at).unwrap());
    }
    text
}

/// Snapshots of snapshots, written to and discarded here and there.
fn random(seed: u64) -> PoolContents {
    let mut rng = Rng(seed * 0x9e37_79b9 + 1);
    let mut pool = PoolContents::new(Sectors(128), 40_000, 4096);
    pool.transaction_id = rng.below(u64::MAX);
    pool.needs_check = rng.below(4) == 0;
    let mut next = 0;
    for id in 0..rng.below(30) {
        let id = u32::try_from(id * (1 + rng.below(1000))).unwrap();
        let origins: Vec<u32> = pool.thins.keys().copied().collect();
        let mut thin = ThinContents { transaction_id: pool.transaction_id, ..ThinContents::default() };
        if !origins.is_empty() && rng.below(3) > 0 {
            pool.time += 1;
            let origin = origins[usize::try_from(rng.below(origins.len() as u64)).unwrap()];
            let origin = pool.thins.get_mut(&origin).unwrap();
            origin.snapshotted_time = pool.time;
            thin.mappings = Arc::clone(&origin.mappings);
            thin.snapshotted_time = pool.time;
        }
        thin.creation_time = pool.time;
        let mappings: &mut Mappings = Arc::make_mut(&mut thin.mappings);
        let (sparse, first) = (1 + rng.below(50), rng.below(10_000));
        for at in 0..rng.below(3000) {
            mappings.insert(first + at * sparse, (next % 40_000, pool.time));
            next += 1;
        }
        let gap = rng.below(10_000);
        mappings.retain(|block, _| !(gap..gap + 300).contains(block));
        pool.thins.insert(id, thin);
    }
    pool
}

fn compare(contents: &PoolContents, held: Option<(&PoolContents, &HeldRoot)>, path: &Path) {
    let image = PoolImage::new(contents, held.map(|(_, held)| held)).unwrap();
    write(&image, contents.metadata_blocks, path);
    if contents.needs_check {
        // It says so, and fails.
        run("thin_check", &["--clear-needs-check-flag"], path);
    }
    run("thin_check", &[], path);
    assert_eq!(dumped(&run("thin_dump", &[], path)), described(contents));
    if let Some((contents, held)) = held {
        let xml = run("thin_dump", &[&format!("--metadata-snap={}", held.location())], path);
        assert_eq!(dumped(&xml), described(contents));
        run("thin_check", &["--metadata-snap"], path);
    }
}

#[test]
fn tools_agree_with_random_images() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let mut earlier: Option<PoolContents> = None;
    for seed in 1..12 {
        let contents = random(seed);
        compare(&contents, None, &path);
        // A metadata snapshot of the same, of a part, of something else.
        let held = PoolImage::new(&contents, None).unwrap().hold().unwrap();
        compare(&contents, Some((&contents, &held)), &path);
        let mut less = contents.clone();
        less.thins.retain(|id, _| id % 3 > 0);
        compare(&less, Some((&contents, &held)), &path);
        if let Some(earlier) = &earlier {
            compare(earlier, Some((&contents, &held)), &path);
        }
        earlier = Some(contents);
    }
}

#[test]
fn large_pools_are_quick() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let mappings = |count: u64| Arc::new((0..count).map(|block| (block, (block, 0))).collect::<Mappings>());
    let mut pool = PoolContents::new(Sectors(128), 8_000_000, 200_000);
    pool.thins.insert(1, ThinContents { mappings: mappings(8_000_000), ..ThinContents::default() });
    let begin = Instant::now();
    let image = PoolImage::new(&pool, None).unwrap();
    println!("8,000,000 mappings: {:?}, {} blocks", begin.elapsed(), image.blocks().count());
    write(&image, pool.metadata_blocks, &path);
    run("thin_check", &[], &path);

    let mut pool = PoolContents::new(Sectors(128), 1_000_000, 100_000);
    let shared = mappings(10_000);
    for id in 0..10_000 {
        let mut thin = ThinContents { mappings: Arc::clone(&shared), ..ThinContents::default() };
        if id % 2 == 0 {
            let own = BTreeMap::from([(u64::from(id), (500_000 + u64::from(id), 1))]);
            thin.mappings = Arc::new(shared.iter().map(|(&at, &to)| (at, to)).take(500).chain(own).collect());
        }
        pool.thins.insert(id, thin);
    }
    let begin = Instant::now();
    let image = PoolImage::new(&pool, None).unwrap();
    println!("10,000 devices: {:?}, {} blocks", begin.elapsed(), image.blocks().count());
    write(&image, pool.metadata_blocks, &path);
    run("thin_check", &[], &path);
}
