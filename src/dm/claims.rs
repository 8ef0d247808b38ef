//! Which devices the operations of this process are about, and how often it has suspended each.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{DmId, DmName, DmUuid};
use crate::kernel::DeviceNumber;

/// What is known of the device that an operation is about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Claim {
    /// Its name, and the one that it may get. No other operation on these begins.
    pub(super) names: [Option<DmName>; 2],
    /// The first name is certainly the device's: another name means another device.
    pub(super) name_is_certain: bool,
    pub(super) uuid: Option<DmUuid>,
    pub(super) number: Option<DeviceNumber>,
    /// All of the above is what the kernel said: no uuid means that it has none.
    pub(super) resolved: bool,
    /// It is about every device there is.
    pub(super) all: bool,
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

    pub(super) fn id(&self) -> Option<DmId<'_>> {
        let name = self.names[0].as_ref().filter(|_| self.name_is_certain);
        let uuid = self.uuid.as_ref().map(DmId::Uuid);
        uuid.or(name.map(DmId::Name)).or(self.number.map(DmId::Number))
    }

    /// Whether it is the same device; `None` if that is unknown.
    pub(super) fn is(&self, other: &Self) -> Option<bool> {
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
pub(super) struct Table {
    pub(super) operations: Vec<Operation>,
    /// Devices that are suspended on behalf of this process, by the id under which that was asked for.
    suspended: Vec<(Machine, Subject, u32)>,
    pub(super) next_ticket: u64,
    /// Counts the ends of operations: what was asked before the last one may be wrong.
    pub(super) ended: u64,
    /// Threads that wait for an end.
    waiting: usize,
}

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) ticket: u64,
    pub(super) machine: Machine,
    pub(super) claim: Claim,
}

/// Which kernel: the running one, or one of a test by its address.
pub(super) type Machine = usize;

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

pub(super) static TABLE: Mutex<Table> =
    Mutex::new(Table { operations: Vec::new(), suspended: Vec::new(), next_ticket: 0, ended: 0, waiting: 0 });
static ENDED: Condvar = Condvar::new();

pub(super) fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until an operation has ended.
pub(super) fn wait(mut table: MutexGuard<'static, Table>) -> MutexGuard<'static, Table> {
    table.waiting += 1;
    let mut table = ENDED.wait(table).unwrap_or_else(PoisonError::into_inner);
    table.waiting -= 1;
    table
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
    pub(super) ticket: u64,
    pub(super) machine: Machine,
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
        if table.waiting > 0 {
            ENDED.notify_all();
        }
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
