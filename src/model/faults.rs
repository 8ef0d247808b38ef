//! Which calls fail, which lose their answer, and what was called.

use std::fmt;

use nix::errno::Errno;

use crate::abi::Ioctl;

/// One call that crossed the seam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The ioctl's name as the kernel spells it, or `open`, `poll`, `pread`, `pwrite`, `fdatasync`, `stat`, `mknod`,
    /// `unlink`, `readdir`, `mount`, `umount`, `mountinfo`, `opendir`, `mkdir`, `rmdir`, `readlink`, `attribute`, `which`, `run`, `semget`, `semop`,
    /// `semctl`, `read`, `process`.
    pub name: &'static str,
    /// The device, path or node that it was about.
    pub subject: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Only this call fails, without effect.
    Fail(Errno),
    /// This call has its effect, and fails all the same.
    LoseAnswer(Errno),
    /// Nothing has an effect from this call on.
    Cut,
    /// This call still has its effect; its answer is lost, and nothing after it counts.
    CutAfter,
}

/// What [`unwind_at_cut`](super::ModelKernel::unwind_at_cut) unwinds with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is carried out.
    Proceed,
    /// It is carried out, and the caller hears this errno.
    LoseAnswer(Errno),
    /// It is carried out, and the caller hears EIO, or nothing ever again.
    LastOne,
}

/// What somebody else does between two calls.
pub(super) struct Action(Box<dyn FnOnce() + Send>);

impl Action {
    pub(super) fn run(self) {
        (self.0)();
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Action")
    }
}

/// Of one process.
#[derive(Debug, Default)]
pub(super) struct Faults {
    calls: u64,
    planned: Vec<(u64, Fault)>,
    actions: Vec<(u64, Action)>,
    struck: Option<Call>,
    refused: Vec<(u32, Errno)>,
    dead: bool,
    unwind: bool,
    log: Vec<Call>,
}

impl Faults {
    /// Count a call and judge it. An error means that it has no effect.
    pub(super) fn admit(
        &mut self,
        name: &'static str,
        code: Option<u32>,
        subject: String,
    ) -> Result<Verdict, Errno> {
        self.calls += 1;
        let call = Call { name, subject };
        self.log.push(call.clone());
        if self.dead {
            return Err(Errno::EIO);
        }
        let now = self.calls;
        if let Some(at) = self.planned.iter().position(|&(call, _)| call == now) {
            self.struck = Some(call);
            match self.planned.swap_remove(at).1 {
                Fault::Fail(errno) => return Err(errno),
                Fault::LoseAnswer(errno) => return Ok(Verdict::LoseAnswer(errno)),
                Fault::Cut => {
                    self.dead = true;
                    self.unwind_if_asked();
                    return Err(Errno::EIO);
                }
                Fault::CutAfter => {
                    self.dead = true;
                    return Ok(Verdict::LastOne);
                }
            }
        }
        match self.refused.iter().find(|&&(refused, _)| Some(refused) == code) {
            Some(&(_, errno)) => Err(errno),
            None => Ok(Verdict::Proceed),
        }
    }

    /// What is to be done before the next call.
    pub(super) fn take_action(&mut self) -> Option<Action> {
        let at = self.actions.iter().position(|&(call, _)| call == self.calls + 1)?;
        (!self.dead).then(|| self.actions.swap_remove(at).1)
    }

    fn plan(&mut self, n: u64, fault: Fault) {
        self.planned.push((self.calls + n, fault));
    }

    /// Without the panic hook: nothing went wrong.
    pub(super) fn unwind_if_asked(&self) {
        if self.unwind {
            std::panic::resume_unwind(Box::new(Cut));
        }
    }

    /// Whether the power is off.
    pub(super) fn dead(&self) -> bool {
        self.dead
    }

    pub(super) fn kill(&mut self) {
        self.dead = true;
    }
}

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

    /// The call that a cut happens at does not return an error: it unwinds with a [`Cut`], to be caught by
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
        self.faults(|faults| faults.struck.clone())
    }

    /// Whether a cut has happened.
    pub fn is_cut(&self) -> bool {
        self.faults(|faults| faults.dead())
    }

    /// Forget every fault and action that was planned, and a cut that happened: what the next process finds after
    /// this one was killed. Nothing else changes.
    pub fn heal(&self) {
        let state = &mut *self.lock();
        let faults = &mut state.faults[self.process];
        faults.planned.clear();
        faults.actions.clear();
        faults.struck = None;
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

    /// Take back [`refuse`](Self::refuse).
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

    /// Begin a new log. The count of [`calls`](Self::calls) goes on.
    pub fn clear_log(&self) {
        self.faults(|faults| faults.log.clear());
    }
}
