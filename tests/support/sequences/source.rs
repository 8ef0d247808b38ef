//! Where a sequence's choices come from: a fuzzer's bytes, or as many as are wanted from a seed.

/// Choices. Those of a fuzzer end with its bytes.
#[derive(Debug, Clone)]
pub enum Source<'a> {
    Bytes(&'a [u8]),
    /// SplitMix64.
    Seed(u64),
}

impl Source<'_> {
    /// Whether every further choice would be the first one.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Bytes([]))
    }

    fn byte(&mut self) -> u8 {
        match self {
            Self::Bytes(bytes) => bytes.split_off_first().copied().unwrap_or(0),
            Self::Seed(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z ^ (z >> 31)).to_le_bytes()[0]
            }
        }
    }

    /// A number from 0 up to but not including `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}
