//! One operation at a time on one device, in this process.
//!
//! The kernel's integrity measurement (dm-ima.c) changes a device's measured name and tables without a lock: a
//! load, clear, rename, resume or removal of a device beside another one of these can crash the machine. Two
//! suspends or table swaps at once can answer EINVAL. And what is done to a node after the ioctl must not be done
//! to the node of the name's next owner.
//!
//! A device is addressed by name, by uuid or by number, so that two operations may be about one device without
//! looking so. What is certain is compared; only if that does not settle it the newcomer asks for its device's
//! status. Without a rival nothing is asked.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{DeviceMapper, DmId, DmName, DmUuid};
use crate::dm::Result;
use crate::kernel::DeviceNumber;

/// What is known of the device that an operation is about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Claim {
    /// Its name, and the one that it may get. No other operation on these begins.
    names: [Option<DmName>; 2],
    /// The first name is certainly the device's: another name means another device.
    name_is_certain: bool,
    uuid: Option<DmUuid>,
    number: Option<DeviceNumber>,
    /// All of the above is what the kernel said: no uuid means that it has none.
    resolved: bool,
    /// It is about every device there is.
    all: bool,
}

impl<'a, T: Into<DmId<'a>>> From<T> for Claim {
    fn from(id: T) -> Self {
        match id.into() {
            DmId::Name(name) => Self { names: [Some(*name), None], name_is_certain: true, ..Self::default() },
            DmId::Uuid(uuid) => Self { uuid: Some(*uuid), ..Self::default() },
            DmId::Number(number) => Self { number: Some(number), ..Self::default() },
        }
    }
}

impl Claim {
    /// Every device of the system.
    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// A device that is made with this uuid, if it gets one.
    pub(super) fn with_uuid(self, uuid: Option<&DmUuid>) -> Self {
        Self { uuid: uuid.copied().or(self.uuid), ..self }
    }

    /// Claims a name, too: one that the device had when it was last looked at, or will have.
    pub(crate) fn with_name(mut self, name: &DmName) -> Self {
        let free = self.names.iter_mut().find(|known| known.is_none_or(|known| known == *name));
        if let Some(free) = free {
            *free = Some(*name);
        }
        self
    }

    fn id(&self) -> Option<DmId<'_>> {
        let name = self.names[0].as_ref().filter(|_| self.name_is_certain);
        let uuid = self.uuid.as_ref().map(DmId::Uuid);
        uuid.or(name.map(DmId::Name)).or(self.number.map(DmId::Number))
    }

    /// Whether it is the same device; `None` if that cannot be told.
    fn is(&self, other: &Self) -> Option<bool> {
        let same_name = self.names.iter().flatten().any(|name| other.names.contains(&Some(*name)));
        if self.all || other.all || same_name {
            return Some(true);
        }
        if let (Some(one), Some(two)) = (self.uuid, other.uuid) {
            return Some(one == two);
        }
        if let (Some(one), Some(two)) = (self.number, other.number) {
            return Some(one == two);
        }
        let differ = self.name_is_certain && other.name_is_certain
            || self.resolved && self.uuid.is_none() && other.uuid.is_some()
            || other.resolved && other.uuid.is_none() && self.uuid.is_some();
        differ.then_some(false)
    }
}

/// Operations under way, and how often devices are suspended.
#[derive(Debug)]
struct Table {
    operations: Vec<Operation>,
    /// Devices that are suspended on behalf of this process, by the id under which that was asked for.
    suspended: Vec<(Machine, Subject, u32)>,
    next_ticket: u64,
    /// Counts the ends of operations: what was asked before the last one may be wrong.
    ended: u64,
}

#[derive(Debug)]
struct Operation {
    ticket: u64,
    machine: Machine,
    claim: Claim,
}

/// Which kernel: the running one, or one of a test by its address.
type Machine = usize;

/// How a device that is suspended is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Name(DmName),
    Uuid(DmUuid),
    Number(DeviceNumber),
}

impl From<DmId<'_>> for Subject {
    fn from(id: DmId<'_>) -> Self {
        match id {
            DmId::Name(name) => Self::Name(*name),
            DmId::Uuid(uuid) => Self::Uuid(*uuid),
            DmId::Number(number) => Self::Number(number),
        }
    }
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { operations: Vec::new(), suspended: Vec::new(), next_ticket: 0, ended: 0 });
static ENDED: Condvar = Condvar::new();

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes room for so many operations at once, so that none of them allocates.
pub(super) fn reserve() {
    const AT_ONCE: usize = 64;
    let mut table = table();
    let (operations, suspended) = (table.operations.len(), table.suspended.len());
    table.operations.reserve(AT_ONCE.saturating_sub(operations));
    table.suspended.reserve(AT_ONCE.saturating_sub(suspended));
}

