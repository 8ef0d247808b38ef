//! Which calls fail, which lose their answer, and what was called.

use nix::errno::Errno;

use crate::abi::Ioctl;

/// One call that crossed the seam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The ioctl's name as the kernel spells it, or `open`, `pread`, `pwrite`, `fdatasync`, `stat`, `mknod`,
    /// `unlink`, `readdir`, `mount`, `umount`, `mountinfo`, `opendir`, `mkdir`, `rmdir`, `readlink`, `attribute`, `which`, `run`, `semget`, `semop`,
    /// `semctl`, `read`.
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

#[derive(Debug, Default)]
pub(super) struct Faults {
    calls: u64,
    planned: Vec<(u64, Fault)>,
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
        self.log.push(Call { name, subject });
        if self.dead {
            return Err(Errno::EIO);
        }
        let now = self.calls;
        if let Some(at) = self.planned.iter().position(|&(call, _)| call == now) {
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
    /// The `n`-th call from now (1 is the next) fails with `errno`, without effect.
    pub fn fail_at(&self, n: u64, errno: Errno) {
        self.lock().faults.plan(n, Fault::Fail(errno));
    }

    /// The `n`-th call from now has its effect, but the caller hears `errno`.
    pub fn lose_answer_at(&self, n: u64, errno: Errno) {
        self.lock().faults.plan(n, Fault::LoseAnswer(errno));
    }

    /// From the `n`-th call on nothing has an effect, and every call fails with EIO: until
    /// [`heal`](Self::heal) (the process was killed) or for good, with [`power_cut`](Self::power_cut).
    pub fn cut_at(&self, n: u64) {
        self.lock().faults.plan(n, Fault::Cut);
    }

    /// The same, but the `n`-th call still has its effect. Its answer is lost.
    pub fn cut_after(&self, n: u64) {
        self.lock().faults.plan(n, Fault::CutAfter);
    }

    /// The call that a cut happens at does not return an error: it unwinds with a [`Cut`], to be caught by
    /// [`catch_unwind`](std::panic::catch_unwind). So the caller's error handling cannot do to files what
    /// a process that was killed would not have done any more. Calls after that fail with EIO.
    pub fn unwind_at_cut(&self, unwind: bool) {
        self.lock().faults.unwind = unwind;
    }

    /// Whether a cut has happened.
    pub fn is_cut(&self) -> bool {
        self.lock().faults.dead()
    }

    /// Forget every fault that was planned, and a cut that happened: what the next process finds after
    /// this one was killed. Nothing else changes.
    pub fn heal(&self) {
        let state = &mut *self.lock();
        state.faults.planned.clear();
        if std::mem::take(&mut state.faults.dead) {
            state.world.semaphores.values_mut().for_each(|counter| counter.abandoned = true);
        }
    }

    /// From now on this ioctl fails with `errno`, as on a kernel that does not have it.
    pub fn refuse(&self, ioctl: Ioctl, errno: Errno) {
        let faults = &mut self.lock().faults;
        faults.refused.retain(|&(code, _)| code != ioctl.code());
        faults.refused.push((ioctl.code(), errno));
    }

    /// Take back [`refuse`](Self::refuse).
    pub fn allow(&self, ioctl: Ioctl) {
        self.lock().faults.refused.retain(|&(code, _)| code != ioctl.code());
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.lock().faults.calls
    }

    /// The calls since the last [`clear_log`](Self::clear_log), failed ones included.
    pub fn log(&self) -> Vec<Call> {
        self.lock().faults.log.clone()
    }

    /// Begin a new log. The count of [`calls`](Self::calls) goes on.
    pub fn clear_log(&self) {
        self.lock().faults.log.clear();
    }
}
