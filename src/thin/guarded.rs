//! A pool with a space guard.

use super::guard_state::GuardState;
use super::{MinFree, PoolMode, SpaceGuard, ThinPool};
use crate::thin::{Error, Result};

impl ThinPool {
    /// Checks that there is space before every message that allocates.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for more than 100 percent.
    pub fn with_guard(mut self, guard: SpaceGuard) -> Result<Self> {
        for free in [guard.data, guard.metadata].into_iter().flatten() {
            if let MinFree::Percent(percent @ 101..) = free {
                let reason = "more than 100 percent";
                return Err(Error::InvalidOption {
                    option: "free space",
                    value: percent.to_string(),
                    reason,
                });
            }
        }
        let (table, _) = self.table()?;
        self.guard = Some(GuardState::new(guard, table.block_size));
        self.status()?;
        Ok(self)
    }

    /// Checks that there is space for a message that allocates.
    ///
    /// # Errors
    /// [`Error::LowSpace`] if there is less than the guard wants.
    pub(crate) fn check_space(&self) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        if guard.is_fresh() && guard.check(self.name()).is_ok() {
            return Ok(());
        }
        // Too old, or too little when last seen: blocks may have been freed since.
        self.status()?;
        guard.check(self.name())
    }

    /// Checks that a volume can be suspended for a snapshot. In a pool that is out of data space and queues
    /// writes, the suspend waits for them: until there is space, or for `no_space_timeout`. No answer would carry the
    /// event in time, so what the last status said serves only until it is too old.
    ///
    /// # Errors
    /// [`Error::PoolMode`] in such a pool; [`Error::LowSpace`] if there is less than the guard wants.
    pub(crate) fn check_suspend(&self) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        if !guard.is_recent() || guard.queues_writes() {
            self.status()?;
        }
        if guard.queues_writes() {
            let consequence = "a suspend would wait for the writes that it queues";
            return Err(self.mode_error(PoolMode::OutOfDataSpace, consequence));
        }
        self.check_space()
    }
}
