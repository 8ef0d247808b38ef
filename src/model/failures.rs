//! Failures that a test plans, and what became of them.

use nix::errno::Errno;

use super::faults::{Action, Call, Fault, Faults};
use crate::abi::Ioctl;

impl super::ModelKernel {
    /// What is planned for this process, and what became of it.
    fn faults<R>(&self, work: impl FnOnce(&mut Faults) -> R) -> R {
        work(&mut self.lock().faults[self.process])
    }

    /// The `n`-th call from now (1 is the next) fails with `errno`, without effect.
    pub fn fail_at(&self, n: u64, errno: Errno) {
        self.faults(|faults| faults.plan(n, Fault::Fail(errno)));
    }

    /// The `n`-th call from now has its effect, but the caller hears `errno`.
    pub fn lose_answer_at(&self, n: u64, errno: Errno) {
        self.faults(|faults| faults.plan(n, Fault::LoseAnswer(errno)));
    }

    /// From the `n`-th call on nothing has an effect, and every call fails with EIO: until
    /// [`heal`](Self::heal) (the process was killed) or for good, with [`power_cut`](Self::power_cut).
    pub fn cut_at(&self, n: u64) {
        self.faults(|faults| faults.plan(n, Fault::Cut));
    }

    /// The same, but the `n`-th call still has its effect. Its answer is lost.
    pub fn cut_after(&self, n: u64) {
        self.faults(|faults| faults.plan(n, Fault::CutAfter));
    }

    /// The call that a cut happens at does not return an error: it unwinds with a [`Cut`](super::Cut), to be caught by
    /// [`catch_unwind`](std::panic::catch_unwind). So the caller's error handling cannot do to files what
    /// a process that was killed would not have done any more. Calls after that fail with EIO.
    pub fn unwind_at_cut(&self, unwind: bool) {
        self.faults(|faults| faults.unwind = unwind);
    }

    /// A call of this process that another one answers, such as the write to a file: counted, logged and struck by
    /// faults as those that the kernel answers.
    ///
    /// # Errors
    /// What was planned; EIO after a cut.
    pub fn call_elsewhere(&self, name: &'static str, subject: &str) -> Result<(), Errno> {
        self.call(name, subject, |_| Ok(()))
    }

    /// Runs `action` before the `n`-th call from now, as if another process was faster. It may make calls through any
    /// process.
    pub fn at_call(&self, n: u64, action: impl FnOnce() + Send + 'static) {
        self.faults(|faults| faults.actions.push((faults.calls + n, Action(Box::new(action)))));
    }

    /// The call that the last fault or cut happened to.
    pub fn struck(&self) -> Option<Call> {
        self.faults(|faults| faults.struck.last().cloned())
    }

    /// All calls that faults and cuts happened to since the last [`heal`](Self::heal), in their order.
    pub fn all_struck(&self) -> Vec<Call> {
        self.faults(|faults| faults.struck.clone())
    }

    /// Whether a cut has happened.
    pub fn is_cut(&self) -> bool {
        self.faults(|faults| faults.dead())
    }

    /// Forgets every fault and action that was planned, and a cut that happened: what the next process finds after
    /// this one was killed. Nothing else changes.
    pub fn heal(&self) {
        let state = &mut *self.lock();
        let faults = &mut state.faults[self.process];
        faults.planned.clear();
        faults.actions.clear();
        faults.struck.clear();
        if std::mem::take(&mut faults.dead) {
            state.world.semaphores.values_mut().for_each(|counter| counter.abandoned = true);
        }
    }

    /// From now on this ioctl fails with `errno`, as on a kernel that does not have it.
    pub fn refuse(&self, ioctl: Ioctl, errno: Errno) {
        self.faults(|faults| {
            faults.refused.retain(|&(code, _)| code != ioctl.code());
            faults.refused.push((ioctl.code(), errno));
        });
    }

    /// Takes back [`refuse`](Self::refuse).
    pub fn allow(&self, ioctl: Ioctl) {
        self.faults(|faults| faults.refused.retain(|&(code, _)| code != ioctl.code()));
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.faults(|faults| faults.calls)
    }

    /// The calls since the last [`clear_log`](Self::clear_log), failed ones included.
    pub fn log(&self) -> Vec<Call> {
        self.faults(|faults| faults.log.clone())
    }

    /// Begins a new log. The count of [`calls`](Self::calls) goes on.
    pub fn clear_log(&self) {
        self.faults(|faults| faults.log.clear());
    }
}
