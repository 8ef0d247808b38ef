//! Random pools.

use std::sync::Arc;

use dm_thin::model::image::{Mappings, PoolContents, ThinContents};
use dm_thin::units::Sectors;

/// xorshift64.
#[derive(Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// An index into `len` things.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

/// Thin devices, and snapshots of them, written to and discarded here and there. A data block is shared at equal
/// virtual blocks only.
pub fn random(seed: u64) -> PoolContents {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut pool = PoolContents::new(Sectors(128), 60_000, 4096);
    pool.transaction_id = rng.below(u64::MAX);
    let mut next = 0;
    let count = 1 + rng.below(12);
    for number in 0..count {
        let id = u32::try_from(number * (1 + rng.below(1000))).unwrap();
        let origins: Vec<u32> = pool.thins.keys().copied().collect();
        let mut thin = ThinContents { transaction_id: pool.transaction_id, ..ThinContents::default() };
        if !origins.is_empty() && rng.below(3) > 0 {
            pool.time += 1;
            let origin = origins[rng.index(origins.len())];
            let origin = pool.thins.get_mut(&origin).unwrap();
            origin.snapshotted_time = pool.time;
            thin.mappings = Arc::clone(&origin.mappings);
            thin.snapshotted_time = pool.time;
        }
        thin.creation_time = pool.time;
        let (sparse, first) = (1 + rng.below(50), rng.below(10_000));
        let (written, discarded) = (rng.below(3) * rng.below(1500), rng.below(3) * 150);
        if written + discarded > 0 {
            let mappings: &mut Mappings = Arc::make_mut(&mut thin.mappings);
            for at in 0..written.min(pool.data_blocks - next) {
                mappings.insert(first + at * sparse, (next, pool.time));
                next += 1 + rng.below(50) / 49;
                next = next.min(pool.data_blocks - 1);
            }
            let hole = rng.below(10_000);
            mappings.retain(|block, _| !(hole..hole + discarded).contains(block));
        }
        pool.thins.insert(id, thin);
    }
    pool
}
