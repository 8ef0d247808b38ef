//! References to blocks, counted while trees are walked.

use std::collections::HashMap;

/// How often each block of a range is referred to.
#[derive(Debug)]
pub(super) struct Counts {
    first: u64,
    /// What a byte can hold.
    low: Vec<u8>,
    /// What is above that.
    high: HashMap<u64, u32>,
}

impl Counts {
    /// Counts for `len` blocks from `first` on. Pages that are never written take no memory.
    pub(super) fn new(first: u64, len: u64) -> Self {
        Self { first, low: vec![0; usize::try_from(len).unwrap_or(0)], high: HashMap::new() }
    }

    /// Adds a reference and returns how many there are. Blocks outside of the range are not counted.
    pub(super) fn add(&mut self, block: u64) -> u32 {
        let Some(low) = place(block, self.first).and_then(|at| self.low.get_mut(at)) else { return 0 };
        if *low < u8::MAX {
            *low += 1;
            return u32::from(*low);
        }
        let high = self.high.entry(block).or_default();
        *high = high.saturating_add(1);
        high.saturating_add(u8::MAX.into())
    }

    /// Whether none of `len` blocks is referred to.
    pub(super) fn is_zero(&self, block: u64, len: u64) -> bool {
        let end = block.checked_add(len).and_then(|end| place(end, self.first));
        let range = place(block, self.first).zip(end).and_then(|(from, end)| self.low.get(from..end));
        range.is_some_and(|range| range.iter().all(|&low| low == 0))
    }

    pub(super) fn get(&self, block: u64) -> u32 {
        match place(block, self.first).and_then(|at| self.low.get(at)) {
            Some(&u8::MAX) => self.high.get(&block).map_or(0, |&high| high).saturating_add(u8::MAX.into()),
            low => low.map_or(0, |&low| low.into()),
        }
    }
}

/// Which blocks of a range are referred to once, and which more often: two bits each.
#[derive(Debug)]
pub(super) struct Once {
    first: u64,
    bits: Vec<u8>,
}

impl Once {
    /// For `len` blocks from `first` on.
    pub(super) fn new(first: u64, len: u64) -> Self {
        Self { first, bits: vec![0; usize::try_from(len.div_ceil(4)).unwrap_or(0)] }
    }

    /// Adds a reference, and returns whether it is the first one.
    pub(super) fn add(&mut self, block: u64) -> bool {
        let before = self.get(block);
        if let Some(at) = place(block, self.first)
            && before < 2
            && let Some(byte) = self.bits.get_mut(at / 4)
        {
            *byte += 1 << (at % 4 * 2);
        }
        before == 0
    }

    /// How often a block is referred to, up to 2.
    pub(super) fn get(&self, block: u64) -> u8 {
        let Some(at) = place(block, self.first) else { return 0 };
        self.bits.get(at / 4).map_or(0, |byte| byte >> (at % 4 * 2) & 3)
    }
}

fn place(block: u64, first: u64) -> Option<usize> {
    usize::try_from(block.checked_sub(first)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_is_told_from_more_often() {
        let mut once = Once::new(10, 5);
        assert_eq!((once.add(11), once.add(11), once.add(11), once.add(14)), (true, false, false, true));
        let found: Vec<u8> = (8..20).map(|block| once.get(block)).collect();
        assert_eq!(found, [0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0]);
        once.add(u64::MAX);
        once.add(9);
        assert_eq!((once.get(u64::MAX), once.get(9)), (0, 0));
    }

    #[test]
    fn counts_are_exact_beyond_a_byte_and_limited_to_their_range() {
        let mut counts = Counts::new(10, 2);
        for expected in 1..=1000 {
            assert_eq!((counts.add(11), counts.get(11)), (expected, expected));
        }
        assert_eq!(
            (counts.add(9), counts.add(12), counts.get(9), counts.get(12), counts.get(10)),
            (0, 0, 0, 0, 0)
        );
    }
}