/// No other operation on the device begins in this process as long as this lives.
#[derive(Debug)]
pub(crate) struct Exclusive {
    ticket: u64,
    machine: Machine,
}

impl DeviceMapper {
    fn machine(&self) -> Machine {
        if self.is_real() { 0 } else { Arc::as_ptr(self.kernel()).cast::<()>() as usize }
    }

    /// Waits until no other operation on the device is under way.
    pub(crate) fn exclusive(&self, claim: impl Into<Claim>) -> Exclusive {
        let (asked, machine) = (claim.into(), self.machine());
        let mut claim = asked;
        let mut table = table();
        loop {
            let rivals = || table.operations.iter().filter(|operation| operation.machine == machine);
            if rivals().any(|rival| claim.is(&rival.claim) == Some(true)) {
                table = ENDED.wait(table).unwrap_or_else(PoisonError::into_inner);
                claim = asked;
            } else if rivals().any(|rival| claim.is(&rival.claim).is_none()) {
                if claim.resolved {
                    // Both are what they are: not the same.
                    break;
                }
                let ended = table.ended;
                drop(table);
                let resolved = self.resolve(asked);
                table = self::table();
                claim = match resolved {
                    Ok(resolved) if table.ended == ended => resolved,
                    Err(_) if table.ended == ended => {
                        // It cannot be told: then all of the rivals have to end.
                        table = ENDED.wait(table).unwrap_or_else(PoisonError::into_inner);
                        asked
                    }
                    _ => asked,
                };
            } else {
                break;
            }
        }
        let ticket = table.next_ticket;
        table.next_ticket += 1;
        table.operations.push(Operation { ticket, machine, claim });
        Exclusive { ticket, machine }
    }

    fn resolve(&self, claim: Claim) -> Result<Claim> {
        let found = claim.id().map_or(Ok(None), |id| self.find(id))?;
        let resolved = found.map_or(claim, |device| Claim {
            uuid: device.uuid,
            number: Some(device.number),
            name_is_certain: true,
            names: [Some(device.name), claim.names.into_iter().flatten().find(|name| *name != device.name)],
            ..claim
        });
        Ok(Claim { resolved: true, ..resolved })
    }
}

impl Exclusive {
    /// How often the device is suspended on behalf of this process.
    pub(crate) fn suspensions(&self, id: DmId<'_>) -> u32 {
        let subject = Subject::from(id);
        let table = table();
        let mut known = table.suspended.iter().filter(|known| (known.0, known.1) == (self.machine, subject));
        known.next().map_or(0, |known| known.2)
    }

    /// Counts one suspension more.
    pub(crate) fn suspended(&self, id: DmId<'_>) {
        let subject = Subject::from(id);
        let mut table = table();
        let known = table.suspended.iter_mut().find(|known| (known.0, known.1) == (self.machine, subject));
        match known {
            Some((.., count)) => *count += 1,
            None => table.suspended.push((self.machine, subject, 1)),
        }
    }

    /// Counts one suspension less; whether it was the last one.
    pub(crate) fn released(&self, id: DmId<'_>) -> bool {
        let subject = Subject::from(id);
        let mut table = table();
        let is_it = |known: &(Machine, Subject, u32)| (known.0, known.1) == (self.machine, subject);
        let Some(at) = table.suspended.iter().position(is_it) else { return true };
        table.suspended[at].2 -= 1;
        let last = table.suspended[at].2 == 0;
        if last {
            table.suspended.swap_remove(at);
        }
        last
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let mut table = table();
        table.operations.retain(|operation| operation.ticket != self.ticket);
        table.ended += 1;
        drop(table);
        ENDED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DmName {
        DmName::new(text).unwrap()
    }

    fn uuid(text: &str) -> DmUuid {
        DmUuid::new(text).unwrap()
    }

    #[test]
    fn only_what_is_certain_tells_two_devices_apart() {
        let by_name = |text: &str| Claim::from(&name(text));
        let by_uuid = |text: &str| Claim::from(&uuid(text));
        assert_eq!(by_name("a").is(&by_name("a")), Some(true));
        assert_eq!(by_name("a").is(&by_name("b")), Some(false));
        assert_eq!(by_uuid("A").is(&by_uuid("A")), Some(true));
        assert_eq!(by_uuid("A").is(&by_uuid("B")), Some(false));
        assert_eq!(by_name("a").is(&by_uuid("A")), None);
        assert_eq!(by_name("a").with_name(&name("b")).is(&by_name("b")), Some(true));
        // A handle's name may be an old one.
        let handle = by_uuid("A").with_name(&name("old"));
        assert_eq!(handle.is(&by_name("old")), Some(true));
        assert_eq!(handle.is(&by_name("new")), None);
        let nameless = Claim { resolved: true, ..by_name("new") };
        assert_eq!(handle.is(&nameless), Some(false), "it has no uuid");
    }
}
