//! Trying again, with pauses that grow.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

/// The first pause.
const SHORTEST: Duration = Duration::from_micros(100);
/// What the pauses grow to.
const LONGEST: Duration = Duration::from_millis(32);

/// Pauses between attempts at what others keep from succeeding.
#[derive(Debug)]
pub(crate) struct Retry {
    /// None for a timeout that no clock can hold.
    end: Option<Instant>,
    pause: Duration,
}

impl Retry {
    pub(crate) fn within(timeout: Duration) -> Self {
        Self { end: Instant::now().checked_add(timeout), pause: SHORTEST }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// For a caller that counts its attempts.
    pub(crate) fn unlimited() -> Self {
        Self::within(Duration::MAX)
    }

    /// Sleeps before the next attempt, longer each time. False, at once, if the time is over.
    pub(crate) fn pause(&mut self) -> bool {
        if self.is_over() {
            return false;
        }
        // At random between the half and the whole: rivals must not stay in step.
        let half = self.pause / 2;
        let random = RandomState::new().hash_one(()) % 1024;
        thread::sleep(half + half * u32::try_from(random).unwrap_or_default() / 1024);
        self.pause = (self.pause * 2).min(LONGEST);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_the_time_is_over() {
        let mut retry = Retry::within(Duration::ZERO);
        assert!(!retry.pause());
        let mut retry = Retry::unlimited();
        assert!(retry.pause() && retry.pause());
        assert_eq!(retry.pause, SHORTEST * 4);
        for _ in 0..10 {
            assert!(Retry { pause: SHORTEST, ..Retry::unlimited() }.pause());
        }
        retry.pause = LONGEST;
        assert!(retry.pause());
        assert_eq!(retry.pause, LONGEST);
    }
}
