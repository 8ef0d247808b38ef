use super::StreamError;
use crate::units::Bytes;

/// Checks that ranges are not empty, ascend, do not overlap, and lie within a volume.
#[derive(Debug, Clone, Copy)]
pub struct RangeChecker {
    next: u64,
    size: u64,
}

impl RangeChecker {
    /// Returns a checker for ranges between `start` and `size`.
    pub fn new(start: Bytes, size: Bytes) -> Self {
        Self { next: start.0, size: size.0 }
    }

    /// Accepts the next range.
    ///
    /// # Errors
    /// [`StreamError::OutOfRange`]; later ranges are then compared with the last accepted one.
    pub fn accept(&mut self, offset: Bytes, length: Bytes) -> Result<(), StreamError> {
        let invalid = |reason| StreamError::OutOfRange { offset, length, reason };
        if length.0 == 0 {
            return Err(invalid("empty"));
        }
        let end = offset.0.checked_add(length.0).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| invalid("ends after the end of the volume"))?;
        if offset.0 < self.next {
            return Err(invalid("begins before the end of the range before it"));
        }
        self.next = end;
        Ok(())
    }
}
