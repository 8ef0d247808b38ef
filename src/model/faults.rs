//! Which calls fail, which lose their answer, and what was called.

use std::fmt;
use std::panic::resume_unwind;
use std::thread;

use nix::errno::Errno;

/// One call that crossed the seam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The ioctl's name as the kernel spells it, or `open`, `poll`, `pread`, `pwrite`, `fdatasync`, `stat`, `mknod`,
    /// `unlink`, `readdir`, `mount`, `umount`, `mountinfo`, `opendir`, `mkdir`, `rmdir`, `readlink`, `attribute`,
    /// `which`, `run`, `semget`, `semop`,
    /// `semctl`, `read`, `process`.
    pub name: &'static str,
    /// The device, path or node that it was about.
    pub subject: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
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
pub(super) struct Action(pub(super) Box<dyn FnOnce() + Send>);

impl Action {
    /// In a thread of its own: the one that makes the call may have locks that come later than those of the action.
    pub(super) fn run(self) {
        thread::spawn(self.0).join().unwrap_or_else(|panic| resume_unwind(panic));
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
    pub(super) calls: u64,
    pub(super) planned: Vec<(u64, Fault)>,
    pub(super) actions: Vec<(u64, Action)>,
    pub(super) struck: Vec<Call>,
    pub(super) refused: Vec<(u32, Errno)>,
    pub(super) dead: bool,
    pub(super) unwind: bool,
    pub(super) log: Vec<Call>,
}

impl Faults {
    /// Counts a call and decides its outcome. An error means that it has no effect.
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
            self.struck.push(call);
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

    pub(super) fn plan(&mut self, n: u64, fault: Fault) {
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
